"""Stage 09 judged over observations: which cause a problem has, GPUs and drivers, hostile answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.model import CheckOutcome, Outcome, Step
from pytest_gpudiscovery.stages import closure, closure_gpu, closure_kernels, closure_library
from pytest_gpudiscovery.stages.spec import Judgement, StageInput, deadline_of
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.fakes import context, record, result
from tests.stages.hostile import ANYTHING, is_sound, mutated

LIB = "/opt/lib/ollama"
V12 = f"{LIB}/cuda_v12"
FILES = {
    "libggml-cuda.so": V12,
    "libggml-base.so.0": LIB,
    "libcudart.so.12": V12,
    "libcublas.so.12": V12,
    "libcuda.so.1": "/usr/lib",
}


def thing(name: str, place: str) -> dict[str, Any]:
    return {
        "path": f"{place}/{name}",
        "real_path": f"{place}/{name}",
        "soname": name,
        "rule": "LD_LIBRARY_PATH",
        "size": 1,
        "file_system": "ext4",
        "may_block": False,
        "truncated": False,
        "outside": not place.startswith(LIB),
    }


def child(**changes: Any) -> dict[str, Any]:
    names = [{"name": name, "path": f"{place}/{name}", "requester": "", "rule": ""} for name, place in FILES.items()]
    base: dict[str, Any] = {
        "exe": "/opt/bin/ollama",
        "library": f"{V12}/libggml-cuda.so",
        "outcome": "loads",
        "message": "",
        "missing": [],
        "symbols_checked": 100,
        "problems": [],
        "objects": [thing(name, place) for name, place in FILES.items()],
        "names": names,
        "duplicates": [],
    }
    return {**base, **changes}


def verdict(how: str = "native", **changes: Any) -> dict[str, Any]:
    base = {
        "how": how,
        "target": "sm_90",
        "reason": "sm_90 runs on compute capability 9.0",
        "needs_cuda": None,
        "jit_modules": 0,
        "uncovered": 0,
        "eager_stall": False,
        "runs": how in ("native", "jit"),
    }
    return {"cc": [9, 0], "verdict": {**base, **changes}, "driver_floor": None}


def answer(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "server": None,
        "backend_path": None,
        "models": {"child": child()},
        "shipped": ["libggml-base.so.0", "libcudart.so.12", "libcublas.so.12"],
        "fatbins": [
            {
                "path": f"{V12}/libggml-cuda.so",
                "problem": "",
                "targets": ["sm_90"],
                "images": [{"kind": "elf", "sm": 90}],
                "architectures": [70, 90],
                "verdicts": [verdict()],
            }
        ],
        "jit_compiler": {"outcome": "loads", "message": ""},
        "jit_cache": {"path": "/x", "disabled": False, "writable": True},
    }
    return {**base, **changes}


PACKAGE = {
    "binary": "/opt/bin/ollama",
    "lib_dir": LIB,
    "gpu_dirs": [{"name": "cuda_v12", "path": V12, "backend": f"{V12}/libggml-cuda.so", "cudart": None}],
}
KERNEL = {"gpus": [{"pci": "0000:00:06.0", "device_id": "2330"}], "module_version": "580.159.04"}


def judged(seen: Any, package: Any = PACKAGE, kernel: Any = KERNEL, **changes: Any) -> Judgement:
    prior = {
        "package": record("package", Outcome.PASSED, facts=package),
        "kernel": record("kernel", Outcome.PASSED, facts=kernel),
    }
    child_result = seen if isinstance(seen, ChildResult) else result(answer=seen)
    return closure.judge(StageInput(context(**changes), {"cuda_v12": child_result}, prior, 5.0))


def causes(judgement: Judgement) -> dict[str, str]:
    return {check.finding.cause: check.outcome.value for check in judgement.checks if check.finding}


def test_the_healthy_answer_is_healthy() -> None:
    judgement = judged(answer())
    assert causes(judgement) == {}
    assert judgement.summary == "cuda_v12: loads, native; compute capability 9.0"


# --- one problem, one cause ------------------------------------------------------------------------------------------

OPEN = "cannot open shared object file: No such file or directory"
PROBLEMS: list[tuple[str, str, str, str, str]] = [
    ("file", "error", f"libcuda.so.1: {OPEN}", "libcuda.so.1", "closure.libcuda.missing"),
    ("file", "error", f"libcublasLt.so.12: {OPEN}", "libcublasLt.so.12", "closure.toolkit.missing"),
    ("file", "error", f"libggml-base.so: {OPEN}", "libggml-base.so", "closure.base.missing"),
    ("file", "error", f"libgomp.so.1: {OPEN}", "libgomp.so.1", "closure.dependency.missing"),
    ("file", "error", "libx.so: wrong ELF class: ELFCLASS32", "libx.so", "closure.object.wrong_class"),
    ("file", "error", "/x/libx.so: file too short", "/x/libx.so", "closure.object.unusable"),
    ("file", "error", "/x/libx.so: cannot read file data: Is a directory", "/x/libx.so", "closure.object.unusable"),
    ("file", "error", "/x/libx.so: object file has no dynamic section", "/x/libx.so", "closure.object.unusable"),
    ("file", "hangs", "/x/libx.so: open() of a FIFO that nobody writes to blocks", "", "closure.object.blocks"),
    ("relocation", "sigbus", "/x/libx.so: shorter than its segments", "/x/libx.so", "closure.object.truncated"),
    ("relocation", "error", "/x/libx.so: cannot allocate memory in static TLS block", "", "closure.refused"),
    ("isa", "error", "/x/libx.so: CPU ISA level is lower than required", "/x/libx.so", "closure.refused"),
    ("process", "no start", "the program does not start: x", "", "closure.start.impossible"),
    ("symbol", "error", "/x: undefined symbol: cuMemCreate", "/x", "closure.libcuda.incomplete"),
    ("symbol", "error", "/x: undefined symbol: ggml_new", "/x", "closure.symbol.missing"),
    ("symbol", "error", "/x: undefined symbol: cudaFree, version libcudart.so.12", "/x", "closure.symbol.missing"),
    (
        "version",
        "error",
        "/lib/libc.so.6: version `GLIBC_2.38' not found (required by /x)",
        "",
        "closure.version.missing",
    ),
    ("symbol", "abort", "/x: Inconsistency detected by ld.so", "/x", "closure.loader.aborts"),
    ("unheard of", "unheard of", "something else", "", "closure.refused"),
]


@pytest.mark.parametrize(("kind", "outcome", "text", "subject", "cause"), PROBLEMS, ids=[row[2] for row in PROBLEMS])
def test_a_problem_has_a_cause(kind: str, outcome: str, text: str, subject: str, cause: str) -> None:
    problem = {"kind": kind, "outcome": outcome, "text": text, "subject": subject, "requester": "/x", "follows": False}
    judgement = judged(answer(models={"child": child(outcome=outcome, message=text, problems=[problem])}))
    assert causes(judgement) == {cause: "failed"}
    (finding,) = [check.finding for check in judgement.checks if check.finding]
    assert text in finding.detail, "ld.so's own words"
    assert "?" not in finding.summary


@pytest.mark.parametrize(
    ("name", "symbol", "cause"),
    [
        ("libcudart.so.12", "cudaFree, version libcudart.so.12", "closure.shim.incomplete"),
        ("libcudart.so.12", "__cudaRegisterFatBinary", "closure.shim.incomplete"),
        ("libcublas.so.12", "cublasGemmEx, version libcublas.so.12", "closure.shim.cublas"),
        ("libcublas.so.12", "cublasGemmEx", "closure.shim.cublas"),
    ],
)
def test_a_symbol_of_a_foreign_library_is_the_shims(name: str, symbol: str, cause: str) -> None:
    text = f"/x: undefined symbol: {symbol}"
    problem = {"kind": "symbol", "outcome": "error", "text": text, "subject": "/x", "requester": "/x", "follows": False}
    objects = [thing(known, "/shim" if known == name else place) for known, place in FILES.items()]
    seen = child(outcome="error", message=text, problems=[problem], objects=objects)
    assert causes(judged(answer(models={"child": seen})))[cause] == "failed"


def test_consequences_of_a_missing_file_are_not_named() -> None:
    missing = {"kind": "file", "outcome": "error", "text": f"libcudart.so.12: {OPEN}", "subject": "", "requester": ""}
    after = {**missing, "kind": "symbol", "text": "x: undefined symbol: cudaFree", "follows": True}
    seen = child(outcome="error", message=missing["text"], problems=[{**missing, "follows": False}, after])
    assert causes(judged(answer(models={"child": seen}))) == {"closure.toolkit.missing": "failed"}


WARNINGS: list[tuple[str, dict[str, Any]]] = [
    ("closure.duplicate", {"duplicates": [[f"{V12}/libcudart.so.12", "/usr/lib/libcudart.so.13"]]}),
    ("closure.file_system", {"objects": [{**thing("libggml-cuda.so", V12), "may_block": True, "file_system": "nfs4"}]}),
    ("closure.foreign.library", {"objects": [thing("libcudart.so.12", "/usr/lib")]}),
    ("closure.foreign.cublas", {"objects": [thing("libcublas.so.12", "/usr/lib")]}),
]


@pytest.mark.parametrize(("cause", "changes"), WARNINGS, ids=[row[0] for row in WARNINGS])
def test_a_risk_is_a_warning(cause: str, changes: dict[str, Any]) -> None:
    judgement = judged(answer(models={"child": child(**changes)}))
    assert causes(judgement) == {cause: "warned"}


def test_a_distributions_cuda_is_not_foreign() -> None:
    """A package that ships no CUDA library of its own takes the system's: nothing stands before anything."""
    objects = [thing("libcudart.so.12", "/usr/lib"), thing("libcublas.so.12", "/usr/lib")]
    assert causes(judged(answer(models={"child": child(objects=objects)}, shipped=["libggml-base.so.0"]))) == {}


def test_the_drivers_floor() -> None:
    seen = answer()
    seen["fatbins"][0]["verdicts"][0]["driver_floor"] = [[550, 0], "compressed device code needs driver 550"]
    assert causes(judged(seen)) == {"closure.driver_floor": "failed"}


def test_cublas_without_code_is_a_warning() -> None:
    seen = answer()
    seen["fatbins"].append({**seen["fatbins"][0], "path": "/x/libcublas.so.12", "verdicts": [verdict("no image")]})
    assert causes(judged(seen)) == {"closure.kernels.library": "warned"}


@pytest.mark.parametrize("ending", [Ending.TIMED_OUT, Ending.UNKILLABLE])
def test_a_hang_is_named_with_its_step(ending: Ending) -> None:
    hung = result(ending, answer=None, steps=(Step("predict dlopen(x)", 0.1, None),), observed={"child": child()})
    judgement = judged(hung)
    assert causes(judgement) == {"closure.read_hang": "failed"}
    assert judgement.outcome in (Outcome.TIMED_OUT, Outcome.UNKILLABLE)
    assert judgement.checks[0].finding is not None
    assert judgement.checks[0].finding.summary == "predict dlopen(x) did not end within 5 s"


@pytest.mark.parametrize("ending", [Ending.NOT_SPAWNED, Ending.EXITED, Ending.SIGNALLED, Ending.NO_ANSWER])
def test_a_defect_of_the_gate_is_never_the_hosts(ending: Ending) -> None:
    judgement = judged(result(ending, answer=None))
    assert judgement.outcome is Outcome.PROBE_ERROR
    assert causes(judgement) == {}


# --- which GPU, which driver -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "cc"),
    [("2330", (9, 0)), ("2335", (9, 0)), ("0x2342", (9, 0)), ("2684", None), ("", None), (None, None), ("23301", None)],
)
def test_the_pci_id_tells_the_compute_capability(device: Any, cc: Any) -> None:
    assert closure_gpu.cc_of_device(device) == cc


@pytest.mark.parametrize(
    ("version", "cuda"),
    [
        ("580.159.04", (13, 0)),
        ("535.54.03", (12, 2)),
        ("550.90.07", (12, 4)),
        ("538.1", (12, 2)),
        ("390.157", None),
        ("610.1", None),
        ("", None),
        (None, None),
        ("abc", None),
    ],
)
def test_the_modules_version_tells_the_cuda_version(version: Any, cuda: Any) -> None:
    assert closure_gpu.cuda_of_driver(version) == cuda


def test_the_nearest_witness_counts() -> None:
    driver = {"gpus": [{"cc": [8, 9]}], "driver_version_cuda": 12080}
    nvml = {"gpus": [{"cc": [8, 6]}], "cuda_driver": 12040}
    profile = {"cc": ["7.5", "9.0"]}
    first = closure_gpu.wanted(KERNEL, nvml, driver, profile)
    assert (first.ccs, first.driver_cuda, first.driver) == (((8, 9),), (12, 8), (580, 159))
    assert closure_gpu.wanted(KERNEL, nvml, {}, profile).ccs == ((8, 6),)
    assert closure_gpu.wanted(KERNEL, {}, {}, profile).driver_cuda == (13, 0)
    last = closure_gpu.wanted({}, {}, {}, profile)
    assert (last.ccs, last.cc_source, last.driver_cuda) == (((7, 5),), "the profile", None)


def test_which_directories_this_ollama_looks_into_is_said_by_stage_01() -> None:
    assert [closure.kept(entry) for entry in ({"kept": True}, {"kept": False}, {})] == [True, False, True]


def test_only_what_decides_travels() -> None:
    """The service's secrets have no business in a child or in a report."""
    env = {"LD_LIBRARY_PATH": "/x", "CUDA_MODULE_LOADING": "EAGER", "TOKEN": "secret", "OLLAMA_API_KEY": "secret"}
    prior = {"package": record("package", Outcome.PASSED, facts=PACKAGE)}
    planned = closure.plan(context(env=env), prior, {})
    assert planned is not None
    assert "secret" not in str(planned[1].request)
    assert planned[1].request["env"] == {"LD_LIBRARY_PATH": "/x", "CUDA_MODULE_LOADING": "EAGER"}


# --- hostile input ---------------------------------------------------------------------------------------------------

BAD_PROBLEM = {"kind": "symbol", "outcome": "error", "text": "/x: undefined symbol: cudaFree", "subject": "/x"}
STATE = {
    "package": PACKAGE,
    "kernel": KERNEL,
    "seen": answer(models={"child": child(outcome="error", problems=[BAD_PROBLEM], duplicates=[["/a", "/b"]])}),
}


@settings(deadline=None)  # a loaded machine is no failure
@given(mutated(STATE))
def test_hostile_observations_never_raise(state: dict[str, Any]) -> None:
    is_sound(judged(state.get("seen"), state.get("package"), state.get("kernel")))


@settings(deadline=None)  # a loaded machine is no failure
@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_value_at_all_never_raises(seen: Any, package: Any, kernel: Any) -> None:
    is_sound(judged(result(answer=seen), copy.deepcopy(package), kernel))
    prior = {"package": record("package", Outcome.PASSED, facts=package)}
    closure.plan(context(), prior, {})


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_message_has_a_cause(text: str, outcome: str) -> None:
    for kind in ("symbol", "version", "file"):
        problem = {"kind": kind, "outcome": outcome, "text": f"/x: undefined symbol: {text}", "subject": text}
        assert closure_library.cause_of(problem, child()).startswith("closure.")


@pytest.mark.parametrize(("other", "outcome"), [("loads", None), ("error", Outcome.TIMED_OUT)])
def test_a_hang_in_one_of_two_directories(other: str, outcome: Outcome | None) -> None:
    """A dead file server below one directory does not stop an Ollama that has another one."""
    v13 = {"name": "cuda_v13", "path": f"{LIB}/cuda_v13", "backend": f"{LIB}/cuda_v13/libggml-cuda.so"}
    package = {**PACKAGE, "gpu_dirs": [*PACKAGE["gpu_dirs"], v13]}
    prior = {
        "package": record("package", Outcome.PASSED, facts=package),
        "kernel": record("kernel", Outcome.PASSED, facts=KERNEL),
    }
    # In a directory of CUDA 13 the libraries of 12 would be a fault of their own.
    names = [{"name": "libcuda.so.1", "path": "/usr/lib/libcuda.so.1"}]
    seen = answer(models={"child": child(names=names, outcome=other, message="" if other == "loads" else "no")})
    hung = result(Ending.TIMED_OUT, answer=None, steps=(Step("predict dlopen(x)", 0.1, None),))
    results = {"cuda_v12": hung, "cuda_v13": result(answer=seen)}
    judgement = closure.judge(StageInput(context(), results, prior, 5.0))
    assert causes(judgement)["closure.read_hang"] == ("warned" if other == "loads" else "failed")
    assert judgement.outcome is outcome
    asked = [closure.plan(context(), prior, {}), closure.plan(context(), prior, {"cuda_v12": hung})]
    assert [(planned[0], planned[1].deadline_s) for planned in asked if planned] == [
        ("cuda_v12", 5.0),
        ("cuda_v13", 5.0),
    ]


@pytest.mark.parametrize(("count", "whole"), [(0, 5.0), (1, 5.0), (3, 15.0), (11, 40.0)])
def test_each_of_many_directories_has_the_whole_time(count: int, whole: float) -> None:
    """On a slow disk eleven directories take their time; more than MOST_TURNS share that of eight."""
    (own,) = PACKAGE["gpu_dirs"]
    many = [{**own, "name": f"cuda_v{index}"} for index in range(count)]  # type: ignore[dict-item]
    prior = {"package": record("package", Outcome.PASSED, facts={**PACKAGE, "gpu_dirs": many})}
    planned = closure.plan(context(), prior, {})
    assert deadline_of(context(), closure.SPEC, prior) == whole
    assert planned is None or planned[1].deadline_s == 5.0


def test_an_ollama_that_looks_into_no_directory_finds_no_gpu() -> None:
    """Everything loads, and none of it is looked at: no green."""
    (own,) = PACKAGE["gpu_dirs"]
    skipped = {**PACKAGE, "gpu_dirs": [{**own, "kept": False, "skipped": "OLLAMA_LLM_LIBRARY=rocm"}]}  # type: ignore[dict-item]
    judgement = judged(answer(), skipped)
    (finding,) = [check.finding for check in judgement.checks if check.outcome is CheckOutcome.FAILED]
    assert finding is not None
    assert finding.cause == "closure.directory.none_kept"
    assert "OLLAMA_LLM_LIBRARY=rocm" in finding.summary


def test_the_file_that_keeps_the_program_from_starting_is_named_with_its_place() -> None:
    problem = {"kind": "file", "outcome": "sigbus", "text": "the program does not start: libggml-base.so.0: cut off"}
    child = {"library": f"{LIB}/cuda_v12/libggml-cuda.so", "outcome": "sigbus", "problems": [problem]}
    where = closure_library.Subject("cuda_v12", f"{LIB}/cuda_v12", LIB, ())
    (first, *_) = closure_library.judge_load({"models": {"child": child}}, where)
    assert first.finding is not None
    assert first.finding.summary.startswith("libggml-base.so.0 is cut off")
    assert f"'{LIB}/libggml-base.so.0'" in first.finding.next or f"{LIB}/libggml-base.so.0" in first.finding.next


def test_a_compiler_that_is_turned_off_runs_no_ptx() -> None:
    fatbins = [{**answer()["fatbins"][0], "verdicts": [verdict("jit")]}]
    wanted = closure_gpu.Wanted(((9, 0),), "measured", (13, 0))
    for env, expected in (({"CUDA_DISABLE_PTX_JIT": "1"}, True), ({"CUDA_DISABLE_PTX_JIT": "0"}, False), ({}, False)):
        checks = closure_kernels.judge_kernels(answer(fatbins=fatbins), wanted, env, "dir:cuda_v12")
        named = {check.finding.cause for check in checks if check.finding}
        assert ("closure.jit.disabled" in named) is expected
