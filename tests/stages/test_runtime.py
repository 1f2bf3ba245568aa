"""Stage 08 judged over what libcudart answers: versions, counts, layouts, several directories, endings."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.diagnosis import errors
from pytest_gpudiscovery.model import CheckOutcome, Outcome, Step
from pytest_gpudiscovery.outcome import conclude
from pytest_gpudiscovery.stages import runtime
from pytest_gpudiscovery.stages.device_prop import LAYOUTS, POISON, decode
from pytest_gpudiscovery.stages.runtime_library import differences, words
from pytest_gpudiscovery.stages.spec import Judgement, StageInput
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.fakes import context, record, result
from tests.stages.hostile import ANYTHING, is_sound, mutated

UUID = "GPU-11111111-2222-3333-4444-555555555555"
LIB = "/usr/local/lib/ollama"
DEVICE: dict[str, Any] = {
    "ordinal": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": UUID,
    "pci": "0000:00:06.0",
    "total_memory": 85017624576,
    "cc": [9, 0],
    "sm_count": 132,
}
DRIVER = {"gpus": [DEVICE], "driver_version_cuda": 13000}


def packed(major: int, device: dict[str, Any] = DEVICE) -> bytes:
    """Return what a libcudart of CUDA MAJOR writes for DEVICE: struct cudaDeviceProp, reserved fields zero."""
    layout = LAYOUTS[major]
    raw = bytearray(layout.size)
    domain, bus, slot = device["pci"].partition(".")[0].split(":")
    struct.pack_into("256s16s", raw, 0, device["name"].encode(), bytes.fromhex(device["uuid"][4:].replace("-", "")))
    struct.pack_into("<Q", raw, 288, device["total_memory"])
    struct.pack_into("<ii", raw, 360, *device["cc"])
    struct.pack_into("<i", raw, layout.sm_count, device["sm_count"])
    for offset, text in ((layout.pci_domain, domain), (layout.pci_bus, bus), (layout.pci_device, slot)):
        struct.pack_into("<i", raw, offset, int(text, 16))
    return bytes(raw)


def library(major: int = 13, written: bytes | None = None, **changes: Any) -> dict[str, Any]:
    """Return what the probe sees of a healthy libcudart of MAJOR that writes WRITTEN; CHANGES replace parts."""
    symbol = "cudaGetDeviceProperties" + ("_v2" if major == 12 else "")
    raw = packed(major) if written is None else written
    return {
        "errors": {},
        "library": {"asked": f"{LIB}/cuda_v{major}/libcudart.so.{major}", "path": f"{LIB}/libcudart.so.{major}.0.1"},
        "cudaRuntimeGetVersion": {"rc": 0},
        "runtime_version": {13: 13000, 12: 12080, 11: 11040}[major],
        "cudaDriverGetVersion": {"rc": 0},
        "driver_version": 13000,
        "cudaGetDeviceCount": {"rc": 0},
        "count": 1,
        "symbols": [symbol],
        "devices": [{"ordinal": 0, "symbol": symbol, "rc": 0, "raw": raw.hex()}],
        **changes,
    }


def directory(name: str, **changes: Any) -> dict[str, Any]:
    """Return stage 01's entry of GPU directory NAME."""
    major = name[-2:]
    path = f"{LIB}/{name}"
    entry = {"name": name, "path": path, "backend": f"{path}/libggml-cuda.so", "cudart": f"{path}/libcudart.so.{major}"}
    return {**entry, **changes}


def package(*names: str) -> dict[str, Any]:
    """Return stage 01's facts of an Ollama with GPU directories NAMES."""
    return {"lib_dir": LIB, "gpu_dirs": [directory(name) for name in names]}


def judged(
    answers: dict[str, Any], install: dict[str, Any] | None = None, driver: dict[str, Any] | None = None
) -> Judgement:
    """Return the judgement over ANSWERS (directory -> what its probe saw, or what became of the child)."""
    prior = {
        "package": record("package", Outcome.PASSED, facts=package(*answers) if install is None else install),
        "driver": record("driver", Outcome.PASSED, facts=DRIVER if driver is None else driver),
    }
    results = {n: a if isinstance(a, ChildResult) else result(answer=a) for n, a in answers.items()}
    return runtime.judge(StageInput(context(), results, prior, 20.0))


def causes(judgement: Judgement) -> dict[str, str]:
    """Return cause -> outcome of what was found."""
    return {check.finding.cause: check.outcome.value for check in judgement.checks if check.finding}


def outcome(judgement: Judgement) -> Outcome:
    """Return what the engine makes of JUDGEMENT's checks."""
    return conclude(runtime.SPEC, judgement, {}, started=0.0, deadline_s=20.0).outcome


@pytest.mark.parametrize("major", [12, 13])
def test_a_healthy_directory(major: int) -> None:
    judgement = judged({f"cuda_v{major}": library(major)})
    assert causes(judgement) == {}
    assert outcome(judgement) is Outcome.PASSED
    assert {(check.prerequisite, check.subject) for check in judgement.checks} == {
        ("P46", f"dir:cuda_v{major}"),
        ("P49", f"dir:cuda_v{major}"),
    }
    (entry,) = judgement.facts["directories"]
    assert (entry["name"], entry["count"], entry["covers"]) == (f"cuda_v{major}", 1, True)
    assert judgement.facts["views"]["0000:00:06.0"][f"cuda_v{major}"]["name"] == DEVICE["name"]


FAULTS: list[tuple[str, int, dict[str, Any], str]] = [
    ("driver of an older major", 13, {"driver_version": 12040}, "runtime.driver_too_old"),
    ("35", 12, {"cudaGetDeviceCount": {"rc": 35}, "count": None, "devices": []}, "runtime.driver_too_old"),
    ("100", 12, {"cudaGetDeviceCount": {"rc": 100}, "count": None, "devices": []}, "runtime.no_device"),
    ("999", 12, {"cudaGetDeviceCount": {"rc": 999}, "count": None, "devices": []}, "runtime.error"),
    ("another count", 12, {"count": 0, "devices": []}, "runtime.count_differs"),
    ("no cudaGetDeviceCount", 12, {"cudaGetDeviceCount": {"missing": "x"}, "devices": []}, "runtime.function_missing"),
    (
        "no version",
        12,
        {"cudaRuntimeGetVersion": {"missing": "x"}, "runtime_version": None},
        "runtime.function_missing",
    ),
    ("properties fail", 12, {"devices": [{"ordinal": 0, "rc": 1, "raw": ""}]}, "runtime.error"),
    ("nothing written", 12, {"devices": [{"ordinal": 0, "rc": 0, "raw": ""}]}, "runtime.properties_empty"),
    ("layout of CUDA 13", 12, {"devices": [{"ordinal": 0, "rc": 0, "raw": packed(13).hex()}]}, "runtime.layout"),
    ("longer than CUDA 13's", 13, {"devices": [{"ordinal": 0, "rc": 0, "raw": packed(12).hex()}]}, "runtime.overflow"),
    (
        "another GPU",
        12,
        {"devices": [{"ordinal": 0, "rc": 0, "raw": packed(12, {**DEVICE, "pci": "0000:65:00.0"}).hex()}]},
        "runtime.properties_differ",
    ),
    ("the other major's file", 12, {"runtime_version": 13000}, "runtime.wrong_major"),
    (
        "not loadable",
        12,
        {"errors": {"/x/libcudart.so.12": "/x: file too short"}, "library": None},
        "runtime.unloadable",
    ),
]


@pytest.mark.parametrize(("major", "changes", "cause"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_the_only_directory_fails(major: int, changes: dict[str, Any], cause: str) -> None:
    seen = library(major, **changes)
    driver = {**DRIVER, "driver_version_cuda": seen["driver_version"]}
    judgement = judged({f"cuda_v{major}": seen}, driver=driver)
    assert causes(judgement)[cause] == "failed"
    assert outcome(judgement) is Outcome.FAILED
    for check in judgement.checks:
        if check.finding:
            assert "?" not in check.finding.summary, check.finding
            assert check.subject == f"dir:cuda_v{major}"


@pytest.mark.parametrize(("major", "changes", "cause"), [f[1:] for f in FAULTS if f[1] == 12])
def test_one_directory_that_covers_every_gpu_is_enough(major: int, changes: dict[str, Any], cause: str) -> None:
    judgement = judged({"cuda_v12": library(major, **changes), "cuda_v13": library(13)})
    assert causes(judgement)[cause] == "warned"
    assert outcome(judgement) is Outcome.WARNED
    assert [entry["covers"] for entry in judgement.facts["directories"]] == [False, True]


def test_a_directory_that_this_ollama_would_not_keep_does_not_count() -> None:
    install = {"lib_dir": LIB, "gpu_dirs": [directory("cuda_v12"), directory("cuda_v13", kept=False)]}
    seen = {"cuda_v12": library(12, cudaGetDeviceCount={"rc": 999}, devices=[]), "cuda_v13": library(13)}
    assert outcome(judged(seen, install)) is Outcome.FAILED


def test_a_minor_version_newer_than_the_driver_is_a_note() -> None:
    judgement = judged({"cuda_v12": library(12)}, driver={**DRIVER, "driver_version_cuda": 12020})
    assert causes(judgement) == {"runtime.minor_newer": "passed"}
    assert outcome(judgement) is Outcome.PASSED


@pytest.mark.parametrize("entry", [code for code in errors.codes("runtime") if code.code], ids=lambda code: code.name)
def test_every_error_code_is_named(entry: errors.Code) -> None:
    seen = library(12, cudaGetDeviceCount={"rc": entry.code}, count=None, devices=[])
    judgement = judged({"cuda_v12": seen})
    assert causes(judgement) == {entry.cause or "runtime.error": "failed"}


# --- which libraries are asked, and how ------------------------------------------------------------------------------


def plan(
    install: dict[str, Any], env: dict[str, str] | None = None, answers: dict[str, Any] | None = None, cuda: int = 13000
) -> list[tuple[str, Any, str]]:
    """Return (name, request, LD_LIBRARY_PATH) of every probe that the stage runs; ANSWERS by name, else healthy."""
    prior = {
        "package": record("package", Outcome.PASSED, facts=install),
        "driver": record("driver", Outcome.PASSED, facts={**DRIVER, "driver_version_cuda": cuda}),
    }
    results: dict[str, ChildResult] = {}
    asked = []
    while (planned := runtime.plan(context(env=env or {}), prior, results)) is not None:
        name, probe = planned
        asked.append((name, probe.request, probe.env.get("LD_LIBRARY_PATH", "")))
        answer = (answers or {}).get(name, library())
        results[name] = answer if isinstance(answer, ChildResult) else result(answer=answer)
        assert len(asked) < 10
    return asked


def test_each_directory_is_asked_in_the_environment_of_ollamas_child() -> None:
    assert plan(package("cuda_v12", "cuda_v13"), {"LD_LIBRARY_PATH": "/opt/lib"}) == [
        (
            "cuda_v12",
            {"libraries": [f"{LIB}/cuda_v12/libcudart.so.12"], "properties": "cudaGetDeviceProperties_v2"},
            f"{LIB}:{LIB}/cuda_v12:/opt/lib",
        ),
        (
            "cuda_v13",
            {"libraries": [f"{LIB}/cuda_v13/libcudart.so.13"], "properties": "cudaGetDeviceProperties"},
            f"{LIB}:{LIB}/cuda_v13:/opt/lib",
        ),
    ]


def test_a_distributions_ollama_without_its_own_libcudart_gets_the_loaders() -> None:
    install = {
        "lib_dir": LIB,
        "gpu_dirs": [directory("cuda_v12", cudart=None), directory("vulkan", cudart=None, backend=None)],
    }
    ((name, request, _),) = plan(install)
    assert (name, request["libraries"]) == ("cuda_v12", ["libcudart.so.12"])
    absent = {
        "errors": {"libcudart.so.12": "libcudart.so.12: cannot open shared object file: No such file or directory"}
    }
    judgement = judged({"cuda_v12": absent}, install)
    assert outcome(judgement) is Outcome.NOT_APPLICABLE  # the runtime is linked into the backend


def test_without_ollama_the_newest_library_that_the_driver_serves_is_enough() -> None:
    assert [name for name, _, _ in plan({})] == ["libcudart.so.13"]
    assert [name for name, _, _ in plan({}, cuda=12020, answers={"libcudart.so.12": library(12)})] == [
        "libcudart.so.12"
    ]
    install = {"system_cudart": [{"path": "/a/libcudart.so.12"}, {"path": "/b/libcudart.so.13"}]}
    assert [name for name, _, _ in plan(install)] == ["/b/libcudart.so.13"]


def test_without_ollama_the_next_library_is_asked_when_one_fails() -> None:
    broken = library(13, cudaGetDeviceCount={"rc": 999}, devices=[])
    assert [name for name, _, _ in plan({}, answers={"libcudart.so.13": broken})] == [
        "libcudart.so.13",
        "libcudart.so.12",
    ]
    both = judged({"libcudart.so.13": broken, "libcudart.so.12": library(12)}, {})
    assert causes(both) == {"runtime.error": "warned"}
    neither = judged({"libcudart.so.13": broken, "libcudart.so.12": broken}, {})
    assert [check.finding and check.finding.cause for check in neither.checks if check.finding] == ["runtime.error"]
    assert outcome(neither) is Outcome.FAILED


def test_a_host_without_ollama_and_without_libcudart_is_passed_over_with_a_reason() -> None:
    text = "{}: cannot open shared object file: No such file or directory"
    absent = {name: {"errors": {name: text.format(name)}} for name in runtime.LIBRARIES}
    judgement = judged(absent, {})
    assert outcome(judgement) is Outcome.NOT_APPLICABLE
    assert {check.outcome for check in judgement.checks} == {CheckOutcome.NOT_APPLICABLE}
    assert "libcudart.so.13, libcudart.so.12" in judgement.summary
    broken = {**absent, "libcudart.so.12": {"errors": {"libcudart.so.12": "/usr/lib/libcudart.so.12: file too short"}}}
    assert causes(judged(broken, {})) == {"runtime.unloadable": "failed"}  # there, and of no use to anybody


# --- endings ---------------------------------------------------------------------------------------------------------


def ended(ending: Ending, major: int = 13, **changes: Any) -> ChildResult:
    """Return a child that was inside cudaGetDeviceCount of a libcudart of MAJOR when it ended."""
    step = Step("cudaGetDeviceCount", 0.1, None)
    observed = {key: library(major)[key] for key in ("library", "runtime_version", "driver_version")}
    return result(ending, answer=None, steps=(step,), observed=observed, **changes)


@pytest.mark.parametrize(
    ("ending", "expected"), [(Ending.TIMED_OUT, Outcome.TIMED_OUT), (Ending.UNKILLABLE, Outcome.UNKILLABLE)]
)
def test_a_hang_ends_the_stage_and_nothing_more_is_asked(ending: Ending, expected: Outcome) -> None:
    child = ended(ending, 12)
    assert [name for name, _, _ in plan(package("cuda_v12", "cuda_v13"), answers={"cuda_v12": child})] == ["cuda_v12"]
    judgement = judged({"cuda_v12": child}, package("cuda_v12", "cuda_v13"))
    assert causes(judgement) == {"runtime.hang": "failed"}
    assert judgement.outcome is expected


def test_a_hang_is_not_eased_by_a_directory_that_works() -> None:
    judgement = judged({"cuda_v12": library(12), "cuda_v13": ended(Ending.TIMED_OUT)})
    assert causes(judgement) == {"runtime.hang": "failed"}


@pytest.mark.parametrize("ending", [Ending.SIGNALLED, Ending.EXITED, Ending.NO_ANSWER])
def test_a_crash_in_one_directory_is_a_warning_while_another_works(ending: Ending) -> None:
    child = ended(ending, 12, signal=11, exit_code=0)
    names = [name for name, _, _ in plan(package("cuda_v12", "cuda_v13"), answers={"cuda_v12": child})]
    assert names == ["cuda_v12", "cuda_v13"]
    assert causes(judged({"cuda_v12": child, "cuda_v13": library()})) == {"runtime.crash": "warned"}
    assert causes(judged({"cuda_v12": child})) == {"runtime.crash": "failed"}


@pytest.mark.parametrize(
    "child",
    [result(Ending.NOT_SPAWNED), result(Ending.EXITED, exit_code=1, stderr="Traceback (most recent call last):\n")],
    ids=["not spawned", "traceback"],
)
def test_a_defect_of_the_gate_is_never_the_hosts(child: ChildResult) -> None:
    judgement = judged({"cuda_v13": child})
    assert judgement.outcome is Outcome.PROBE_ERROR
    assert causes(judgement) == {}


# --- struct cudaDeviceProp -------------------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=255),
    st.integers(0, 2**64 - 1),
    st.tuples(st.integers(0, 99), st.integers(0, 9)),
    st.tuples(st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 31)),
)
def test_what_was_packed_is_read(
    major: int, name: str, memory: int, cc: tuple[int, int], pci: tuple[int, int, int]
) -> None:
    address = f"{pci[0]:04x}:{pci[1]:02x}:{pci[2]:02x}.0"
    device = {**DEVICE, "name": name, "total_memory": memory, "cc": list(cc), "pci": address}
    read = decode(packed(major, device), major)
    assert read is not None
    assert {key: read[key] for key in ("name", "uuid", "pci", "cc", "total_memory", "sm_count")} == {
        key: device[key] for key in ("name", "uuid", "pci", "cc", "total_memory", "sm_count")
    }
    assert read["overflow"] == 0


@given(st.binary(max_size=4096), st.integers(0, 20))
def test_any_bytes_decode_or_have_no_layout(raw: bytes, major: int) -> None:
    read = decode(raw, major)
    assert (read is None) == (major not in LAYOUTS)
    assert read is None or read["overflow"] == max(0, len(raw) - LAYOUTS[major].size)


def test_poison_reads_as_the_garbage_that_ollama_shows() -> None:
    read = decode(b"", 12)
    assert read is not None
    assert read["cc"] == [int.from_bytes(bytes([POISON] * 4), "little", signed=True)] * 2
    assert any(text.startswith("PCI address eeeeeeee:eeeeeeee") for text in differences(read, DEVICE))


@pytest.mark.parametrize(("number", "text"), [(13000, "13.0"), (12080, "12.8"), (None, "?")])
def test_versions_in_words(number: int | None, text: str) -> None:
    assert words(number) == text


# --- hostile input ---------------------------------------------------------------------------------------------------

STATE = {
    "package": package("cuda_v12", "cuda_v13"),
    "driver": DRIVER,
    "seen": {"cuda_v12": library(12), "cuda_v13": library(13)},
}


@given(mutated(STATE))
def test_hostile_observations_never_raise(state: dict[str, Any]) -> None:
    seen = state.get("seen") if isinstance(state.get("seen"), dict) else {}
    answers = {str(name): result(answer=answer) for name, answer in (seen or {}).items()}
    is_sound(judged(answers, state.get("package") or {}, state.get("driver") or {}))


@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_value_at_all_never_raises(seen: Any, install: Any, driver: Any) -> None:
    prior = {
        "package": record("package", Outcome.PASSED, facts=install),
        "driver": record("driver", Outcome.PASSED, facts=driver),
    }
    child = result(answer=seen)
    names = ("libcudart.so.13", "libcudart.so.12", "cuda_v12")
    is_sound(runtime.judge(StageInput(context(), dict.fromkeys(names, child), prior, 20.0)))
    runtime.plan(context(), prior, {"libcudart.so.13": child})
