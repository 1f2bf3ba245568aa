"""08 runtime on simulated hosts with real children: libcudart of both majors, alone and in an Ollama's directories."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_gpudiscovery.model import Outcome
from pytest_gpudiscovery.outcome import conclude
from pytest_gpudiscovery.stages import driver, runtime
from pytest_gpudiscovery.stages.spec import StageInput
from tests.fakes import context, record
from tests.probes.native import host
from tests.stages import chain
from tests.stages.hosts import probe_all

FAULTS = [
    ("h100", "passed", None),
    ("h100x2", "passed", None),
    ("h100:cudart.12_only", "passed", None),
    ("h100:cudart.13_only", "passed", None),
    ("h100-cuda12", "passed", None),  # libcudart.so.13 is too new for it, libcudart.so.12 is not
    ("h100:driver.r470", "failed", "runtime.driver_too_old"),
    ("h100:cudart.13_only,runtime.newer_than_driver", "failed", "runtime.driver_too_old"),
    ("h100:runtime.count.35", "failed", "runtime.driver_too_old"),
    ("h100:runtime.count.100", "failed", "runtime.no_device"),
    ("h100:runtime.count.999", "failed", "runtime.error"),
    ("h100:cudart.13_only,runtime.properties.999", "failed", "runtime.error"),
    ("h100:runtime.layout.garbage", "failed", "runtime.properties_empty"),
    ("h100:cudart.13_only,runtime.layout.other=12", "failed", "runtime.layout"),
    ("h100:runtime.layout.other=12", "warned", "runtime.layout"),
    ("h100:cudart.lacks=cudaGetDeviceCount", "failed", "runtime.function_missing"),
    ("h100:cudart.empty", "failed", "runtime.unloadable"),
    ("h100:cudart.truncated", "crashed", "runtime.crash"),
    ("h100:crash.runtime.segv", "crashed", "runtime.crash"),
    ("h100:crash.properties.exit3", "crashed", "runtime.crash"),
]


@pytest.mark.parametrize(("text", "outcome", "cause"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_ends_in_its_outcome_and_cause(text: str, outcome: str, cause: str | None, tmp_path: Path) -> None:
    found = chain.run(text, tmp_path, driver, runtime)["runtime"]
    assert chain.causes(found) == ({cause} if cause else set())
    assert found.outcome.value == outcome


@pytest.mark.parametrize("text", ["h100:hang.runtime.sleep", "h100:hang.properties.futex", "h100:hang.cudartctor.spin"])
def test_a_hang_is_named_and_no_second_library_is_asked(text: str, tmp_path: Path) -> None:
    found = chain.run(text, tmp_path, driver, runtime, deadline_s=chain.HANG_S)["runtime"]
    assert chain.causes(found) == {"runtime.hang"}
    assert found.outcome.blocks
    assert found.facts["hung_probe"] is True
    assert len(found.facts["directories"]) == 1


@pytest.mark.parametrize(
    ("damage", "outcome", "causes"),
    [
        ("none", Outcome.PASSED, set()),
        ("swap", Outcome.WARNED, {"runtime.wrong_major", "runtime.function_missing"}),
        ("swap both", Outcome.FAILED, {"runtime.wrong_major", "runtime.function_missing", "runtime.layout"}),
        ("remove", Outcome.WARNED, {"runtime.unloadable"}),
    ],
)
def test_the_directories_of_an_ollama(damage: str, outcome: Outcome, causes: set[str], tmp_path: Path) -> None:
    made = host("h100", tmp_path / "host")
    library = Path(made.env["LD_LIBRARY_PATH"].split(":")[0])
    lib = tmp_path / "lib" / "ollama"
    entries = []
    for major in ("12", "13"):
        folder, soname = lib / f"cuda_v{major}", f"libcudart.so.{major}"
        folder.mkdir(parents=True)
        swapped = damage == "swap both" or (damage == "swap" and major == "12")
        source = f"libcudart.so.{'13' if major == '12' else '12'}" if swapped else soname
        shutil.copy((library / source).resolve(), folder / soname)
        entries.append({"name": folder.name, "path": str(folder), "backend": "x", "cudart": str(folder / soname)})
    if damage == "remove":
        (lib / "cuda_v12" / "libcudart.so.12").unlink()
    given = context(env={"PATH": "/usr/bin:/bin", **made.env}, view=made.view)
    prior = {"package": record("package", Outcome.PASSED, facts={"lib_dir": str(lib), "gpu_dirs": entries})}
    answered = probe_all(driver.SPEC, given, prior)
    seen = driver.judge(StageInput(given, answered, prior, 45.0))
    prior["driver"] = record("driver", Outcome.PASSED, facts=seen.facts)
    results = probe_all(runtime.SPEC, given, prior)
    judgement = runtime.judge(StageInput(given, results, prior, 20.0))
    found = {check.finding.cause for check in judgement.checks if check.finding}
    assert found == causes
    assert conclude(runtime.SPEC, judgement, results, started=0.0, deadline_s=20.0).outcome is outcome
