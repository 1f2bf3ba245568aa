"""What a server's log says of its discovery: the few lines that stage 13 needs. Pure.

Lines are those of Go's slog.TextHandler: `time=... level=INFO source=types.go:42 msg="inference compute" id=... `.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_gpudiscovery.stages.ollama_devices import Device

PAIR = re.compile(r'([A-Za-z_][\w.]*)=("(?:[^"\\]|\\.)*"|\S*)')
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
COMPUTE, CPU = "inference compute", "cpu"
FAILURES = ("failure during GPU discovery", "failure during llama-server GPU discovery")
FILTERED = "filtering device which didn't fully initialize"
EXITED = "runner exited"
INIT_FAILED = "failed to initialize CUDA: "
TELLING = (  # messages that say why a device is not there, whichever release
    "NVIDIA driver too old",
    "user overrode visible devices",
    "llama-server not available for device discovery",
    "llama-server --list-devices failed",
    "native GPU discovery failed",
    "unable to start discovery subprocess",
    "failed to start runner to discovery GPUs",
)
SKIPPED = "skipping CUDA device"
MOST = 100  # lines of a log in which nothing is wrong


@dataclass(frozen=True)
class Log:
    """What was found. `reasons` are the lines that say why a device is missing, in their order, each in short."""

    version: str | None = None
    devices: tuple[Device, ...] = ()
    cpu: bool = False  # an "inference compute" line of the CPU
    total_vram: str | None = None
    took: str | None = None  # "GPU bootstrap discovery took"
    directories: tuple[str, ...] = ()  # of the children, in the order of their start
    reasons: tuple[str, ...] = field(default=())


def fields(line: str) -> dict[str, str]:
    """Return the pairs of a log line; {} for a line of another kind."""
    if not line.startswith("time="):
        return {}
    return {key: _unquoted(value) for key, value in PAIR.findall(line)}


def _unquoted(value: str) -> str:
    if len(value) < 2 or not value.startswith('"'):
        return value
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), value[1:-1])


def parse(lines: Iterable[str]) -> Log:
    """Return what LINES say; lines that are not known are passed over."""
    version = total = took = None
    cpu = False
    devices: list[Device] = []
    reasons: list[str] = []
    directories: list[str] = []
    for line in lines:
        found = fields(line)
        message = found.get("msg", "")
        if not found:
            if INIT_FAILED in line:
                reasons.append(line.strip()[:200])
        elif message == COMPUTE:
            if found.get("id") == CPU or found.get("library") == CPU:
                cpu = True
            else:
                devices.append(_device(found))
        elif message in ("vram-based default context", "entering low vram mode"):
            total = found.get("total_vram") or found.get("vram")
        elif message == "GPU bootstrap discovery took":
            took = found.get("duration")
        elif message == "bootstrap discovery took":
            directories.append(_last_directory(found.get("OLLAMA_LIBRARY_PATH", "")))
        elif (match := re.match(r"Listening on \S+ \(version ([^)]+)\)", message)) is not None:
            version = match[1]
        else:
            reasons += _reason(message, found)
    return Log(version, tuple(devices), cpu, total, took, tuple(directories), tuple(dict.fromkeys(reasons)))


def _reason(message: str, found: Mapping[str, str]) -> list[str]:
    if message in FAILURES:
        detail = f" ({found['detail']})" if found.get("detail") else ""
        where = _last_directory(found.get("OLLAMA_LIBRARY_PATH", ""))
        return [f"{where}: {found.get('error', '?')}{detail}"[:200]]
    if message == EXITED:
        return [f"{_last_directory(found.get('OLLAMA_LIBRARY_PATH', ''))}: runner exited with {found.get('code')}"]
    if message == FILTERED:
        where = found.get("libdir", "").rpartition("/")[2]
        return [f"{where}: {found.get('pci_id') or found.get('id')} did not come through the second pass"]
    if message in TELLING or message.startswith(SKIPPED):
        rest = [f"{key}={found[key]}" for key in found if key not in ("time", "level", "source", "msg", "libDirs")]
        return [f"{message.partition(' —')[0]} {' '.join(rest)}".strip()[:200]]
    return []


def _last_directory(paths: str) -> str:
    """Return the name of the last directory of "[/usr/lib/ollama /usr/lib/ollama/cuda_v12]"."""
    words = paths.strip("[]").split()
    return words[-1].rpartition("/")[2] if words else "?"


def _device(found: Mapping[str, str]) -> Device:
    libraries = found.get("libdirs", "").split(",")
    return Device(
        libraries[-1] if libraries[-1] != "ollama" else "lib",
        found.get("filter_id") or found.get("id", ""),
        {"cuda": "CUDA"}.get(found.get("library", ""), found.get("library", "")),
        found.get("name", ""),
        found.get("description") or found.get("name", ""),
        found.get("pci_id", ""),
        size(found.get("total", "")),
        size(found.get("available", "")),
        _two(found.get("compute", "")),
        _two(found.get("driver", "")),
    )


def size(text: str) -> int:
    """Return the bytes of "79.6 GiB" (rounded as it is printed), 0 for anything else."""
    match = re.fullmatch(r"(\d{1,8}(?:\.\d+)?) (\w+)", text)
    return int(float(match[1]) * UNITS.get(match[2], 0)) if match else 0


def _two(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def important(lines: Iterable[str]) -> list[str]:
    """Return the lines at level INFO and above: what an operator sees without OLLAMA_DEBUG."""
    return [line for line in lines if fields(line).get("level") in ("INFO", "WARN", "ERROR")][:MOST]


def last_lines(lines: Sequence[str], count: int) -> list[str]:
    """Return the last COUNT lines that say something."""
    return [line for line in lines if line.strip()][-count:]
