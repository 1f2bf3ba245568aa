"""Judges the files of an Ollama install (P05 to P09): GPU directories, whole libraries, leftovers, strays, mounts."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.model import Check, Kind, Severity
from pytest_gpudiscovery.probes import eras
from pytest_gpudiscovery.stages.spec import found, passed, unknown

BACKEND = "libggml-cuda.so"
# The driver's and the C library's: never part of an Ollama release.
NOT_OURS = ("libcuda.so", "libnvidia-ml.so", "libnvidia-", "libc.so", "libm.so", "libdl.so", "libpthread.so")
ONLY_BELOW = ("libggml-cuda", "libcublas", "libcudart")  # belong into cuda_v12 or cuda_v13, not beside them
MACHINES = {"x86_64": 62, "aarch64": 183}
# What dlopen of the backend opens in its own directory. An editor's swap file, a package manager's saved copy or a
# development link that is broken stops nothing.
OPENED = re.compile(r"libggml-cuda\.so|libggml-base\.so(\.0)?|lib(cudart|cublas|cublasLt)\.so\.[0-9]+|libcuda\.so\.1")
NOWHERE = ("ENOENT", "ENOTDIR", "ELOOP")  # of a name that is listed: a link that leads nowhere
# What a library that ld.so could not use should have been, and what was seen: of _files' facts.
COMPARED = {
    "package.library.dangling": ("a file", "a link to {target}"),
    "package.library.unreadable": ("a file that uid {uid} may read", "{errno}"),
    "package.library.not_elf": ("an ELF library", "{problem}"),
    "package.library.foreign": ("ELF class 64, machine {wanted}", "ELF class {bits}, machine {machine}"),
    "package.library.zeros": ("content up to the last byte that is mapped", "zeros at the end of {size} bytes"),
    "package.library.truncated": ("{needs} bytes or more", "{size} bytes"),
}
Seen = Mapping[str, Any]
Directory = Mapping[str, Any]


def has_backend(directory: Directory) -> bool:
    """Whether DIRECTORY holds the CUDA backend."""
    return any(entry["name"] == BACKEND for entry in directory["files"])


def shown_name(seen: Seen, directory: Directory) -> str:
    """Return what DIRECTORY is called in reports and in Ollama's own libdirs=: "ollama" for lib/ollama itself."""
    return str(directory["name"]) or str(seen["lib"]["path"]).rpartition("/")[2]


def judge(seen: Seen, directories: Sequence[Directory], version: str | None, uid: int) -> list[Check]:
    """Judge P05 to P09 over DIRECTORIES, those of SEEN that have a CUDA backend."""
    checks = [*_directories(seen, directories, uid), *_leftovers(seen, version), *_strays(seen)]
    return checks + _mounts(seen, directories)


def _directories(seen: Seen, directories: Sequence[Directory], uid: int) -> list[Check]:
    lib = seen["lib"]["path"]
    if not directories:
        names, bare = [item["name"] for item in seen["directories"]], seen.get("bare") or []
        cause = "package.gpu_dir.no_cuda" if names else "package.gpu_dir.missing"
        if bare:
            cause, names = "package.gpu_dir.incomplete", bare
        if closed := seen.get("closed") or []:
            shut = {"path": closed[0], "names": ", ".join(closed), "uid": uid}
            return [found("package.gpu_dir.closed", shut, expected="directories that can be listed", observed=closed)]
        others = seen.get("elsewhere") or []
        facts = {"path": lib, "names": ", ".join(names), "others": _others(others)}
        return [found(cause, facts, expected="cuda_v12 or cuda_v13 with libggml-cuda.so", observed=names or others)]
    names = [shown_name(seen, item) for item in directories]
    checks = [passed("P05", observed=names)]
    broken = {item["path"]: _files(item, uid) for item in directories}
    one_is_whole = any(not any(stops for _, _, stops in problems) for problems in broken.values())
    for item in directories:
        subject = f"dir:{shown_name(seen, item)}"
        for cause, facts, stops in broken[item["path"]]:
            lower = None if stops and not one_is_whole else Severity.WARNING
            known = collections.defaultdict(lambda: "?", facts)  # what was not seen is said as the catalogue says it
            expected, observed = (text.format_map(known) for text in COMPARED[cause])
            checks.append(found(cause, facts, subject=subject, severity=lower, expected=expected, observed=observed))
        if not broken[item["path"]]:
            sizes = {entry["name"]: entry.get("size") for entry in item["files"]}
            checks.append(passed("P06", subject=subject, observed=sizes))
    return checks


def _others(places: Sequence[str]) -> str:
    return f"Libraries that Ollama does not look at lie in {', '.join(places)}." if places else "None lie elsewhere."


def _files(directory: Directory, uid: int) -> list[tuple[str, dict[str, Any], bool]]:
    """Return (cause, facts, whether it stops the backend) of each library in DIRECTORY that ld.so could not use."""
    machine = MACHINES.get(os.uname().machine)
    problems: list[tuple[str, dict[str, Any], bool]] = []
    for entry in directory["files"]:
        elf, stops = entry.get("elf") or {}, OPENED.fullmatch(entry["name"]) is not None
        facts = {**entry, **elf, "path": f"{directory['path']}/{entry['name']}", "uid": uid}
        facts |= {"bits": elf.get("class"), "wanted": machine or "of this host"}
        if entry.get("errno") in NOWHERE:
            facts = {**facts, "target": entry.get("target") or "nothing"}
            problems.append(("package.library.dangling", facts, stops))
        elif "errno" in entry or "errno" in elf or not entry.get("readable", True):
            errno = entry.get("errno") or elf.get("errno") or "EACCES"
            problems.append(("package.library.unreadable", {**facts, "errno": errno}, stops))
        elif "problem" in elf:
            problems.append(("package.library.not_elf", facts, stops))
        elif elf.get("class") != 64 or (machine is not None and elf["machine"] != machine):
            problems.append(("package.library.foreign", facts, stops))
        elif entry.get("zeros"):
            problems.append(("package.library.zeros", facts, stops))
        elif cut_off(elf):
            problems.append(("package.library.truncated", facts, stops))
    return problems


def cut_off(elf: Mapping[str, Any]) -> bool:
    """Whether the file that ELF tells of is shorter than its own headers say."""
    return "needs" in elf and elf.get("size", 0) < elf["needs"]


def _leftovers(seen: Seen, version: str | None) -> list[Check]:
    lib = seen["lib"]["path"]
    checks = [*_mixed(seen, version)]
    wrong = {"A": "rocm_v", "B": "rocm_v", "C": "rocm"}.get(eras.era(version) or "")
    others = [item["name"] for item in seen["directories"] if wrong and _is_of(item["name"], wrong)]
    checks += [
        found("package.leftover.directory", {"path": lib, "name": name}, observed=name)
        for name in [*(seen.get("old_layout") or []), *others]
    ]
    top = {entry["name"]: entry for entry in seen["top"]}
    plain, versioned = top.get("libggml-base.so"), top.get(eras.VERSIONED_BASE)
    # From 0.13.4 on libggml-base.so is a link to libggml-base.so.0; before, it was the file itself.
    if plain and versioned and plain.get("realpath") != versioned.get("realpath"):
        reason = "libggml-base.so (up to 0.13.3) and libggml-base.so.0 (from 0.13.4) are two different files"
        checks.append(found("package.leftover.base", {"path": lib, "reason": reason}, observed=[plain, versioned]))
    return checks or [passed("P07", reason="binary and libraries are of one kind", observed=version)]


def _is_of(name: str, wrong: str) -> bool:
    return name == wrong or (wrong.endswith("_v") and name.startswith(wrong))


def _mixed(seen: Seen, version: str | None) -> list[Check]:
    """Return what the binary's version and the files beside it say against each other."""
    known, era, files = eras.numbers(version), eras.era(version), seen.get("top_era")
    lib = seen["lib"]["path"]
    if known is None or era is None or files is None:
        return []
    facts = {"version": version, "path": lib}
    if era == "C" and files != "C":
        return [found("package.mix.no_server", facts, expected=f"{lib}/{eras.SERVER}", observed=files)]
    if era != "C" and files == "C":
        reason = f"{eras.SERVER} is part of 0.30.0 and later"
        return [found("package.mix.version", {**facts, "reason": reason}, observed=seen.get("server"))]
    names = {entry["name"] for entry in seen["top"]}
    versioned = eras.VERSIONED_BASE in names
    if era == "B" and "libggml-base.so" in names and versioned != (known >= eras.FIRST_VERSIONED):
        reason = f"libggml-base.so is {'' if versioned else 'not '}versioned, as from 0.13.4 on"
        return [found("package.mix.version", {**facts, "reason": reason}, observed=sorted(names))]
    return []


def _strays(seen: Seen) -> list[Check]:
    lib = seen["lib"]["path"]
    checks = []
    inside = seen["lib"]["realpath"].rstrip("/") + "/"
    flat = [item for item in seen["directories"] if item["name"] == ""]
    places: list[tuple[str, Sequence[Directory], tuple[str, ...]]] = [
        (lib, seen["top"], NOT_OURS if flat else (*NOT_OURS, *ONLY_BELOW))
    ]
    places += [(item["path"], item["files"], NOT_OURS) for item in seen["directories"] if item["name"]]
    for path, files, wrong in places:
        for entry in files:
            facts = {"path": path, "name": entry["name"], "target": entry.get("realpath", "nothing")}
            if entry["name"].startswith(wrong):
                checks.append(found("package.stray.library", facts, observed=facts["target"]))
            elif "realpath" in entry and not entry["realpath"].startswith(inside):
                checks.append(found("package.stray.link", facts, observed=facts["target"]))
    return checks or [passed("P08", Kind.RISK, reason="no foreign libraries")]


def _mounts(seen: Seen, directories: Sequence[Directory]) -> list[Check]:
    mounts = seen.get("mounts") or {}
    wanted = [seen["binary"]["realpath"], seen["lib"]["path"], *(item["path"] for item in directories)]
    known = {path: mounts[path] for path in wanted if mounts.get(path)}
    bad = {mount["point"]: path for path, mount in known.items() if "noexec" in mount["options"]}
    checks = [found("package.mount.noexec", {"point": point, "path": path}) for point, path in bad.items()]
    if not bad:
        checks += _denied(directories)
    if checks:
        return checks
    if not known:
        return [unknown("P09", "/proc/self/mountinfo cannot be read", Kind.OBSERVABILITY)]
    return [passed("P09", observed=sorted({mount["point"] for mount in known.values()}))]


def _denied(directories: Sequence[Directory]) -> list[Check]:
    """Return the libraries that can be read and may not be mapped executable; one whole directory eases the others."""
    denied = {
        item["path"]: [e for e in item["files"] if e.get("mapped", "ok") in ("EPERM", "EACCES")] for item in directories
    }
    lower = Severity.WARNING if not all(denied.values()) else None
    return [
        found(
            "package.library.exec_denied",
            {"name": entry["name"], "path": f"{path}/{entry['name']}", "errno": entry["mapped"]},
            severity=lower,
            observed=entry["mapped"],
        )
        for path, entries in denied.items()
        for entry in entries[:1]
        if entry.get("readable")
    ]
