"""Stage 08: which libcudart is asked, in which environment, with and without an Ollama."""

from __future__ import annotations

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from pytest_gpudiscovery.stages import runtime
from tests.stages.runtime_answers import LIB, causes, directory, judged, library, outcome, package, plan

# --- which libraries are asked, and how ------------------------------------------------------------------------------


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
