"""Facts of a dynamic loader: version, default directories, capabilities.

From `ld.so --list-diagnostics` where glibc has it (2.34), which runs ld.so itself and no library; GLIBC_TUNABLES is
passed on, so masked capabilities show. Otherwise (older, or a foreign root) from the loader's file: its version
banner or name, the table of default directories in its read-only data, and /proc/cpuinfo.
"""

from __future__ import annotations

import os
import select
import time

from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.problems import UNSUPPORTED, Refused
from pytest_gpudiscovery.loader.record import dataclass
from pytest_gpudiscovery.loader.rules import Rules, rules_for

INTERPRETER = "/lib64/ld-linux-x86-64.so.2"
ANSWER_SECONDS = 2.0  # --list-diagnostics takes 2 ms
ANSWER_BYTES = 1 << 20
LOADER_BYTES = 4 << 20
LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2")
ISA_BITS = {"x86-64-v2": 2, "x86-64-v3": 4, "x86-64-v4": 8}
HWCAP_NAMES = ("sse2", "x86_64", "avx512_1")  # dl_x86_hwcap_flags, bit by bit
# CPU flags of the psABI's micro-architecture levels, as /proc/cpuinfo spells them.
LEVEL_FLAGS = (
    ("x86-64-v2", "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"),
    ("x86-64-v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
    ("x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)
BANNERS = (b"ld.so (", b"GNU libc", b"GNU C Library")
BANNER_BYTES = 160

_answers: dict[tuple[str, str | None, int, int, int, int], str] = {}


@dataclass(frozen=True)
class HostLoader:
    """A dynamic loader.

    `directories` end in "/"; `subdirectories` are the candidates inside each directory, best first, ending in "" (the
    directory itself); `hwcaps` the active glibc-hwcaps names; `isa` the GNU_PROPERTY_X86_ISA_1 bits of the CPU;
    `library` and `platform` the values of $LIB and $PLATFORM; `source` how the facts were found.
    """

    path: str
    version: tuple[int, int]
    rules: Rules
    directories: tuple[str, ...]
    subdirectories: tuple[str, ...]
    hwcaps: tuple[str, ...]
    isa: int
    library: str
    platform: str
    legacy_mask: int
    configuration: str
    source: str


def host_loader(
    path: str = INTERPRETER, root: Root | None = None, tunables: str | None = None, cpuinfo: str = "/proc/cpuinfo"
) -> HostLoader:
    """Return the facts of the loader at PATH; raises Refused (kind "unsupported") for musl and what is no glibc."""
    root = root or Root()
    if "ld-musl" in path:
        raise Refused("musl's loader: recognised, its rules are not glibc's", path, UNSUPPORTED)
    if root.prefix is None:
        answer = parse_diagnostics(_answer(path, tunables))
        if "path.system_dirs[0x0]" in answer and "version.version" in answer:
            return _from_diagnostics(path, answer)
    return _from_file(path, root, cpuinfo)


def _answer(path: str, tunables: str | None) -> str:
    """Return the output of PATH --list-diagnostics, asked once in this process as long as the file is the same."""
    try:
        seen = os.stat(path)
    except OSError:
        return ""
    key = (path, tunables, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
    if key not in _answers:
        text = _ask(path, tunables)
        if not text:
            return ""  # perhaps it only was too slow
        _answers[key] = text
    return _answers[key]


def _ask(path: str, tunables: str | None) -> str:
    """Return the output of PATH --list-diagnostics, "" when it does not answer in time or cannot be run."""
    environment = {"GLIBC_TUNABLES": tunables} if tunables else {}
    reader, writer = os.pipe()
    try:
        try:
            actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
            pid = os.posix_spawn(path, [path, "--list-diagnostics"], environment, file_actions=actions)
        except (OSError, ValueError):
            return ""
        finally:
            os.close(writer)
        output, ended = _collect(reader, time.monotonic() + ANSWER_SECONDS)
        if not ended:
            os.kill(pid, 9)
        os.waitpid(pid, 0)
        return output.decode("utf-8", "replace") if ended else ""
    finally:
        os.close(reader)


def _collect(reader: int, deadline: float) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    size = 0
    while size < ANSWER_BYTES and (left := deadline - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            break
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts), True
        parts.append(part)
        size += len(part)
    return b"", False


def parse_diagnostics(text: str) -> dict[str, str]:
    """Return the KEY=VALUE lines of --list-diagnostics, quotes removed; other lines are left out."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value.strip('"') for key, sign, value in pairs if sign}


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0


def _version(text: str) -> tuple[int, int]:
    numbers = [int(part) for part in text.split(maxsplit=1)[0].split(".") if part.isdecimal()] if text.split() else []
    return (numbers[0], numbers[1]) if len(numbers) > 1 else (0, 0)


def _from_diagnostics(path: str, answer: dict[str, str]) -> HostLoader:
    version = _version(answer["version.version"])
    directories: list[str] = []
    while (key := f"path.system_dirs[{len(directories):#x}]") in answer:
        directories.append(answer[key])
    names = answer.get("dl_hwcaps_subdirs", "").split(":")
    active = _number(answer.get("dl_hwcaps_subdirs_active", "0"))
    hwcaps = tuple(name for bit, name in enumerate(names) if name and active >> bit & 1)
    mask = _number(answer.get("dl_hwcap", "0")) & _number(answer.get("dl_hwcap_important", "0"))
    return _assemble(
        path,
        version,
        tuple(directories),
        hwcaps,
        answer.get("dl_platform", ""),
        mask,
        library=answer.get("dl_dst_lib") or directories[0].strip("/"),
        configuration=answer.get("path.sysconfdir", "/etc"),
        source="--list-diagnostics",
    )


def _from_file(path: str, root: Root, cpuinfo: str) -> HostLoader:
    real = root.real(path)
    try:
        data = root.read(real, LOADER_BYTES)
    except (OSError, ValueError) as problem:
        raise Refused(f"the loader cannot be read: {problem}", path, UNSUPPORTED) from None
    version = _version_of(real, data, root)
    if version is None:
        raise Refused("no version of glibc is found in the loader or its libc.so.6", path, UNSUPPORTED)
    directories = _default_directories(data) or ("/lib64/", "/usr/lib64/")
    intel, flags = _cpu(cpuinfo)
    hwcaps = _levels(flags)
    platform = "x86_64"
    if (
        intel
        and rules_for(version).legacy_hwcaps
        and {"avx2", "bmi1", "bmi2", "fma", "movbe", "popcnt", "abm"} <= flags
    ):
        platform = "xeon_phi" if {"avx512er", "avx512pf"} <= flags else "haswell"
    mask = 2 | (4 if LEVELS[0] in hwcaps and intel else 0)
    found = _assemble(path, version, directories, hwcaps, platform, mask, directories[0].strip("/"), "/etc", "file")
    if b"optional_static_tls" in data and not found.rules.surplus_tunables:  # backported, in Debian 11 for one
        values = {**found.__dict__, "rules": rules_for(version, surplus_tunables=True)}
        return HostLoader(**values)
    return found


def _default_directories(data: bytes) -> tuple[str, ...]:
    """Return the table of default directories: the first run of strings like "/lib64/" in the loader's constants."""
    run: list[str] = []
    for text in data.split(b"\0"):
        if 4 < len(text) < 256 and text[:1] == text[-1:] == b"/" and b"lib" in text and text.isascii():
            run.append(text.decode())
        elif len(run) > 1:
            break
        else:
            run.clear()
    return tuple(run) if len(run) > 1 else ()


def _version_of(real: str, data: bytes, root: Root) -> tuple[int, int] | None:
    """Return the version from the file's name (ld-2.31.so), its banner, or the banner of the libc.so.6 beside it."""
    name = os.path.basename(real)
    if name.startswith("ld-2.") and name.endswith(".so"):
        return _version(name[3:-3])
    try:
        return _banner(data) or _banner(root.read(os.path.dirname(real) + "/libc.so.6", LOADER_BYTES))
    except OSError:
        return None


def _banner(data: bytes) -> tuple[int, int] | None:
    """Return the release in "... (GNU libc) stable release version 2.36."."""
    for banner in BANNERS:
        at = data.find(banner)
        while at >= 0:
            words = data[at : at + BANNER_BYTES].partition(b"\0")[0].split(b" version ")
            version = (
                _version(words[1].split(b".\n")[0].decode("ascii", "replace").strip(" .,"))
                if len(words) > 1
                else (0, 0)
            )
            if version > (2, 0):
                return version
            at = data.find(banner, at + 1)
    return None


def _cpu(path: str) -> tuple[bool, frozenset[str]]:
    """Return (made by Intel, flags) of the first CPU."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16)
    except OSError:
        return False, frozenset()
    flags = next((line.partition(":")[2] for line in text.splitlines() if line.startswith("flags")), "")
    return "GenuineIntel" in text, frozenset(flags.split())


def _levels(flags: frozenset[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name, wanted in LEVEL_FLAGS:
        if not flags.issuperset(wanted.split()):
            break
        found.insert(0, name)
    return tuple(found)


def legacy_subdirectories(mask: int, platform: str) -> list[str]:
    """Return the power set of legacy capability directories in the order of elf/dl-hwcaps.c (until 2.36)."""
    names = [name for bit, name in enumerate(HWCAP_NAMES) if mask >> bit & 1]
    names += [platform] if platform else []
    names.append("tls")
    return [
        "".join(f"{names[bit]}/" for bit in reversed(range(len(names))) if chosen >> bit & 1)
        for chosen in range((1 << len(names)) - 1, 0, -1)
    ]


def _assemble(
    path: str,
    version: tuple[int, int],
    directories: tuple[str, ...],
    hwcaps: tuple[str, ...],
    platform: str,
    mask: int,
    library: str,
    configuration: str,
    source: str,
) -> HostLoader:
    rules = rules_for(version)
    isa = 1 | sum(ISA_BITS.get(name, 0) for name in hwcaps)
    if not rules.glibc_hwcaps:
        hwcaps = ()
    subdirectories = [f"glibc-hwcaps/{name}/" for name in hwcaps]
    if rules.legacy_hwcaps:
        subdirectories += legacy_subdirectories(mask, platform)
    subdirectories.append("")
    return HostLoader(
        path=path,
        version=version,
        rules=rules,
        directories=directories,
        subdirectories=tuple(subdirectories),
        hwcaps=hwcaps,
        isa=isa,
        library=library,
        platform=platform or "x86_64",
        legacy_mask=mask,
        configuration=configuration,
        source=source,
    )
