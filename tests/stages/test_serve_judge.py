"""What a server's log says, and the judgement over it, healthy, failing and hostile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from pytest_gpudiscovery.stages import serve, serve_log
from pytest_gpudiscovery.stages.spec import Judgement, StageInput
from pytest_gpudiscovery.supervise.types import ChildResult, Ending
from tests.fakes import context, record, result
from tests.stages.hostile import ANYTHING, is_sound, mutated
from tests.stages.server_logs import (
    COMPUTE_B,
    CPU,
    CPU_LINE,
    DISCOVERING,
    FAILURE,
    HEALTHY_B,
    HEALTHY_C,
    LISTENING,
    LOW_VRAM,
    UUID,
)

GPU = {"ordinal": 0, "uuid": UUID, "pci": "0000:00:06.0", "name": "NVIDIA H100 80GB HBM3"}
PACKAGE = {"binary": "/usr/local/bin/ollama", "lib_dir": "/usr/local/lib/ollama", "gpu_dirs": [{}, {}]}
SEEN: dict[str, Any] = {
    "port": 45222,
    "argv": ["/usr/local/bin/ollama", "serve"],
    "limit_s": 90.0,
    "reason": None,
    "exit": None,
    "seconds": 0.2,
    "dead": True,
    "by_itself": True,
    "pid": 4711,
    "lines": HEALTHY_B,
    "dropped": 0,
    "before": [{"pid": 9, "name": "ollama", "start": 100}],
    "after": [{"pid": 9, "name": "ollama", "start": 100}],
    "left": {"directory": False, "port": False},
}


def judged(seen: dict[str, Any] | None = None, child: ChildResult | None = None, **facts: Any) -> Judgement:
    """Return the judgement over SEEN, or over CHILD."""
    prior = {
        "package": record("package", Outcome.PASSED, facts=facts.get("package", PACKAGE)),
        "driver": record("driver", Outcome.PASSED, facts={"gpus": facts.get("gpus", [GPU])}),
        "bootstrap": record("bootstrap", Outcome.PASSED, facts={"kept": facts.get("kept", [])}),
    }
    child = child or result(answer=seen if seen is not None else SEEN)
    return serve.judge(StageInput(context(), {"server": child}, prior, 120.0))


def causes(judgement: Judgement) -> list[str]:
    return [check.finding.cause for check in judgement.checks if check.finding is not None]


def reason(judgement: Judgement) -> str:
    finding = next(check.finding for check in judgement.checks if check.finding is not None)
    return finding.summary + finding.detail


@pytest.mark.parametrize(("lines", "version"), [(HEALTHY_B, "0.16.3"), (HEALTHY_C, "0.32.15")])
def test_a_healthy_log_tells_its_devices(lines: list[str], version: str) -> None:
    log = serve_log.parse(lines)
    assert (log.version, log.cpu, log.reasons) == (version, False, ())
    (device,) = log.devices
    assert (device.directory, device.library, device.compute, device.driver) == ("cuda_v13", "CUDA", (9, 0), (13, 0))
    assert device.total == int(float((log.total_vram or "").split()[0]) * 2**30)
    assert set(log.directories) == {"cuda_v12", "cuda_v13"}


def test_era_c_tells_its_id_before_it_was_renumbered() -> None:
    line = HEALTHY_C[4].replace("id=0 filter_id=0", "id=0 filter_id=3")
    assert serve_log.parse([line]).devices[0].id == "3"
    assert serve_log.parse([COMPUTE_B]).devices[0].id == UUID


def test_the_processor_is_no_device_and_the_reason_is_kept() -> None:
    log = serve_log.parse(CPU)
    assert (log.devices, log.cpu, log.total_vram) == ((), True, "0 B")
    assert log.reasons == ("cuda_v12: failed to finish discovery before timeout",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            'time=x level=DEBUG source=runner.go:160 msg="filtering device which didn\'t fully initialize" '
            f"id={UUID} libdir=/usr/lib/ollama/cuda_v12 pci_id=0000:00:06.0 library=CUDA",
            "cuda_v12: 0000:00:06.0 did not come through the second pass",
        ),
        (
            'time=x level=INFO source=runner.go:470 msg="runner exited" OLLAMA_LIBRARY_PATH="[/l /l/cuda_v12]" code=2',
            "cuda_v12: runner exited with 2",
        ),
        ("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", "no CUDA-capable device"),
        (
            'time=x level=WARN source=cuda_compat.go:65 msg="NVIDIA driver too old" device="NVIDIA H100 80GB HBM3" '
            'compute=9.0 driver=535 required_driver="550 or newer"',
            "NVIDIA driver too old device=NVIDIA H100 80GB HBM3 compute=9.0 driver=535 required_driver=550 or newer",
        ),
    ],
)
def test_each_line_that_explains_is_kept_in_short(line: str, said: str) -> None:
    (found,) = serve_log.parse([line]).reasons
    assert said in found


def test_quoted_values_are_read_as_go_writes_them() -> None:
    assert serve_log.fields(r'time=1 msg="a \"b\"\nc" x=1 y=""') == {"time": "1", "msg": 'a "b"\nc', "x": "1", "y": ""}
    assert serve_log.fields("ggml_cuda_init: time=1") == {}


@pytest.mark.parametrize(
    ("text", "count"), [("79.6 GiB", 85469849190), ("0 B", 0), ("512 MiB", 2**29), ("much", 0), ("1 YiB", 0), ("", 0)]
)
def test_sizes(text: str, count: int) -> None:
    assert serve_log.size(text) == count


@given(st.lists(st.text() | st.sampled_from([*HEALTHY_B, *CPU]), max_size=20))
def test_no_line_is_an_error(lines: list[str]) -> None:
    log = serve_log.parse(lines)
    assert len(log.devices) <= len(lines)
    assert all(len(text) < 300 for text in log.reasons)


def test_a_server_that_computes_on_the_gpu_passes() -> None:
    judgement = judged()
    assert (causes(judgement), judgement.outcome) == ([], None)
    assert judgement.facts["devices"][0]["pci"] == "0000:00:06.0"
    assert judgement.summary == "1 x NVIDIA H100 80GB HBM3 (cuda_v13) in 0.2 s, total_vram 79.6 GiB"
    # What passed keeps what an operator would have seen, not the whole trace.
    assert all("level=DEBUG" not in line for line in judgement.facts["log"])


def test_the_processor_alone_fails_with_the_reason_that_the_log_gives() -> None:
    judgement = judged({**SEEN, "lines": CPU})
    assert causes(judgement) == ["serve.cpu"]
    assert "failed to finish discovery before timeout" in reason(judgement)
    assert judgement.facts["log"] == CPU


def test_the_processor_alone_though_its_children_showed_gpus() -> None:
    lines = [LISTENING, DISCOVERING, CPU_LINE, LOW_VRAM]
    assert causes(judged({**SEEN, "lines": lines}, kept=[{"pci": "0000:00:06.0"}])) == ["serve.cpu_alone"]
    # A line that explains it is the better answer.
    assert causes(judged({**SEEN, "lines": CPU}, kept=[{"pci": "0000:00:06.0"}])) == ["serve.cpu"]


def test_fewer_gpus_than_the_driver_shows() -> None:
    other = {**GPU, "ordinal": 1, "uuid": UUID.replace("0000-4", "1111-4"), "pci": "0000:00:07.0"}
    judgement = judged(gpus=[GPU, other])
    assert causes(judgement) == ["serve.fewer"]
    assert "0000:00:07.0" in reason(judgement)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"reason": "spawn", "problem": "ENOEXEC", "lines": []}, "serve.spawn"),
        ({"reason": "exited", "exit": 1, "lines": ["Error: listen tcp: bind: permission denied"]}, "serve.exits"),
        ({"reason": "timeout", "listens": False, "lines": []}, "serve.silent"),
        ({"reason": "timeout", "listens": True, "lines": [LISTENING, DISCOVERING]}, "serve.hang"),
        ({"reason": "timeout", "listens": False, "lines": HEALTHY_B[:8]}, "serve.hang"),
    ],
)
def test_a_server_that_says_nothing_of_devices(changes: dict[str, Any], cause: str) -> None:
    judgement = judged({**SEEN, **changes})
    assert causes(judgement) == [cause]
    assert judgement.outcome is (Outcome.TIMED_OUT if changes["reason"] == "timeout" else None)


@pytest.mark.parametrize(
    "changes",
    [
        {"left": {"directory": True, "port": False}},
        {"left": {"directory": False, "port": True}},
        {"dead": False},
    ],
)
def test_what_is_left_behind_is_said(changes: dict[str, Any]) -> None:
    judgement = judged({**SEEN, **changes})
    assert causes(judgement) == ["serve.leftover"]
    assert (judgement.outcome is Outcome.UNKILLABLE) == ("dead" in changes)


def test_a_service_that_ended_meanwhile_is_said_and_a_new_one_is_not() -> None:
    again = {"pid": 9, "name": "ollama", "start": 200}
    assert causes(judged({**SEEN, "after": []})) == ["serve.service_ended"]
    assert causes(judged({**SEEN, "after": [again]})) == ["serve.service_ended"]  # the same number, another process
    assert causes(judged({**SEEN, "after": [*SEEN["before"], {**again, "pid": 10}]})) == []


def test_without_an_ollama_nothing_is_asked() -> None:
    judgement = judged(package={})
    assert not judgement.applicable
    assert {check.outcome for check in judgement.checks} == {CheckOutcome.NOT_APPLICABLE}


def test_a_probe_that_does_not_come_back() -> None:
    assert causes(judged(child=result(Ending.TIMED_OUT))) == ["serve.asker"]
    assert judged(child=result(Ending.UNKILLABLE)).outcome is Outcome.UNKILLABLE
    assert judged(child=result(Ending.NO_ANSWER)).outcome is Outcome.PROBE_ERROR


@given(mutated(SEEN))
@settings(max_examples=200, deadline=None)
def test_whatever_is_seen_is_judged(seen: dict[str, Any]) -> None:
    is_sound(judged(seen))


@given(ANYTHING, ANYTHING)
@settings(max_examples=50, deadline=None)
def test_whatever_the_stages_before_left_is_judged(gpus: Any, kept: Any) -> None:
    is_sound(judged(gpus=gpus, kept=kept))


def test_the_failure_line_is_no_device() -> None:
    assert serve_log.parse([FAILURE]).devices == ()
