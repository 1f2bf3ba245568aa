"""01 package: the Ollama install is where Ollama looks, complete, of one version and allowed to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, Kind, Severity, StageRecord
from pytest_gpudiscovery.stages.looking import in_order, loader_env, look
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    found,
    not_applicable,
    passed,
    unknown,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Probe

ROWS = ("P01", "P02", "P03", "P04", "P05", "P06", "P07", "P08", "P09")
# Targets that can be reached on a host without Ollama: a plain GPU runner stops at one of these.
WITHOUT_OLLAMA = ("package", "service", "loopback", "kernel", "nvml", "driver", "enumeration", "runtime")
BACKEND = "libggml-cuda.so"
NOT_OURS = ("libcuda.so", "libnvidia-ml.so", "libnvidia-")  # the driver's: never part of an Ollama release
ONLY_BELOW = ("libggml-cuda", "libcublas", "libcudart")  # belong into cuda_v12 or cuda_v13, not beside them
MACHINES = {"x86_64": 62, "aarch64": 183}
Directory = Mapping[str, Any]


def plan(
    context: RunContext, _: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Look at the files once."""
    if results:
        return None
    request = {"env": loader_env(context), "ollama_path": context.ollama_path}
    return "look", look(context, "package", request, deadline_for(context, SPEC.name, SPEC.deadline_s))


def judge(given: StageInput) -> Judgement:
    """Judge the install; one good CUDA directory is enough, faults of the others are warnings then."""
    seen = given.observed("look")
    binary = seen.get("binary") or {}
    if not seen or "directories" not in seen:
        return Judgement((), "the install could not be looked at", _facts(seen))
    if binary.get("problem") == "archive":
        reason = "a release archive: this version of the gate looks at installed files only"
        return Judgement(tuple(unknown(row, reason) for row in ROWS), reason, _facts(seen))
    if not binary.get("path"):
        return _no_ollama(given, binary, seen)
    uid = _uid(given)
    checks = [*_binary(binary, uid), *_cwd(given, seen), *_lib(seen, binary)]
    directories = [item for item in seen["directories"] if _has_backend(item)]
    checks += _directories(seen, directories, uid) + _leftovers(seen) + _strays(seen) + _mounts(seen, directories)
    judged = {check.prerequisite for check in checks}
    checks += [not_applicable(row, "there is no GPU directory") for row in ROWS if row not in judged]
    names = ", ".join(item["name"] for item in directories) or "no CUDA directory"
    return Judgement(in_order(checks), f"{binary['path']}: {names}", _facts(seen))


def _no_ollama(given: StageInput, binary: Mapping[str, Any], seen: Mapping[str, Any]) -> Judgement:
    tried = ", ".join(binary.get("tried") or []) or "nothing"
    wanted, target = given.context.ollama_path, given.context.target
    if wanted:
        facts = {"wanted": wanted, "tried": tried}
        first = found("package.ollama.unusable", facts, expected="an ollama binary", observed=binary.get("problem"))
    elif target in WITHOUT_OLLAMA:
        reason = f"no Ollama on this host; {target} does not need one"
        checks = tuple(not_applicable(row, reason) for row in ROWS)
        return Judgement(checks, "no Ollama on this host", _facts(seen), applicable=False)
    else:
        facts = {"tried": tried, "target": target or "the whole gate"}
        first = found("package.ollama.missing", facts, expected="an ollama binary on PATH", observed=tried)
    rest = [not_applicable(row, "there is no Ollama to look at") for row in ROWS[1:]]
    return Judgement((first, *rest), "no Ollama", _facts(seen))


def _binary(binary: Mapping[str, Any], uid: int) -> list[Check]:
    facts = {
        "path": binary["realpath"],
        "uid": uid,
        "mode": f"{binary['mode']:04o}",
        "owner": f"{binary['uid']}:{binary['gid']}",
    }
    elf = binary.get("elf") or {}
    if not binary["executable"]:
        return [found("package.ollama.not_executable", facts, expected="an executable file", observed=facts["mode"])]
    if _cut_off(elf):
        return [found("package.ollama.truncated", {**facts, **elf}, expected=elf["needs"], observed=elf["size"])]
    return [passed("P01", reason=binary["path"], observed={"realpath": binary["realpath"], "size": binary["size"]})]


def _cwd(given: StageInput, seen: Mapping[str, Any]) -> list[Check]:
    if seen.get("cwd") is not None:
        return [passed("P04", observed=seen["cwd"])]
    result = given.results["look"]
    errno = next((step.result for step in result.steps if step.name == "getcwd"), None)
    return [found("package.cwd.unreadable", {"errno": errno}, expected="a working directory", observed=errno)]


def _lib(seen: Mapping[str, Any], binary: Mapping[str, Any]) -> list[Check]:
    lib = seen["lib"]
    if lib["fallback"]:
        facts = {"binary": binary["realpath"], "tried": ", ".join(lib["tried"]), "expected": lib["tried"][0]}
        return [found("package.lib.missing", facts, expected=lib["tried"][0], observed=lib["path"])]
    checks = [passed("P02", observed=lib["path"])]
    if "lib/ollama" in lib["path"]:
        return [*checks, passed("P03", observed=lib["path"])]
    return [*checks, found("package.lib.other_name", {"path": lib["path"]}, observed=lib["path"])]


def _has_backend(directory: Directory) -> bool:
    return any(entry["name"] == BACKEND for entry in directory["files"])


def _directories(seen: Mapping[str, Any], directories: list[Directory], uid: int) -> list[Check]:
    lib = seen["lib"]["path"]
    if not directories:
        names = [item["name"] for item in seen["directories"]]
        cause = "package.gpu_dir.no_cuda" if names else "package.gpu_dir.missing"
        facts = {"path": lib, "names": ", ".join(names)}
        return [found(cause, facts, expected="cuda_v12 or cuda_v13 with libggml-cuda.so", observed=names)]
    names = [item["name"] for item in directories]
    checks = [passed("P05", observed=names)]
    broken = {item["name"]: _files(item, uid) for item in directories}
    one_is_whole = any(not problems for problems in broken.values())
    for item in directories:
        subject = f"dir:{item['name']}"
        lower = Severity.WARNING if one_is_whole else None
        for cause, facts in broken[item["name"]]:
            checks.append(found(cause, facts, subject=subject, severity=lower, observed=facts.get("size")))
        if not broken[item["name"]]:
            sizes = {entry["name"]: entry.get("size") for entry in item["files"]}
            checks.append(passed("P06", subject=subject, observed=sizes))
    return checks


def _files(directory: Directory, uid: int) -> list[tuple[str, dict[str, Any]]]:
    """Return (cause, facts) of each library in DIRECTORY that the loader could not use."""
    machine = MACHINES.get(os.uname().machine)
    problems: list[tuple[str, dict[str, Any]]] = []
    for entry in directory["files"]:
        elf = entry.get("elf") or {}
        facts = {**entry, **elf, "path": f"{directory['path']}/{entry['name']}", "uid": uid, "bits": elf.get("class")}
        if "errno" in entry or "errno" in elf or not entry.get("readable", True):
            errno = entry.get("errno") or elf.get("errno") or "EACCES"
            problems.append(("package.library.unreadable", {**facts, "errno": errno}))
        elif "problem" in elf:
            problems.append(("package.library.not_elf", facts))
        elif elf.get("class") != 64 or (machine is not None and elf["machine"] != machine):
            problems.append(("package.library.foreign", facts))
        elif _cut_off(elf):
            problems.append(("package.library.truncated", facts))
    return problems


def _cut_off(elf: Mapping[str, Any]) -> bool:
    return "needs" in elf and elf.get("size", 0) < elf["needs"]


def _leftovers(seen: Mapping[str, Any]) -> list[Check]:
    lib = seen["lib"]["path"]
    checks = [
        found("package.leftover.directory", {"path": lib, "name": name}, observed=name)
        for name in seen.get("old_layout") or []
    ]
    top = {entry["name"]: entry for entry in seen["top"]}
    plain, versioned = top.get("libggml-base.so"), top.get("libggml-base.so.0")
    # From 0.13.4 on libggml-base.so is a link to libggml-base.so.0; before, it was the file itself.
    if plain and versioned and plain.get("realpath") != versioned.get("realpath"):
        reason = "libggml-base.so (up to 0.13.3) and libggml-base.so.0 (from 0.13.4) are two different files"
        checks.append(found("package.leftover.base", {"path": lib, "reason": reason}, observed=[plain, versioned]))
    return checks or [passed("P07", reason="no leftovers of another version that file names would show")]


def _strays(seen: Mapping[str, Any]) -> list[Check]:
    lib = seen["lib"]["path"]
    checks = []
    inside = seen["lib"]["realpath"].rstrip("/") + "/"
    places: list[tuple[str, list[Directory], tuple[str, ...]]] = [(lib, seen["top"], (*NOT_OURS, *ONLY_BELOW))]
    places += [(item["path"], item["files"], NOT_OURS) for item in seen["directories"]]
    for path, files, wrong in places:
        for entry in files:
            facts = {"path": path, "name": entry["name"], "target": entry.get("realpath", "nothing")}
            if entry["name"].startswith(wrong):
                checks.append(found("package.stray.library", facts, observed=facts["target"]))
            elif "realpath" in entry and not entry["realpath"].startswith(inside):
                checks.append(found("package.stray.link", facts, observed=facts["target"]))
    return checks or [passed("P08", Kind.RISK, reason="no foreign libraries")]


def _mounts(seen: Mapping[str, Any], directories: list[Directory]) -> list[Check]:
    mounts = seen.get("mounts") or {}
    wanted = [seen["binary"]["realpath"], seen["lib"]["path"], *(item["path"] for item in directories)]
    known = {path: mounts[path] for path in wanted if mounts.get(path)}
    if not known:
        return [unknown("P09", "/proc/self/mountinfo cannot be read", Kind.OBSERVABILITY)]
    bad = {mount["point"]: path for path, mount in known.items() if "noexec" in mount["options"]}
    checks = [found("package.mount.noexec", {"point": point, "path": path}) for point, path in bad.items()]
    return checks or [passed("P09", observed=sorted({mount["point"] for mount in known.values()}))]


def _uid(given: StageInput) -> int:
    identity = given.context.setup.identity
    return identity.uid if identity else os.geteuid()


def _facts(seen: Mapping[str, Any]) -> dict[str, Any]:
    binary = seen.get("binary") or {}
    lib = (seen.get("lib") or {}).get("path") if not (seen.get("lib") or {}).get("fallback") else None
    return {
        "binary": binary.get("realpath") if binary.get("path") else None,
        "lib_dir": lib,
        "gpu_dirs": [
            {
                "name": item["name"],
                "path": item["path"],
                "backend": f"{item['path']}/{BACKEND}" if _has_backend(item) else None,
                "cudart": _cudart(item),
            }
            for item in seen.get("directories") or []
        ],
        "system_cudart": seen.get("system_cudart") or [],
        "version": None,  # asking needs the binary to run, which this version of the gate does not do
        "era": None,
    }


def _cudart(directory: Directory) -> str | None:
    """Return the libcudart that this directory ships: the soname's name, not the file of full version behind it."""
    names = [entry["name"] for entry in directory["files"] if entry["name"].startswith("libcudart.so.")]
    return f"{directory['path']}/{min(names, key=len)}" if names else None


SPEC = StageSpec(
    number=1,
    name="package",
    title="the Ollama install",
    after=(),
    deadline_s=5.0,
    rows=ROWS,
    plan=plan,
    judge=judge,
    hang_causes={"": "package.read_hang"},
)
