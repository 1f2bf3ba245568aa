"""Assert, in order, every prerequisite of Ollama's GPU discovery on this host, and name the one that blocks it."""

__version__ = "0.1.0"
