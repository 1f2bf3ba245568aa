"""A simulated host under construction: its files, its sim.conf, its libraries, its environment.

Hosts (machines.py) make one, faults (faults.py) change it, assemble.py writes it down.
"""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pytest_gpudiscovery.simulate.fatbin import Code

Entry = dict[str, Any]
ROOT = {"uid": 0, "gid": 0}

PCI = "/sys/bus/pci/devices"
PROC = "/proc/driver/nvidia"


@dataclass(frozen=True)
class File:
    """One file in the library directory. `kind`: built, link, bytes or fifo.

    `source` is the csrc name of a built library, or the target of a link; `hidden` are functions that it must not
    export; `code` is the device code that is written into it; `mangle` makes other bytes of the built ones.
    """

    kind: str
    source: str = ""
    data: bytes = b""
    hidden: frozenset[str] = frozenset()
    code: Code | None = None
    mangle: Callable[[bytes], bytes] | None = None
    mode: int = 0o755


@dataclass
class World:
    """Everything that makes one simulated host. Changed in place by faults, then written once."""

    conf: dict[str, str] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)  # path below the host's directory -> file
    env: dict[str, str] = field(default_factory=dict)  # {dir} stands for the host's directory
    library_path: list[str] = field(default_factory=lambda: ["{dir}/lib"])
    notes: list[str] = field(default_factory=list)
    ollama: str = ""  # install prefix below the host's directory; "": no Ollama
    layout: str = ""  # b or c (csrc/ggml.h) of that Ollama's libraries

    # --- the driver's version -------------------------------------------------------------------------------------

    @property
    def version(self) -> str | None:
        """The version of the loaded kernel module, None when none is loaded."""
        text = str(self.entries.get(f"{PROC}/version", {}).get("text", ""))
        found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
        return found[0] if found else None

    # --- GPUs -----------------------------------------------------------------------------------------------------

    @property
    def gpus(self) -> int:
        """How many GPUs the host has."""
        return int(self.conf.get("gpu.count", "0"))

    def pci(self, gpu: int) -> str:
        """Return the PCI address of GPU."""
        return self.conf[f"gpu.{gpu}.pci"]

    def set_gpus(self, key: str, value: object) -> None:
        """Set KEY of every GPU."""
        for gpu in range(self.gpus):
            self.conf[f"gpu.{gpu}.{key}"] = str(value)

    # --- files ----------------------------------------------------------------------------------------------------

    def text(self, path: str, text: str, mode: int = 0o444) -> None:
        """Put a regular file with TEXT at PATH, or change the text of the one that is there; symlinks are followed."""
        path = self.resolve(path)
        entry = self.entries.get(path)
        if entry is not None and entry["type"] == "file":
            self.entries[path] = {**entry, "text": text}
        else:
            self.entries[path] = {"type": "file", "mode": mode, **ROOT, "text": text}

    def resolve(self, path: str) -> str:
        """Return PATH with the symlinks of the recorded tree followed."""
        for _ in range(40):
            parts = path.split("/")
            for index in range(2, len(parts) + 1):
                head = "/".join(parts[:index])
                entry = self.entries.get(head)
                if entry is not None and entry["type"] == "link":
                    path = posixpath.normpath(posixpath.join(posixpath.dirname(head), entry["target"], *parts[index:]))
                    break
            else:
                return path
        return path

    def below(self, path: str) -> Iterator[str]:
        """Yield PATH and every path below it."""
        yield from [name for name in self.entries if name == path or name.startswith(path + "/")]

    def drop(self, *paths: str) -> None:
        """Remove PATHS with everything below them."""
        for path in paths:
            for name in list(self.below(path)):
                del self.entries[name]

    def nodes(self, which: str = "all") -> list[str]:
        """Return the device nodes that WHICH names: all, or one name such as nvidia0."""
        if which != "all":
            return [f"/dev/{which}"]
        return [path for path in self.entries if re.fullmatch(r"/dev/nvidia(\d+|ctl|-uvm|-uvm-tools)", path)]

    # --- the kernel log -------------------------------------------------------------------------------------------

    @property
    def uptime(self) -> float:
        """Seconds since the simulated host was started."""
        return float(str(self.entries["/proc/uptime"]["text"]).split()[0])

    def log(self, text: str, at: float) -> None:
        """Add a record with TEXT at second AT after boot to the kernel log, in the order of time."""
        entry = self.entries["/dev/kmsg"]
        records = [line for line in str(entry.get("text", "")).splitlines() if line]
        records.append(f"3,{900 + len(records)},{int(at * 1e6)},-;{text}")
        records.sort(key=lambda record: int(record.split(",")[2]))
        self.entries["/dev/kmsg"] = {**entry, "text": "\n".join(records) + "\n"}

    def copy(self) -> World:
        """Return a copy that shares nothing with this one."""
        return copy.deepcopy(self)
