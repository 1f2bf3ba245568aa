"""The life of a probe: spawn, progress journal, deadline, evidence, SIGKILL, bounded wait, abandon."""
