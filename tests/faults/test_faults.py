"""Healthy simulated hosts, and hosts that are not what a profile says; the faults are in tests/matrix."""

from __future__ import annotations

import pytest

from tests.faults.gate import primary, run_gate, warnings


@pytest.mark.parametrize("host", ["h100", "h100x2", "h100-pcie", "h100-nvl", "h200x2", "h100-mig"])
def test_a_healthy_host_is_ready(host: str) -> None:
    found = run_gate(host)
    assert (found.verdict.value, warnings(found)) == ("ready", set())


@pytest.mark.parametrize("until", ["backend", "serve"])
@pytest.mark.parametrize("host", ["h100-ollama", "h100-ollama-c", "h100x2-ollama"])
def test_a_healthy_host_with_an_ollama_is_ready(host: str, until: str) -> None:
    found = run_gate(host, until=until)
    assert (found.verdict.value, warnings(found)) == ("ready", set())
    views = {"backend": {"ggml"}, "serve": {"ggml", "ollama"}}[until]
    assert all(views <= set(gpu["views"]) for gpu in found.gpus)


def test_a_run_without_a_target_is_complete_where_there_is_an_ollama() -> None:
    assert run_gate("h100-ollama", until=None).verdict.value == "ready"
    assert run_gate("h100", until=None).verdict.value == "blocked"


@pytest.mark.parametrize(("host", "cause"), [("none", "kernel.pci.none"), ("no-driver", "kernel.module.not_loaded")])
def test_a_host_without_gpu_or_driver_is_blocked_and_says_so(host: str, cause: str) -> None:
    found = run_gate(host)
    assert (found.verdict.value, primary(found)[0], primary(found)[2]) == ("blocked", "kernel", cause)


@pytest.mark.parametrize(
    ("fault", "profile", "cause"),
    [
        ("gpu.name", "h100", "enumeration.profile.name"),
        ("gpu.a100", "h100", "enumeration.profile.name"),
        ("gpu.memory", "h100-sxm", "enumeration.profile.memory"),
        ("gpu.sms", "h100-sxm", "enumeration.profile.sm_count"),
    ],
)
def test_a_host_that_is_not_what_the_profile_says_is_blocked(fault: str, profile: str, cause: str) -> None:
    found = run_gate(f"h100:{fault}", profile=profile)
    assert found.verdict.value == "blocked"
    assert primary(found)[0] == "enumeration"
    assert cause in warnings(found)
