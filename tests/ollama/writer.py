"""Writes log lines as Ollama's own format strings do (slog's text handler over the messages of the named release).

Where a real server's log of a case is in corpus/, that is what the tests use; these stand for the cases that no real
server was made to log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

LIB = "/usr/local/lib/ollama"
RESERVED = re.compile(r'[\s="\\]|[^\x20-\x7e]')
GO_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}
TIMEOUT = "failed to finish discovery before timeout"


def quoted(value: str) -> str:
    """Return VALUE as slog's text handler writes it: quoted where that is needed (log/slog/text_handler.go)."""
    return f'"{"".join(map(_go, value))}"' if value == "" or RESERVED.search(value) else value


def _go(char: str) -> str:
    """Return CHAR inside a Go string (strconv.Quote)."""
    if char in GO_ESCAPES:
        return GO_ESCAPES[char]
    code = ord(char)
    if char.isprintable():
        return char
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@dataclass
class Log:
    """A log that is being written. `now` is in seconds; `at` moves it on."""

    now: float = 1_700_000_000.0
    zone_h: int = 0
    lines: list[str] = field(default_factory=list)

    def at(self, seconds: float) -> Log:
        """Let SECONDS pass."""
        self.now += seconds
        return self

    def put(self, source: str, message: str, level: str = "INFO", /, **attributes: str) -> Log:
        """Write one line of Ollama's."""
        zone = timezone(timedelta(hours=self.zone_h))
        time = datetime.fromtimestamp(self.now, zone).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        rest = "".join(f" {key}={quoted(value)}" for key, value in attributes.items())
        self.lines.append(f"time={time} level={level} source={source} msg={quoted(message)}{rest}")
        return self

    def raw(self, *lines: str) -> Log:
        """Write lines of a child, of systemd or of nobody."""
        self.lines += lines
        return self

    def text(self) -> str:
        """Return the whole log."""
        return "".join(f"{line}\n" for line in self.lines)

    def data(self) -> bytes:
        """Return the whole log as bytes."""
        return self.text().encode()


def config(log: Log, *, debug: str = "INFO", source: str = "routes.go:1663", **values: str) -> Log:
    """Write what a server of 0.16.2 to 0.17.4 writes before discovery."""
    settings = {"CUDA_VISIBLE_DEVICES": "", "OLLAMA_DEBUG": debug, "OLLAMA_LLM_LIBRARY": "", **values}
    env = f"map[{' '.join(f'{key}:{value}' for key, value in sorted(settings.items()))}]"
    return log.put(source, "server config", env=env)


def begin(log: Log, version: str = "0.16.3", **settings: str) -> Log:
    """Write a start of 0.16.3 up to the beginning of discovery."""
    config(log, **settings)
    log.put("routes.go:1718", f"Listening on 127.0.0.1:11434 (version {version})")
    return log.put("runner.go:67", "discovering available GPUs...")


def spawn(log: Log, port: int = 37001, directory: str = "", *, debug: bool = False, **environment: str) -> Log:
    """Write the start of one discovery child of 0.16.3."""
    command = f"/usr/local/bin/ollama runner --ollama-engine --port {port}"
    log.put("server.go:431", "starting runner", cmd=command)
    if debug:
        path = f"{LIB}:{LIB}/{directory}" if directory else LIB
        log.put("server.go:432", "subprocess", "DEBUG", PATH="/usr/bin", OLLAMA_LIBRARY_PATH=path, **environment)
    return log


def library_path(directory: str) -> str:
    """Return OLLAMA_LIBRARY_PATH as a failure line has it."""
    return f"[{LIB} {LIB}/{directory}]" if directory else f"[{LIB}]"


def extra(values: Mapping[str, str]) -> str:
    """Return extra_envs as a Go map."""
    return f"map[{' '.join(f'{key}:{value}' for key, value in sorted(values.items()))}]"


def fail(log: Log, directory: str, error: str = TIMEOUT, *, env: Mapping[str, str] | None = None, **more: str) -> Log:
    """Write that a child gave no answer (0.13.2 to 0.22.1)."""
    path = library_path(directory)
    return log.put(
        "runner.go:464",
        "failure during GPU discovery",
        OLLAMA_LIBRARY_PATH=path,
        extra_envs=extra(env or {}),
        error=error,
        **more,
    )


def took(log: Log, directory: str, duration: str, env: Mapping[str, str] | None = None) -> Log:
    """Write how long a child took, at DEBUG (0.13.2 to 0.22.1)."""
    return log.put(
        "runner.go:437",
        "bootstrap discovery took",
        "DEBUG",
        duration=duration,
        OLLAMA_LIBRARY_PATH=library_path(directory),
        extra_envs=extra(env or {}),
    )


def cpu(log: Log, vram: str = "routes.go:1768") -> Log:
    """Write that only the CPU is left."""
    log.put("types.go:60", "inference compute", id="cpu", library="cpu", compute="", name="cpu", total="503.5 GiB")
    return log.put(vram, "vram-based default context", total_vram="0 B", default_num_ctx="4096")


def gpu(log: Log, names: Sequence[str] = ("NVIDIA H100 80GB HBM3",), **values: str) -> Log:
    """Write that GPUs were kept."""
    for index, name in enumerate(names):
        fields = {
            "id": f"GPU-{index}",
            "filter_id": "",
            "library": "CUDA",
            "compute": "9.0",
            "name": f"CUDA{index}",
            "description": name,
            "libdirs": "ollama,cuda_v12",
            "driver": "12.8",
            "pci_id": f"0000:{index + 6:02x}:00.0",
            "type": "discrete",
            "total": "79.2 GiB",
            "available": "78.7 GiB",
        }
        log.put("types.go:42", "inference compute", **{**fields, **values})
    return log.put("routes.go:1768", "vram-based default context", total_vram="79.2 GiB", default_num_ctx="262144")


VALIDATION = {"CUDA_VISIBLE_DEVICES": "GPU-0", "GGML_CUDA_INIT": "1"}
