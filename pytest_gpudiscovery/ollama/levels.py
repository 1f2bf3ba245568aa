"""Which log level a server ran at: what is absent from a log means nothing without it."""

from __future__ import annotations

from pytest_gpudiscovery.ollama.sessions import Server

INFO, DEBUG, TRACE = "INFO", "DEBUG", "TRACE"
# OLLAMA_DEBUG as "server config" shows it: a slog.Level since 0.7.0, a bool before.
SHOWN = {"false": INFO, "INFO": INFO, "true": DEBUG, "DEBUG": DEBUG, "DEBUG-4": TRACE, "TRACE": TRACE}


def of(server: Server) -> tuple[str | None, str]:
    """Return the log level (INFO, DEBUG, TRACE or another) of SERVER and how that is known; None when it is not."""
    shown = (server.settings or {}).get("OLLAMA_DEBUG")
    whole = any(entry.complete and entry.begun_in_log for entry in server.builder.discoveries)
    if shown is not None:
        level, why = SHOWN.get(shown, shown or INFO), f'OLLAMA_DEBUG:{shown} in "server config"'
        if level in (DEBUG, TRACE) and whole and not server.levels & {DEBUG, TRACE}:
            # As `grep INFO` leaves it: what is absent from it was said all the same.
            return INFO, f"{why}, but a whole discovery has no DEBUG line: they were left out"
        return level, why
    for level in (TRACE, DEBUG):
        if level in server.levels:
            return level, f"it has {level} lines"
    if whole:
        return INFO, "a whole discovery has no DEBUG line"
    return None, "too little of it is here"
