"""Every fault of expected.txt on the simulated host: the stage, its outcome and the cause that is named first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.gate import primary, run_gate, warnings

ROOT = os.geteuid() == 0
HANGS = (".pause", ".spin", ".futex", ".hang", ".mute", ".garbage", ".module_loading_eager")
Row = tuple[str, str, str, str, str, str]


def rows() -> list[Row]:
    """Return the whole table; `runs_here` says which rows this user can run."""
    lines = (Path(__file__).parent / "expected.txt").read_text().splitlines()
    return [tuple(line.split()) for line in lines if line and not line.startswith("#")]  # type: ignore[misc]


def runs_here(row: Row) -> bool:
    """Whether this user can run ROW: only root can be root or make files for somebody else."""
    return ROOT or row[1] not in ("root", "dropped")


def asked(text: str) -> tuple[str, str, str]:
    """Return (host, fault, target) of TEXT, [HOST:]FAULT[@TARGET]; absent are h100 and runtime."""
    words, _, until = text.partition("@")
    host, colon, fault = words.partition(":")
    if not colon:
        host, fault = ("h100x2" if words.startswith("views.count") else "h100"), words
    return host, fault, until or "runtime"


@pytest.mark.parametrize("row", [row for row in rows() if runs_here(row)], ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_fault_is_named(row: Row) -> None:
    text, user, verdict, stage, outcome, cause = row
    host, fault, until = asked(text)
    slow = fault.startswith(("hang.", "shim.", "ctor.")) or fault.endswith(HANGS)
    nobody = user in ("nobody", "dropped") and ROOT
    found = run_gate(f"{host}:{fault}", as_nobody=nobody, until=until, hangs=slow)
    seen = (found.verdict.value, *primary(found))
    if stage == "-":
        assert seen == (verdict, "", "", ""), warnings(found)
        assert cause == "-" or cause in warnings(found)
    else:
        assert seen == (verdict, stage, outcome, cause)


def test_the_table_is_as_large_as_it_claims() -> None:
    assert len({row[0] for row in rows()}) >= 150
    left_out = [row for row in rows() if not runs_here(row)]
    assert all(row[1] in ("root", "dropped") for row in left_out)


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
