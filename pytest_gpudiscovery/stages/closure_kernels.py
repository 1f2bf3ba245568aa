"""The part of stage 09 that judges device code: will kernels run on these GPUs, and will this Ollama keep the device.

Discovery itself never shows the first: cudaGetDeviceCount succeeds whatever the library holds.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from pytest_gpudiscovery.model import Check, CheckOutcome, Kind
from pytest_gpudiscovery.stages.closure_gpu import Wanted, words
from pytest_gpudiscovery.stages.identity import integer, mapping, objects, sequence, string
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown

Facts = Mapping[str, Any]
CAUSES = {
    "no image": "closure.kernels.no_image",
    "ptx too new": "closure.kernels.ptx_too_new",
    "no device code": "closure.kernels.no_code",
}
CACHE = "P117"
JIT_OFF = "CUDA_DISABLE_PTX_JIT"
EAGER = ("CUDA_MODULE_LOADING", "CUDA_FORCE_PTX_JIT")


def judge_kernels(seen: Facts, wanted: Wanted, env: Mapping[str, str], subject: str) -> list[Check]:
    """Return the checks of P55 and P57 for one directory."""
    fatbins = objects(seen.get("fatbins"))
    if not fatbins:
        reason = "the device code could not be listed"
        return _unlisted(reason, subject)
    backend = fatbins[0]
    if string(backend.get("problem")) and not sequence(backend.get("targets")):
        reason = f"the device code of {backend.get('path')} cannot be listed: {backend['problem']}"
        return _unlisted(reason, subject)
    if not wanted.ccs:
        return _without_gpu(backend, env, subject)
    checks: list[Check] = []
    for entry in objects(backend.get("verdicts")):
        checks += (
            _code(entry, backend, wanted, subject)
            + _kept(entry, backend, subject)
            + _floor(entry, backend, wanted, subject)
        )
        checks += _eager(entry, backend, env, subject) + _jit(entry, seen, env, subject)
    checks += _libraries(fatbins[1:], subject)
    rows = {check.prerequisite for check in checks if check.kind is Kind.BLOCKING}
    targets = list(sequence(backend.get("targets")))
    hows = {str(mapping(entry.get("verdict")).get("how")) for entry in objects(backend.get("verdicts"))}
    if "P57" not in rows:
        names = ", ".join(words(cc) for cc in wanted.ccs)
        reason = f"compute capability {names} ({wanted.cc_source}): {', '.join(sorted(hows))}"
        checks.append(passed("P57", subject=subject, reason=reason, observed=targets))
    if "P55" not in rows:
        checks.append(passed("P55", subject=subject, observed={"how": sorted(hows), **asked(env)}))
    if not any(check.prerequisite == CACHE for check in checks):
        reason = "the cache takes what the driver compiles" if "jit" in hows else "nothing has to be compiled"
        checks.append(passed(CACHE, Kind.RISK, subject=subject, reason=reason, observed=seen.get("jit_cache")))
    return checks


def _unlisted(reason: str, subject: str) -> list[Check]:
    both = [unknown(row, reason, subject=subject) for row in ("P55", "P57")]
    return [*both, unknown(CACHE, reason, Kind.OBSERVABILITY, subject=subject)]


def asked(env: Mapping[str, str]) -> dict[str, str]:
    """Return those variables of ENV that make CUDA compile at initialisation."""
    return {name: env[name] for name in EAGER if name in env}


def jit_disabled(env: Mapping[str, str]) -> bool:
    """Whether a variable of ENV forbids the driver to compile PTX."""
    return env.get(JIT_OFF, "0").strip() not in ("", "0")


def _forces(env: Mapping[str, str]) -> bool:
    eager = env.get("CUDA_MODULE_LOADING", "").upper() == "EAGER"
    return eager or env.get("CUDA_FORCE_PTX_JIT", "0") not in ("", "0")


def _without_gpu(backend: Facts, env: Mapping[str, str], subject: str) -> list[Check]:
    reason = "the GPU's compute capability is unknown: no driver answers, and the PCI id is not in the table"
    targets = list(sequence(backend.get("targets")))
    checks = [
        unknown("P57", reason, subject=subject, observed=targets),
        unknown(CACHE, reason, Kind.OBSERVABILITY, subject=subject),
    ]
    if _forces(env):
        return [*checks, unknown("P55", reason, subject=subject, observed=asked(env))]
    return [*checks, passed("P55", subject=subject, reason="nothing is compiled at initialisation")]


def _facts(entry: Facts, backend: Facts) -> dict[str, Any]:
    verdict = mapping(entry.get("verdict"))
    path = str(backend.get("path"))
    needs = sequence(verdict.get("needs_cuda"))
    return {
        "cc": words(entry.get("cc")),
        "reason": verdict.get("reason"),
        "target": verdict.get("target"),
        "needs": words(needs) if needs else "newer than known",
        "path": path,
        "file": posixpath.basename(path),
        "targets": ", ".join(str(target) for target in sequence(backend.get("targets"))) or "nothing",
        "modules": verdict.get("jit_modules"),
        "uncovered": verdict.get("uncovered"),
    }


def _code(entry: Facts, backend: Facts, wanted: Wanted, subject: str) -> list[Check]:
    verdict, facts = mapping(entry.get("verdict")), _facts(entry, backend)
    how = string(verdict.get("how"))
    if how in CAUSES:
        driver = words(wanted.driver_cuda)
        expected, observed = f"code for {facts['cc']}", list(sequence(backend.get("targets")))
        return [found(CAUSES[how], {**facts, "driver": driver}, subject=subject, expected=expected, observed=observed)]
    if how == "jit" and wanted.driver_cuda is None:
        reason = f"{facts['target']} is compiled by the driver, and the driver's CUDA version is unknown"
        return [unknown("P57", reason, subject=subject)]
    if (integer(verdict.get("uncovered")) or 0) > 0:
        return [found("closure.kernels.partial", facts, subject=subject, observed=verdict.get("uncovered"))]
    return []


def compiled_for(backend: Facts) -> tuple[list[int], str]:
    """Return the SM numbers that BACKEND was compiled for, and where that was read."""
    listed = [number for number in sequence(backend.get("architectures")) if integer(number) is not None]
    if listed:
        return listed, "the compiled list"
    # A library for one architecture has no list that can be recognised; its images say the same.
    images = {integer(image.get("sm")) for image in objects(backend.get("images"))}
    return sorted(number for number in images if number is not None), "its images"


def _kept(entry: Facts, backend: Facts, subject: str) -> list[Check]:
    """Judge whether Ollama keeps the device: ggml_cuda_has_arch (0.13.1 to 0.24) and llama-server's ARCHS compare."""
    cc = [integer(part) or 0 for part in sequence(entry.get("cc"))]
    if len(cc) != 2 or mapping(entry.get("verdict")).get("runs") is not True:
        return []
    numbers, source = compiled_for(backend)
    if not numbers:
        return [unknown("P57", "the list of compiled architectures was not found", Kind.OBSERVABILITY, subject=subject)]
    if cc[0] * 10 + cc[1] in numbers:
        return []
    facts = {**_facts(entry, backend), "archs": ", ".join(map(str, numbers)), "source": source}
    return [found("closure.kernels.filtered", facts, subject=subject, expected=cc[0] * 10 + cc[1], observed=numbers)]


def _floor(entry: Facts, backend: Facts, wanted: Wanted, subject: str) -> list[Check]:
    floor = sequence(entry.get("driver_floor"))
    if len(floor) != 2:
        return []
    facts = {
        **_facts(entry, backend),
        "floor": words(floor[0]).removesuffix(".0"),
        "reason": floor[1],
        "driver": words(wanted.driver),
        "directory": subject.removeprefix("dir:"),
    }
    return [
        found("closure.driver_floor", facts, subject=subject, expected=f">= {facts['floor']}", observed=facts["driver"])
    ]


def _eager(entry: Facts, backend: Facts, env: Mapping[str, str], subject: str) -> list[Check]:
    if mapping(entry.get("verdict")).get("eager_stall") is not True:
        return []
    variables = asked(env)
    facts = {**_facts(entry, backend), "variables": " ".join(f"{name}={value}" for name, value in variables.items())}
    return [found("closure.jit.eager_hang", facts, subject=subject, expected="lazy loading", observed=variables)]


def _jit(entry: Facts, seen: Facts, env: Mapping[str, str], subject: str) -> list[Check]:
    """Judge what the driver needs for compiling: its compiler, and a cache so that it does so once."""
    if mapping(entry.get("verdict")).get("how") != "jit":
        return []
    checks = []
    facts = _facts(entry, objects(seen.get("fatbins"))[0])
    if jit_disabled(env):
        value = env[JIT_OFF]
        checks.append(found("closure.jit.disabled", {**facts, "value": value}, subject=subject, observed=value))
    compiler, cache = mapping(seen.get("jit_compiler")), mapping(seen.get("jit_cache"))
    names = objects(mapping(mapping(seen.get("models")).get("child")).get("names"))
    has_driver = any(item.get("name") == "libcuda.so.1" and item.get("path") for item in names)
    if has_driver and compiler.get("outcome") == "error":
        text = compiler.get("message")
        checks.append(found("closure.jit.compiler_missing", {**facts, "text": text}, subject=subject, observed=text))
    if cache.get("disabled") is True or cache.get("writable") is False:
        reason = (
            "CUDA_CACHE_DISABLE is set" if cache.get("disabled") is True else f"{cache.get('path')} is not writable"
        )
        checks.append(found("closure.jit.cache", {**facts, "why": reason}, subject=subject, observed=dict(cache)))
    return checks


def _libraries(fatbins: list[Facts], subject: str) -> list[Check]:
    """Judge cuBLAS: without code for the GPU the first matrix product fails, after discovery."""
    checks = []
    for library in fatbins:
        for entry in objects(library.get("verdicts")):
            if mapping(entry.get("verdict")).get("how") in ("no image", "ptx too new"):
                checks.append(found("closure.kernels.library", _facts(entry, library), subject=subject))
    return checks


def failed(checks: list[Check]) -> bool:
    """Whether one of CHECKS failed."""
    return any(check.outcome is CheckOutcome.FAILED for check in checks)


def backend_path(seen: Facts, backend: str, outcome: str | None, subject: str) -> Check:
    """Judge P71: what llama-server is told to load; Ollama up to 0.24 has no llama-server and sets no such path."""
    if not string(seen.get("server")):
        reason = "no llama-server in this install: its Ollama sets no GGML_BACKEND_PATH"
        return not_applicable("P71", reason, subject=subject)
    loaded = string(seen.get("backend_path"))
    if loaded != backend:
        facts = {"loaded": loaded or "nothing", "name": posixpath.basename(loaded or "nothing"), "backend": backend}
        return found("closure.backend_path.other", facts, subject=subject, expected=backend, observed=loaded)
    if outcome is None or outcome == "unsupported":
        return unknown("P71", "whether it loads cannot be predicted", subject=subject)
    if outcome != "loads":
        facts = {"loaded": loaded, "name": posixpath.basename(loaded), "backend": backend}
        return found("closure.backend_path.unloadable", facts, subject=subject, expected="loads", observed=outcome)
    return passed("P71", subject=subject, observed=loaded)
