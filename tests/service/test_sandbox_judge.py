"""Stage 02 over a service: what its sandbox, its device cgroup and its variables mean, as judged from plain facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.model import Check, CheckOutcome, Kind, Outcome
from pytest_gpudiscovery.service import sandbox
from pytest_gpudiscovery.stages import service_sandbox
from pytest_gpudiscovery.stages.service import SPEC
from pytest_gpudiscovery.unit_files import Unit, service_section
from tests import fakes
from tests.stages import hosts
from tests.stages.test_service import OLLAMA

DEVICES = {"nvidia": [195], "nvidiactl": [195], "nvidia-uvm": [238], "mem": [1]}
NODES = [
    {"path": "/dev/nvidiactl", "major": 195, "minor": 255},
    {"path": "/dev/nvidia0", "major": 195, "minor": 0},
    {"path": "/dev/nvidia-uvm", "major": 238, "minor": 0},
]
SEEN: dict[str, Any] = {"nodes": NODES, "devices": DEVICES, "gpus": [], "machine": "x86_64"}


def service(text: str) -> dict[str, Any]:
    unit = Unit(
        "ollama.service", ("/etc/systemd/system/ollama.service",), tuple(service_section(f"[Service]\n{text}\n"))
    )
    return {**sandbox.facts(unit), "applied": False, "running": None}


def judge(given: dict[str, Any], **keywords: Any) -> list[Check]:
    env, caller, package = (keywords.get(name, {}) for name in ("env", "caller", "package"))
    return service_sandbox.judge(SEEN, given, env, caller, package)


def causes(checks: list[Check]) -> list[str]:
    return [check.finding.cause for check in checks if check.finding is not None]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", None),
        ("PrivateDevices=yes", "service.devices.private"),
        ("PrivateDevices=no", None),
        ("DevicePolicy=closed", "service.devices.not_allowed"),
        ("DevicePolicy=strict\nDeviceAllow=char-nvidia* rw", None),
        ("DevicePolicy=auto", None),
        ("DeviceAllow=/dev/nvidia0 rw", "service.devices.not_allowed"),
        ("DeviceAllow=/dev/nvidia0 rw\nDeviceAllow=/dev/nvidiactl\nDeviceAllow=/dev/nvidia-uvm rwm", None),
        ("DeviceAllow=char-nvidia rw", "service.devices.not_allowed"),  # nvidia-uvm has a major of its own
        ("DeviceAllow=char-nvidia rw\nDeviceAllow=char-nvidia-uvm rw", None),
        ("DeviceAllow=char-195 rw\nDeviceAllow=char-238 rw", None),
        ("DeviceAllow=char-nvidia-frontend rw\nDeviceAllow=char-nvidia-uvm rw", "service.devices.not_allowed"),
        ("DeviceAllow=char-nvidia* r", "service.devices.not_allowed"),
        ("DeviceAllow=char-* rw", None),
        ("DeviceAllow=char-nvidia* rw\nDeviceAllow=", None),  # reset: no list at all
        ("RestrictAddressFamilies=AF_UNIX AF_INET6", "service.sandbox.no_inet"),
        ("RestrictAddressFamilies=AF_UNIX AF_INET", None),
        ("RestrictAddressFamilies=~AF_INET", "service.sandbox.no_inet"),
        ("RestrictAddressFamilies=~AF_PACKET", None),
        ("RestrictAddressFamilies=none", "service.sandbox.no_inet"),
        ("IPAddressDeny=any", "service.sandbox.loopback_denied"),
        ("IPAddressDeny=any\nIPAddressAllow=localhost", None),
        ("IPAddressDeny=any\nIPAddressAllow=127.0.0.0/8 ::1", None),
        ("IPAddressDeny=127.0.0.1", "service.sandbox.loopback_denied"),
        ("IPAddressDeny=0.0.0.0/0", "service.sandbox.loopback_denied"),
        ("IPAddressDeny=10.0.0.0/8 rubbish", None),
        ("ProcSubset=pid", "service.sandbox.proc_hidden"),
        ("PrivateUsers=yes", "service.sandbox.private_users"),
    ],
)
def test_a_setting_is_judged(text: str, cause: str | None) -> None:
    checks = judge(service(text))
    assert causes(checks) == ([cause] if cause else [])
    assert {check.prerequisite for check in checks} == set(service_sandbox.ROWS)


def test_without_a_service_the_rows_do_not_apply() -> None:
    checks = judge({})
    assert {check.outcome for check in checks} == {CheckOutcome.NOT_APPLICABLE}
    assert [check.prerequisite for check in checks] == list(service_sandbox.ROWS)


def test_loopback_matters_less_to_era_c() -> None:
    for era, outcome in (("B", CheckOutcome.FAILED), ("C", CheckOutcome.WARNED)):
        checks = judge(service("IPAddressDeny=any"), package={"era": era})
        assert next(check.outcome for check in checks if check.prerequisite == "P112") is outcome


def running(*allowed: bool | None, why: str | None = None) -> dict[str, Any]:
    nodes = [{**node, "allowed": answer} for node, answer in zip(NODES, allowed, strict=True)]
    return {"pid": 7, "active": "active", "devices": {"by": ["an eBPF program"], "why": why, "nodes": nodes}}


def test_a_cgroup_that_denies_now_is_found_although_the_unit_allows() -> None:
    checks = judge({**service("DeviceAllow=char-nvidia* rw"), "running": running(True, False, True)})
    (check,) = (check for check in checks if check.prerequisite == "P111")
    assert check.outcome is CheckOutcome.FAILED
    assert "PID 7 denies /dev/nvidia0" in check.reason


def test_what_a_processs_cgroup_does_not_tell_is_open() -> None:
    given = {"process": {"pid": 7, "state": "S (sleeping)"}, "running": running(None, True, True, why="EPERM")}
    (check,) = (check for check in judge(given) if check.prerequisite == "P111")
    assert (check.outcome, check.kind) == (CheckOutcome.UNKNOWN, Kind.BLOCKING)
    assert judge({**given, "running": running(True, True, True)})[0].outcome is CheckOutcome.PASSED


def test_a_process_that_does_not_run_is_said() -> None:
    given = {"process": {"pid": 7, "state": "D (disk sleep)"}, "running": running(True, True, True)}
    assert causes(judge(given)) == ["service.process.stuck"]


@pytest.mark.parametrize(
    ("env", "caller", "cause"),
    [
        ({"A": "1", "HOME": "/y"}, {"B": "2", "HOME": "/x"}, "service.differs.environment"),
        ({"HOME": "/x", "A": "1"}, {"HOME": "/x"}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, {"HOME": "/x"}, "service.differs.outcome"),
        ({}, {"CUDA_VISIBLE_DEVICES": "-1"}, "service.differs.outcome"),
        ({"OLLAMA_LLM_LIBRARY": "cpu"}, {"HOME": "/x"}, "service.differs.outcome"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, {"CUDA_VISIBLE_DEVICES": "-1"}, None),
    ],
)
def test_the_callers_shell_is_compared(env: dict[str, str], caller: dict[str, str], cause: str | None) -> None:
    checks = judge({}, env=env, caller=caller, package=OLLAMA)
    assert causes(checks) == ([cause] if cause else [])
    (check,) = (check for check in checks if check.prerequisite == "P114")
    assert check.outcome is CheckOutcome.PASSED  # a note: what blocks has a row of its own
    if cause == "service.differs.outcome" and check.finding is not None:
        assert ("the service fails" if env else "your shell fails") in check.finding.summary


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("MemoryMax=128M", "service.memory.limit"),
        ("MemoryMax=1G", "service.memory.low"),
        ("MemoryMax=16G", None),
        ("MemoryMax=50%", None),
        ("TasksMax=20", "service.pids.few"),
        ("CPUQuota=20%", "service.cpu.quota"),
        ("CPUQuota=400%", None),
    ],
)
def test_resources_of_the_unit_count_where_they_could_not_be_applied(text: str, cause: str | None) -> None:
    context = hosts.context(hosts.h100(), service=service(text))
    prior = {"package": fakes.record("package", Outcome.PASSED, facts=OLLAMA)}
    said = hosts.conclusion(SPEC, context, prior)
    found = [name for name in hosts.causes(said) if not name.startswith(("service.observe", "service.differs"))]
    assert found == ([cause] if cause else [])


def test_the_private_data_of_a_unit_is_not_in_its_facts(tmp_path: Path) -> None:
    given = service("Environment=OLLAMA_API_KEY=hunter2\nLoadCredential=x:/y")
    assert "hunter2" not in str(given)
