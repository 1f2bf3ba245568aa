"""01 package: the Ollama install is where Ollama looks, complete, of one version and allowed to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, StageRecord
from pytest_gpudiscovery.probes import eras
from pytest_gpudiscovery.stages import directories, package_files
from pytest_gpudiscovery.stages.looking import in_order, loader_env, look
from pytest_gpudiscovery.stages.package_files import BACKEND, MACHINES, cut_off, has_backend, shown_name
from pytest_gpudiscovery.stages.spec import (
    Judgement,
    RunContext,
    StageInput,
    StageSpec,
    deadline_for,
    found,
    not_applicable,
    passed,
)
from pytest_gpudiscovery.supervise.types import ChildResult, Probe

ROWS = ("P01", "P02", "P03", "P04", "P05", "P06", "P07", "P08", "P09")
SPLITS = frozenset(":;")  # ld.so, man 8: what separates the directories of LD_LIBRARY_PATH
PATTERN = frozenset("[\\")  # what begins a class or an escape in Go's path/filepath.Match and so matches not itself
VERSION_S = 3.0  # for `ollama --version`: 0.05 s on a healthy host
# Targets that can be reached on a host without Ollama: a plain GPU runner stops at one of these.
WITHOUT_OLLAMA = ("package", "service", "loopback", "kernel", "nvml", "driver", "enumeration", "runtime")


def plan(
    context: RunContext, _: Mapping[str, StageRecord], results: Mapping[str, ChildResult]
) -> tuple[str, Probe] | None:
    """Look at the files once; ask the binary for its version only where its file does not tell."""
    deadline = deadline_for(context, SPEC.name, SPEC.deadline_s)
    if "look" not in results:
        request = {
            "env": loader_env(context),
            "ollama_path": context.ollama_path,
            "hints": [list(pair) for pair in context.hints],
        }
        return "look", look(context, "package", request, deadline)
    seen = results["look"].answer if isinstance(results["look"].answer, dict) else {}
    binary, version = seen.get("binary") or {}, seen.get("version") or {}
    if "version" in results or not binary.get("path") or "class" not in (binary.get("elf") or {}):
        return None
    if version.get("version") is not None or not binary["executable"] or context.view.get("kind") == "root":
        return None  # another root's program may need another root's libraries
    request = {"path": binary["realpath"], "size": binary["size"]}
    # As `look`: without preloaded objects, and not in a service's own context, which may be broken.
    return "version", look(context, "ollama_version", request, min(VERSION_S * context.scale, deadline))


def judge(given: StageInput) -> Judgement:
    """Judge the install; one good CUDA directory is enough, faults of the others are warnings then."""
    seen = given.observed("look")
    binary = seen.get("binary") or {}
    if not seen or "directories" not in seen:
        return Judgement((), "the install could not be looked at", _facts(seen, given))
    if not binary.get("path"):
        return _no_ollama(given, binary, seen)
    uid = _uid(given)
    version, _ = _version(seen, given)
    checks = [*_binary(binary, uid), *_cwd(given, seen, _era(seen, given)), *_lib(seen, binary, _era(seen, given))]
    checks += _server(seen, _era(seen, given))
    with_cuda = [item for item in seen["directories"] if has_backend(item)]
    checks += package_files.judge(seen, with_cuda, version, uid)
    judged = {check.prerequisite for check in checks}
    checks += [not_applicable(row, "there is no GPU directory") for row in ROWS if row not in judged]
    names = ", ".join(shown_name(seen, item) for item in with_cuda) or "no CUDA directory"
    said = f"{binary['path']}{f' {version}' if version else ''}: {names}"
    return Judgement(in_order(checks), said, _facts(seen, given))


def _no_ollama(given: StageInput, binary: Mapping[str, Any], seen: Mapping[str, Any]) -> Judgement:
    tried = ", ".join(binary.get("tried") or []) or "nothing"
    wanted, target = given.context.ollama_path, given.context.target
    if wanted:
        instead = binary.get("instead")
        facts = {"wanted": wanted, "tried": tried, "instead": f" {instead}." if instead else ""}
        observed = instead or binary.get("problem")
        first = found("package.ollama.unusable", facts, expected="an ollama binary", observed=observed)
    elif target in WITHOUT_OLLAMA or given.context.candidate_path:
        reason = f"no Ollama on this host; {target} does not need one"
        checks = tuple(not_applicable(row, reason) for row in ROWS)
        return Judgement(checks, "no Ollama on this host", _facts(seen, given), applicable=False)
    else:
        facts = {"tried": tried, "target": target or "the whole gate"}
        first = found("package.ollama.missing", facts, expected="an ollama binary on PATH", observed=tried)
    rest = [not_applicable(row, "there is no Ollama to look at") for row in ROWS[1:]]
    return Judgement((first, *rest), "no Ollama", _facts(seen, given))


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
    if (problem := _no_program(binary, elf)) is not None:
        return [found("package.ollama.not_program", {**facts, "problem": problem}, expected="an ELF program")]
    if cut_off(elf):
        return [
            found(
                "package.ollama.truncated",
                {**facts, **elf},
                expected=f"{elf['needs']} bytes or more",
                observed=f"{elf['size']} bytes",
            )
        ]
    checks = []
    server = binary.get("server") or {}
    if server.get("deleted"):
        checks.append(found("package.ollama.replaced", {**facts, **server}, observed=server))
    if others := [item for item in binary.get("others") or [] if item["source"] in ("running", "PATH")]:
        facts |= {"source": binary.get("source"), "other": others[0]["path"], "where": others[0]["source"]}
        checks.append(found("package.ollama.another", facts, observed=others))
    observed = {"realpath": binary["realpath"], "size": binary["size"], "source": binary.get("source")}
    return checks or [passed("P01", reason=binary["path"], observed=observed)]


def _server(seen: Mapping[str, Any], era: str | None) -> list[Check]:
    """Return the finding that llama-server, which era C discovers GPUs with, cannot be what a release has."""
    server = seen.get("server") or {}
    elf = server.get("elf") or {}
    if era != "C" or "errno" in elf:
        return []
    problem = f"cut off, {elf['size']} of {elf['needs']} bytes" if cut_off(elf) else _no_program(server, elf)
    if problem is None:
        return []
    facts = {"path": server["path"], "problem": problem}
    return [found("package.server.unusable", facts, expected="an ELF program", observed=problem)]


def _no_program(binary: Mapping[str, Any], elf: Mapping[str, Any]) -> str | None:
    """Return why the kernel cannot start the file; None where it can, or where a script or nobody says what it is."""
    if "problem" in elf:
        return None if binary.get("script") else str(elf["problem"])
    machine = MACHINES.get(os.uname().machine)
    if "class" not in elf or machine is None or (elf["class"] == 64 and elf["machine"] == machine):
        return None
    return f"ELF class {elf['class']}, machine {elf['machine']}"


def _cwd(given: StageInput, seen: Mapping[str, Any], era: str | None) -> list[Check]:
    lost = given.context.service.get("directory")
    if lost is not None and era == "C" and "process" in given.context.service:
        return [passed("P04", reason=f"{lost['path']} is lost ({lost['errno']}), which 0.30.0 and later tolerate")]
    if lost is not None:
        return [found("package.cwd.unreadable", lost, expected="a working directory", observed=lost)]
    if seen.get("cwd") is not None:
        return [passed("P04", observed=seen["cwd"])]
    result = given.results["look"]
    errno = next((step.result for step in result.steps if step.name == "getcwd"), None)
    if era == "C":
        return [passed("P04", reason=f"there is none ({errno}), which 0.30.0 and later tolerate")]
    facts = {"errno": errno, "path": "it"}
    return [found("package.cwd.unreadable", facts, expected="a working directory", observed=errno)]


def _lib(seen: Mapping[str, Any], binary: Mapping[str, Any], era: str | None) -> list[Check]:
    lib = seen["lib"]
    if lib["fallback"]:
        facts = {
            "binary": binary["realpath"],
            "tried": ", ".join(lib["tried"]),
            "expected": lib["tried"][0],
            "others": ", ".join(seen.get("elsewhere") or []) or "nowhere that is usual",
        }
        if lib.get("dangling"):
            path, target = lib["dangling"]
            return [found("package.lib.dangling", {**facts, "path": path, "target": target}, observed=target)]
        return [found("package.lib.missing", facts, expected=lib["tried"][0], observed=lib["path"])]
    checks = [passed("P02", observed=lib["path"])]
    if marks := sorted(set(lib["path"]) & SPLITS):
        return [*checks, found("package.lib.separator", {"path": lib["path"], "mark": marks[0]}, observed=lib["path"])]
    if marks := sorted(set(lib["path"]) & PATTERN):
        return [*checks, found("package.lib.pattern", {"path": lib["path"], "mark": marks[0]}, observed=lib["path"])]
    if era == "C":
        return [*checks, passed("P03", reason="0.30.0 and later take any path", observed=lib["path"])]
    # Each GPU directory is asked for by its own path, which begins with this one (v0.24.0: ggml.go:88).
    if "lib/ollama" in lib["path"]:
        return [*checks, passed("P03", observed=lib["path"])]
    return [*checks, found("package.lib.other_name", {"path": lib["path"]}, observed=lib["path"])]


def _uid(given: StageInput) -> int:
    identity = given.context.setup.identity
    return identity.uid if identity else os.geteuid()


def _version(seen: Mapping[str, Any], given: StageInput) -> tuple[str | None, str | None]:
    """Return the version without a leading "v" and which witness told it; (None, None) when none did."""
    read = seen.get("version") or {}
    if read.get("version") is not None:
        return str(read["version"]), str(read["by"])
    asked = given.observed("version").get("version")
    return (str(asked), "asked") if asked else (None, None)


def _era(seen: Mapping[str, Any], given: StageInput) -> str | None:
    """Return the era by the version, else by the files."""
    return eras.era(_version(seen, given)[0]) or seen.get("top_era")


def _facts(seen: Mapping[str, Any], given: StageInput) -> dict[str, Any]:
    binary = seen.get("binary") or {}
    lib = (seen.get("lib") or {}).get("path") if not (seen.get("lib") or {}).get("fallback") else None
    version, by = _version(seen, given)
    return {
        "binary": binary.get("realpath") if binary.get("path") else None,
        "source": binary.get("source"),
        "lib_dir": lib,
        "gpu_dirs": _gpu_dirs(seen, given, version),
        "bare_dirs": seen.get("bare") or [],
        "system_cudart": seen.get("system_cudart") or [],
        "llama_server": (seen.get("server") or {}).get("path"),
        "version": version,
        "version_by": by,
        "era": _era(seen, given),
        "server_pid": (binary.get("server") or {}).get("pid"),
        "tegra": seen.get("tegra"),
    }


def _gpu_dirs(seen: Mapping[str, Any], given: StageInput, version: str | None) -> list[dict[str, Any]]:
    """Return the GPU directories with what each has, and whether this Ollama looks into it (`kept`, `skipped`)."""
    env, every = given.context.env, seen.get("directories") or []
    jetson = directories.jetpack(env, seen.get("machine"), seen.get("tegra"))
    names = [item["name"] for item in every]
    found_dirs = []
    for item in every:
        why = directories.skipped(
            item["name"], env, era=_era(seen, given), version=version, jetpack=jetson, names=names
        )
        found_dirs.append(
            {
                "name": shown_name(seen, item),
                "path": item["path"],
                "backend": f"{item['path']}/{BACKEND}" if has_backend(item) else None,
                "cudart": _cudart(item),
                "kept": not why,
                "skipped": why,
            }
        )
    return found_dirs


def _cudart(directory: Mapping[str, Any]) -> str | None:
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
    optional=frozenset({"version"}),
)
