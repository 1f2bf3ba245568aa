"""The part of stage 12 that reads one discovery of era C: three processes, and their output as Ollama parses it. Pure.

v0.32.15:discover/llama_server.go:182-372 (devices, architectures), native_probe.go:205-245, cuda_compat.go:19-71.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.model import Check, Kind
from pytest_gpudiscovery.stages import bootstrap_hang, bootstrap_runner
from pytest_gpudiscovery.stages.bootstrap_runner import number, said, short, text
from pytest_gpudiscovery.stages.identity import integer, mapping, objects, sequence, string
from pytest_gpudiscovery.stages.ollama_devices import CUDA, SHOWN, Device
from pytest_gpudiscovery.stages.protocol import NATIVE_S, Directory, Protocol
from pytest_gpudiscovery.stages.spec import found, not_applicable, passed, unknown

Facts = Mapping[str, Any]
DEVICE = re.compile(r"^\s+(.+?):\s+(.+?)\s+\((\d{1,15})\s+MiB,\s+(\d{1,15})\s+MiB\s+free\)")
CAPABILITY = re.compile(r"Device\s+(\d{1,4}):.*compute capability\s+(\d{1,4})\.(\d{1,4})")
ARCHITECTURES = re.compile(r"CUDA\s*:\s*ARCHS\s*=\s*([\d,]+)")
CUDART = re.compile(r"^libcudart\.so\.(\d{1,3})(?:\.(\d{1,3}))?")
NOT_LOADED = re.compile(r"failed to load (\S+): (.*)")
MIB = 1 << 20
FLOORED = "cuda_v12"  # v0.32.15:discover/runner.go:119
COMPRESSED_MINOR, COMPRESSED_DRIVER = 4, 550  # cuda_compat.go:13-14
LEGACY_MINOR, LEGACY_DRIVER, LEGACY_CC = 8, 570, 7
FLOOR_FOR_ALL = (0, 30, 11)  # before, only compute capability below 7 had a floor


def native(run: Facts) -> list[Facts]:
    """Return the devices of `ollama gpu-discover`, [] where it gave none."""
    one = mapping(run.get("native"))
    if one.get("reason") != "exited" or one.get("exit") != 0:
        return []
    import json  # noqa: PLC0415

    try:
        answer = json.loads(string(one.get("out")) or "null")
    except (ValueError, RecursionError):
        return []
    return [device for device in objects(mapping(answer).get("devices")) if device.get("index_matches_backend") is True]


def shown(directory: str, run: Facts) -> tuple[list[Device], list[tuple[Device, str]]]:
    """Return the devices of one discovery as Ollama parses them, and those that it skips with the architectures it has.

    The order of the lines is the index; a device whose compute capability is not known is kept.
    """
    listing = string(mapping(run.get("list")).get("out")) or ""
    started = text(mapping(run.get("start")))
    everything = "\n".join((listing, text(mapping(run.get("list"))), started, text(mapping(run.get("native")))))
    capabilities = {int(m[1]): (int(m[2]), int(m[3])) for m in CAPABILITY.finditer(everything)}
    compiled = [match[1] for match in ARCHITECTURES.finditer(everything)]
    by_index = {
        integer(device.get("index")): device for device in native(run) if str(device.get("library")).upper() == CUDA
    }
    for place, told in by_index.items():
        if place is not None and (integer(told.get("compute_major")) or 0) > 0:
            capabilities[place] = (integer(told["compute_major"]) or 0, integer(told.get("compute_minor")) or 0)
    kept: list[Device] = []
    skipped: list[tuple[Device, str]] = []
    index = 0
    for line in f"{listing}\n{text(mapping(run.get('list')))}\n{started}".splitlines():
        match = DEVICE.match(line)
        if match is None or index >= SHOWN:
            continue
        device = _device(directory, index, match, mapping(by_index.get(index)), capabilities)
        index += 1
        if device.total == 0:
            continue
        wanted = f"{device.compute[0]}{device.compute[1]}0"
        if device.is_cuda and index - 1 in capabilities and compiled and wanted not in compiled[-1].split(","):
            skipped.append((device, compiled[-1]))
            continue
        kept.append(device)
    return kept, skipped


def _device(
    directory: str, index: int, match: re.Match[str], more: Facts, capabilities: Mapping[int, tuple[int, int]]
) -> Device:
    name, description = match[1], match[2]
    library = _library(f"{name} {description}".lower(), description)
    is_cuda = library == CUDA
    return Device(
        directory,
        str(index),
        library,
        name,
        description,
        str(more.get("device_id") or "") if is_cuda else "",
        int(match[3]) * MIB,
        int(match[4]) * MIB,
        capabilities.get(index, (0, 0)) if is_cuda else (0, 0),
        (integer(more.get("cuda_driver_major")) or 0, integer(more.get("cuda_driver_minor")) or 0),
    )


def _library(words: str, description: str) -> str:
    """v0.32.15:discover/llama_server.go:475-491."""
    for marks, library in ((("cuda",), CUDA), (("rocm", "hip"), "ROCm"), (("vulkan",), "Vulkan")):
        if any(mark in words for mark in marks):
            return library
    return description


def devices(directory: str, run: Facts, how: Protocol) -> list[Device]:
    """Return what Ollama keeps of one discovery: what it parses, less what is below the driver's floor."""
    kept, _ = shown(directory, run)
    low = below_floor(directory, run, kept, how)
    return [device for device in kept if device not in low]


def runtime_version(run: Facts) -> tuple[int, int] | None:
    """Return the newest CUDA runtime in the directories, from the names of its files; None where none is named so."""
    found_in = [CUDART.match(str(name)) for name in sequence(run.get("cudart"))]
    versions = [(int(match[1]), int(match[2] or 0)) for match in found_in if match]
    return max(versions, default=None)


def driver_major(run: Facts) -> int:
    """Return the major version of the NVIDIA driver that the native probe told, 0 where it told none."""
    majors = (integer(device.get("nvidia_driver_major")) or 0 for device in native(run))
    return next((major for major in majors if major > 0), 0)


def below_floor(directory: str, run: Facts, kept: Sequence[Device], how: Protocol) -> list[Device]:
    """Return those of KEPT that Ollama drops because the driver is too old for its CUDA runtime; cuda_v12 only."""
    driver, version = driver_major(run), runtime_version(run) or (12, 0)
    cuda = [device for device in kept if device.is_cuda]
    if directory != FLOORED or driver == 0 or driver >= LEGACY_DRIVER:
        return []
    old = [device for device in cuda if 0 < device.compute[0] < LEGACY_CC]
    if not how.at_least(FLOOR_FOR_ALL):
        return old
    if version[0] == 12 and version[1] >= COMPRESSED_MINOR and driver < COMPRESSED_DRIVER:
        return cuda
    return old if version[0] == 12 and version[1] >= LEGACY_MINOR else []


def failed(run: Facts, preloaded: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """Return (cause, facts) where RUN gave no list of devices, None where it did; what is not fatal is none."""
    start, listed = mapping(run.get("start")), mapping(run.get("list"))
    if run.get("reason") == "caught":
        return bootstrap_runner.caught(run)
    server = str((sequence(start.get("argv")) or ["llama-server"])[0])
    for step, cause in ((start, "start"), (listed, "list")):
        if step.get("problem"):
            return "bootstrap.spawn", {"errno": step["problem"], "binary": server, "observed": step["problem"]}
        if step.get("reason") == "timeout":
            limit = number(run.get("limit_s"))
            facts = {**_stuck(step, server, preloaded, limit), "lines": step.get("lines"), "limit_s": limit}
            return f"bootstrap.{cause}.hang", facts
    if not listed:
        return "bootstrap.no_answer", {"observed": start.get("exit")}
    if listed.get("exit") != 0:
        code = integer(listed.get("exit"))
        ending = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
        facts = {"ending": ending, "said": said(listed), "observed": ending, "preloaded": ""}
        if preloaded and not bootstrap_runner.text(listed).strip():  # llama-server says something before it ends
            worded = catalogue.finding("bootstrap.exit.preload", {**facts, "code": code, "object": "", "subject": ""})
            facts |= {"preloaded": f" Preloaded: {', '.join(preloaded)}.", "remedy": (worded.next, worded.action)}
        return "bootstrap.list.exit", facts
    return None


def _stuck(step: Facts, program: str, preloaded: Sequence[str], limit_s: float | None) -> dict[str, Any]:
    """Return where a process of STEP, given LIMIT_S, hangs, in the words of the cause that a runner would have had."""
    name, facts = bootstrap_hang.cause({**step, "connected": 0.0}, program, preloaded)
    worded = catalogue.finding(f"bootstrap.hang.{name}", {**facts, "subject": "it", "limit_s": limit_s or 0.0})
    return {**facts, "what": _verb(worded.summary), "class": name, "remedy": (worded.next, worded.action)}


def _by_class(check: Check, facts: Facts) -> Check:
    """Return CHECK with the next command of what its process hangs in, where that is known: `_stuck`'s "remedy"."""
    if check.finding is None or not facts.get("remedy") or not facts["remedy"][0]:
        return check
    command, action = facts["remedy"]
    return dataclasses.replace(check, finding=dataclasses.replace(check.finding, next=command, action=action))


def _verb(summary: str) -> str:
    """Return "it waits in poll" of "it: Ollama's child waits in poll"; an object that holds it up stays the subject."""
    return summary.removeprefix("it: ").replace("Ollama's child", "it").replace("Ollama's own binary", "its program")


def judge(
    directory: Directory, run: Facts, how: Protocol, binary: str, preloaded: Sequence[str], budget_s: float
) -> list[Check]:
    """Return the checks P67, P68, P69, P70 and P94 of one discovery of the first pass, and what it says of devices."""
    subject = f"dir:{directory.name}"
    bad = failed(run, preloaded)
    if bad is not None:
        cause, facts = bad
        last = mapping(run.get("list")) or mapping(run.get("start"))
        facts = {"said": said(last), "subject": directory.name, "budget_s": budget_s, **facts}
        evidence = {"output": text(last)[-bootstrap_runner.TAIL :], "argv": last.get("argv")}
        evidence |= bootstrap_hang.shown(last, facts)
        check = found(cause, facts, subject=subject, evidence=evidence, observed=facts.get("observed"))
        return [_by_class(check, facts)]
    checks = [_started(run, subject), passed("P68", subject=subject, observed=mapping(run["list"]).get("seconds"))]
    checks += [_native(run, subject, binary, preloaded), *_floor(directory, run, how, subject)]
    return [*checks, bootstrap_runner.time_of(run, budget_s, subject)]


def _started(run: Facts, subject: str) -> Check:
    """Judge P67: Ollama goes on without system_info, but then does not know what the backend was compiled for."""
    start = mapping(run.get("start"))
    if start.get("reason") == "seen":
        return passed("P67", subject=subject, observed=start.get("seconds"))
    facts = {"subject": subject.partition(":")[2], "code": start.get("exit"), "said": said(start)}
    return found("bootstrap.start.exit", facts, subject=subject, observed=start.get("exit"))


def _native(run: Facts, subject: str, binary: str, preloaded: Sequence[str]) -> Check:
    """Judge P69: PCI id and driver version come from the native probe alone."""
    one = mapping(run.get("native"))
    facts: dict[str, Any] = {"subject": subject.partition(":")[2], "limit_s": NATIVE_S, "said": said(one)}
    if not one:
        return unknown("P69", "not started", Kind.RISK, subject=subject)
    if one.get("reason") == "timeout":
        if isinstance(spent := one.get("seconds"), float):
            facts["limit_s"] = min(NATIVE_S, round(spent, 1))  # the 30 s of all three may leave it less
        facts |= _stuck(one, binary, preloaded, number(facts["limit_s"]))
        check = found("bootstrap.native.hang", facts, subject=subject, evidence=bootstrap_hang.shown(one, facts))
        return _by_class(check, facts)
    if one.get("reason") != "exited" or one.get("exit") != 0:
        facts["code"] = one.get("exit") if not one.get("problem") else one["problem"]
        return found("bootstrap.native.failed", facts, subject=subject, observed=facts["code"])
    return passed("P69", Kind.RISK, subject=subject, observed=one.get("seconds"))


def _floor(directory: Directory, run: Facts, how: Protocol, subject: str) -> list[Check]:
    """Judge P70."""
    if directory.name != FLOORED:
        return [not_applicable("P70", "only cuda_v12 has a floor", subject=subject)]
    kept, _ = shown(directory.name, run)
    if not any(device.is_cuda for device in kept):
        return [not_applicable("P70", "no CUDA device to keep", subject=subject)]
    driver = driver_major(run)
    version = runtime_version(run) or (12, 0)
    facts: dict[str, Any] = {"driver": driver, "runtime": f"{version[0]}.{version[1]}", "subject": directory.name}
    if driver == 0:
        return [found("bootstrap.floor.unknown", facts, subject=subject, observed=None)]
    low = below_floor(directory.name, run, kept, how)
    if low:
        facts["floor"] = COMPRESSED_DRIVER if len(low) == len([d for d in kept if d.is_cuda]) else LEGACY_DRIVER
        facts["floor"] = LEGACY_DRIVER if driver >= COMPRESSED_DRIVER else facts["floor"]
        facts["device"] = low[0].description
        return [found("bootstrap.floor", facts, subject=subject, expected=f">= {facts['floor']}", observed=driver)]
    return [passed("P70", subject=subject, observed={"driver": driver, "runtime": facts["runtime"]})]


def why_none(directory: Directory, run: Facts) -> tuple[str, dict[str, Any]]:
    """Return (cause, facts) where the discovery answered and shows no CUDA device that Ollama keeps."""
    everything = "\n".join(text(mapping(run.get(key))) for key in ("list", "start", "native"))
    kept, skipped = shown(directory.name, run)
    facts: dict[str, Any] = {"directory": directory.name, "said": said({"output": {"text": everything}})}
    if skipped:
        device, compiled = skipped[0]
        facts |= {
            "device": device.description,
            "cc": f"{device.compute[0]}.{device.compute[1]}",
            "archs": short(compiled),
        }
        return "bootstrap.arch", facts
    if any(device.is_cuda for device in kept):
        return "bootstrap.floor", {**facts, "subject": directory.name, "driver": driver_major(run), "floor": "?"}
    match = NOT_LOADED.search(everything)
    if match is not None:
        facts |= {"path": match[1], "error": match[2].strip()[:200]}
        return "bootstrap.load_failed", facts
    if "failed to initialize CUDA" in everything:
        facts["error"] = everything.partition("failed to initialize CUDA")[2].partition("\n")[0].lstrip(": ").strip()
        return "bootstrap.cuda_failed", facts
    return "bootstrap.no_device", facts
