"""Faults that the gate named wrongly when it met them first, on the simulated host."""

from __future__ import annotations

import os

import pytest

from tests.faults.gate import primary, run_gate, warnings


@pytest.mark.parametrize(
    ("text", "until", "verdict", "cause"),
    [
        ("h100:driver.name.empty", "enumeration", "degraded", "enumeration.name_differs"),
        # Two libggml-cuda.so of one directory show the device twice, and it is started twice in the second pass.
        ("h100-ollama:ollama.stray_top_cuda", "serve", "degraded", "package.stray.library"),
        ("h100-ollama:runner.zero_memory", "serve", "blocked", "serve.no_memory"),
        ("h100:libcuda.missing,env.nvidia_driver_capabilities", "kernel", "blocked", "kernel.user_space.capability"),
        # Said in 01 as a warning, and what the next stages fail of.
        ("h100-ollama:ollama.stray_libcuda", "runtime", "blocked", "package.stray.library"),
    ],
)
def test_it_is_named_now(text: str, until: str, verdict: str, cause: str) -> None:
    found = run_gate(text, until=until)
    assert found.verdict.value == verdict
    assert cause in (primary(found)[2] if verdict == "blocked" else warnings(found))


def test_an_xid_of_another_gpu_does_not_block() -> None:
    # A container reads the log of the whole machine; only root may read it.
    found = run_gate("h100:kernel.xid.foreign_gpu", until="driver")
    assert found.verdict.value == ("degraded" if os.geteuid() == 0 else "ready")
    assert ("kernel.log.other_gpu" in warnings(found)) == (os.geteuid() == 0)


def test_an_xid_of_another_gpu_hides_no_hang() -> None:
    found = run_gate("h100:kernel.xid.foreign_gpu,hang.alloc.poll", until="driver", hangs=True)
    assert (found.verdict.value, primary(found)) == ("blocked", ("driver", "timed_out", "driver.copy.hang"))
