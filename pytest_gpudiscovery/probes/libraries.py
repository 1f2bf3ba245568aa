"""Which file ld.so would take for a library name, found by reading files only; nothing is loaded or mapped.

The search is that of a program without DT_RPATH or DT_RUNPATH (Ollama's Go binary): LD_LIBRARY_PATH, then
/etc/ld.so.cache, then the default directories (glibc, elf/dl-load.c, _dl_map_object; elf/dl-cache.c). A candidate of
another ELF class or machine is passed over, as ld.so does. glibc-hwcaps subdirectories are not searched: no NVIDIA
driver installs into one. The exact prediction of a whole dlopen is the work of the package `loader`.
"""

from __future__ import annotations

import os
import struct

from pytest_gpudiscovery.probes.facts import errno_name, link, names
from pytest_gpudiscovery.probes.host import HostView
from pytest_gpudiscovery.probes.mounts import mounted_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

CACHE = "/etc/ld.so.cache"
CACHE_MAGIC = b"glibc-ld.so.cache1.1"
CACHE_LIMIT = 16 << 20  # bytes; a workstation's cache has 0.1 to 0.5 MB
HEADER = 4096  # bytes of an ELF file that are read: its header, and the program headers of every usual library
PT_LOAD = 1  # elf.h
BLANK = 64  # bytes that are looked at where the mapped part of a library ends
ENTRIES_LIMIT = 200_000

# uname machine -> (flags of a native entry in ld.so.cache, e_machine); glibc, sysdeps/unix/sysv/linux/*/ldconfig.h
MACHINES = {"x86_64": (0x0303, 62), "aarch64": (0x0A03, 183), "ppc64le": (0x0503, 21)}
TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "ppc64le": "powerpc64le-linux-gnu"}
# Where distributions put a driver that their ld.so does not search by itself: NixOS, WSL, Debian alternatives,
# RHEL, the NVIDIA container image convention. Found there alone means: installed, and out of the loader's sight.
ELSEWHERE = (
    "/run/opengl-driver/lib",
    "/usr/lib/wsl/lib",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib64/nvidia",
    "/usr/lib/nvidia",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
)


def find(view: HostView, name: str, env: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the file that ld.so takes for NAME in environment ENV, None when it finds none.

    {"name", "path", "realpath", "rule": "LD_LIBRARY_PATH" | "ld.so.cache" | "default", "version", "stub", "size"}
    """
    for rule, path in candidates(view, name, env):
        found = _accept(view, name, path, rule)
        if found is not None:
            return found
    return None


def find_elsewhere(view: HostView, name: str) -> str | None:
    """Return where NAME lies although ld.so does not look there, None when it is in no directory known for that."""
    for directory in ELSEWHERE:
        if _accept(view, name, f"{directory}/{name}", "elsewhere") is not None:
            return f"{directory}/{name}"
    return None


def unlinked(view: HostView, name: str, env: Mapping[str, str]) -> str | None:
    """Return the file of a full version (libcuda.so.580.159.04) that lies where ld.so looks for NAME, None without one.

    Its link NAME is missing: ldconfig did not run after the driver was installed or copied, or a cleanup took the link.
    """
    stem = name.partition(".so.")[0] + ".so."
    for directory in dict.fromkeys(os.path.dirname(path) for _, path in candidates(view, name, env)):
        for entry in names(view, directory):
            path = f"{directory}/{entry}"
            if entry.startswith(stem) and version_in_name(path) and _accept(view, name, path, "unlinked") is not None:
                return path
    return None


def passed_over(view: HostView, name: str, env: Mapping[str, str]) -> list[dict[str, str]]:
    """Return {"path", "why"} of the files called NAME that ld.so would come across and not take."""
    found = {}
    for _, path in candidates(view, name, env):
        header = elf(view, path)
        if header.get("errno") in ("ENOENT", "ENOTDIR"):
            if link(view, path) is not None:
                found[path] = "a link that leads nowhere"
        elif header.get("errno"):
            found[path] = str(header["errno"])
        elif not view.access(path, os.R_OK):
            found[path] = "EACCES"
        else:
            found[path] = f"ELF class {header.get('class')}, machine {header.get('machine')}"
    return [{"path": path, "why": why} for path, why in found.items()]


def candidates(view: HostView, name: str, env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (rule, path) in ld.so's order; the paths need not exist."""
    for directory in library_path(env.get("LD_LIBRARY_PATH", "")):
        yield "LD_LIBRARY_PATH", f"{directory}/{name}"
    try:
        cache = parse_cache(view.read(CACHE, CACHE_LIMIT), os.uname().machine)
    except OSError:
        cache = {}
    if name in cache:
        yield "ld.so.cache", cache[name]
    triplet = TRIPLETS.get(os.uname().machine, "")
    for directory in ("/lib", "/usr/lib"):
        if triplet:
            yield "default", f"{directory}/{triplet}/{name}"
        yield "default", f"{directory}64/{name}"
        yield "default", f"{directory}/{name}"


def library_path(value: str) -> list[str]:
    """Return the directories of an LD_LIBRARY_PATH; an empty element is the current directory, as in ld.so.

    Elements with $ORIGIN, $LIB or $PLATFORM are left out: their meaning depends on the program that is started.
    """
    if not value:
        return []
    return [part.rstrip("/") or "/" if part else "." for part in value.replace(";", ":").split(":") if "$" not in part]


def parse_cache(data: bytes, machine: str) -> dict[str, str]:
    """Return soname -> path of the entries in ld.so.cache DATA that are native for MACHINE; {} for another format.

    Layout (glibc, sysdeps/generic/dl-cache.h): magic, u32 entries, u32 bytes of strings, 20 bytes, then entries of 24
    bytes (i32 flags, u32 key, u32 value, u32 osversion, u64 hwcap); key and value are offsets from the magic.
    """
    start = data.find(CACHE_MAGIC)
    wanted = MACHINES.get(machine, (None, None))[0]
    if start < 0 or len(data) - start < 48:
        return {}
    table = data[start:]
    (count,) = struct.unpack_from("<I", table, 20)
    found: dict[str, str] = {}
    capable: dict[str, str] = {}
    for index in range(min(count, ENTRIES_LIMIT, (len(table) - 48) // 24)):
        flags, key, value, _, hwcap = struct.unpack_from("<iIIIQ", table, 48 + 24 * index)
        if wanted is not None and flags != wanted:
            continue
        name, path = _text(table, key), _text(table, value)
        if name and path:
            (capable if hwcap else found).setdefault(name, path)
    return {**capable, **found}


def _text(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset, offset + 4096)
    return table[offset:end].decode("utf-8", "surrogateescape") if 0 <= offset < end else ""


def _accept(view: HostView, name: str, path: str, rule: str) -> dict[str, Any] | None:
    header = elf(view, path)
    if header.get("errno") or not view.access(path, os.R_OK):
        return None
    _, machine = MACHINES.get(os.uname().machine, (None, None))
    if "class" in header and (header["class"] != 64 or (machine is not None and header["machine"] != machine)):
        return None
    real = view.realpath(path)
    return {
        "name": name,
        "path": path,
        "realpath": real,
        "rule": rule,
        "version": version_in_name(real) or version_in_name(mounted_file(view, real) or ""),
        "stub": is_stub(path) or is_stub(real),
        "size": header.get("size"),
    }


def is_stub(path: str) -> bool:
    """Return whether PATH lies in a toolkit's stubs directory: a library to link against, whose cuInit answers 34."""
    return "stubs" in path.split("/")


def version_in_name(path: str) -> str | None:
    """Return the version that PATH's name ends in (libcuda.so.580.159.04 -> 580.159.04), None for a bare soname.

    WSL's libcuda.so.1.1 is a soname as well: no driver has version 1.
    """
    tail = path.rpartition("/")[2].partition(".so.")[2]
    parts = tail.split(".")
    if len(parts) < 2 or parts[0] == "1" or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    return tail


def elf(view: HostView, path: str) -> dict[str, Any]:
    """Return what the header of PATH says: {"class", "machine", "type", "size", "needs"}.

    `needs` is the size in bytes that the header and the segment and section tables ask for: a file that is shorter was
    cut off. {"errno": name} when it cannot be read, {"size", "problem": text} when it is no ELF file.
    """
    try:
        status = view.stat(path)
        if status["type"] != "file":
            return {"size": status["size"], "problem": f"not a regular file ({status['type']})"}
        data = view.read(path, HEADER)
    except OSError as error:
        return {"errno": errno_name(error)}
    return {"size": status["size"], **parse_elf(data)}


def ends_in_zeros(view: HostView, path: str) -> bool:
    """Whether ELF file PATH has a blank end: its length was written to disk, its last part was not.

    A power cut after an unpacking, or a download into a file that was made at its full size before, leaves that. Blank
    are the section table, of which only the first header is so in a whole file (gABI, chapter 4), and the end of what
    ld.so maps: a file that lost its section table alone loads.
    """
    try:
        head = view.read_at(path, 0, HEADER)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return False
        (offset,) = struct.unpack_from("<Q", head, 40)
        size, count = struct.unpack_from("<HH", head, 58)
        end = _mapped_end(head)
        if count < 2 or size < 64 or end < BLANK:
            return False
        parts = [view.read_at(path, offset + size, size), view.read_at(path, end - BLANK, BLANK)]
    except OSError:
        return False
    return [len(part) for part in parts] == [size, BLANK] and not any(map(any, parts))


def _mapped_end(head: bytes) -> int:
    """Return where the last PT_LOAD segment ends in the 64-bit little-endian file that begins with HEAD."""
    (phoff,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    end = 0
    for at in range(phoff, phoff + size * count, size or 1):
        if size < 56 or at + 56 > len(head):
            break
        kind, _, offset, _, _, filesz = struct.unpack_from("<IIQQQQ", head, at)
        end = max(end, offset + filesz) if kind == PT_LOAD else end
    return int(end)


def parse_elf(data: bytes) -> dict[str, Any]:
    """Return the facts of `elf` that the first bytes of a file give; `problem` instead for what is no ELF file."""
    if not data:
        return {"problem": "empty"}
    if data[:4] != b"\x7fELF":
        return {"problem": "git-lfs pointer" if data.startswith(b"version https://git-lfs") else "not an ELF file"}
    if len(data) < 64:
        return {"problem": "shorter than an ELF header"}
    bits, order = {1: 32, 2: 64}.get(data[4], 0), {1: "<", 2: ">"}.get(data[5])
    if not bits or order is None:
        return {"problem": "unknown ELF class or byte order"}
    kind, machine = struct.unpack_from(order + "HH", data, 16)
    if bits == 32:
        return {"class": 32, "machine": machine, "type": kind}
    phoff, shoff = struct.unpack_from(order + "QQ", data, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from(order + "HHHH", data, 54)
    needs = max(phoff + phentsize * phnum, shoff + shentsize * shnum)
    for index in range(phnum):
        at = phoff + index * phentsize
        if phentsize < 56 or at + 56 > len(data):
            break
        offset, _, _, filesz = struct.unpack_from(order + "QQQQ", data, at + 8)
        needs = max(needs, offset + filesz)
    return {"class": 64, "machine": machine, "type": kind, "needs": needs}
