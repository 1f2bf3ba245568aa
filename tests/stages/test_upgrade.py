"""Stage 14: the comparison over records, and whole runs on simulated hosts with a second simulated release."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from pytest_gpudiscovery import simulate
from pytest_gpudiscovery.model import CheckOutcome, Outcome, StageRecord
from pytest_gpudiscovery.probes import mix
from pytest_gpudiscovery.stages import upgrade, upgrade_compare
from pytest_gpudiscovery.stages.spec import StageInput, found
from tests.fakes import context, record
from tests.faults.gate import primary, run_gate, warnings
from tests.stages.hostile import ANYTHING

GPU = {"name": "NVIDIA H100", "library": "CUDA", "libdir": "cuda_v12", "pci": "0000:00:06.0", "id": "GPU-1"}
CPU = {**GPU, "library": "cpu"}
SERVE_FACTS = {"total_vram": "0 B", "why": "x", "first": "x", "count": 1, "expected": 2, "missing": "x", "devices": "x"}
SECOND = {**GPU, "pci": "0000:00:07.0", "id": "GPU-2"}


def install(
    version: str,
    era: str,
    *gpus: dict[str, Any],
    seconds: float = 0.5,
    cause: str = "",
    names: dict[str, str] | None = None,
    serves: tuple[dict[str, Any], ...] | None = (),
    served: float = 0.6,
    serve_cause: str = "",
) -> dict[str, StageRecord]:
    """Return the records of an Ollama of VERSION that keeps GPUS; CAUSE is a finding of its closure stage.

    SERVES are the devices of its private server, which took SERVED seconds and has the finding SERVE_CAUSE: (), as
    GPUS; None, it gave no answer.
    """
    checks = (
        (
            found(
                cause,
                {"floor": 550, "reason": "x", "cc": "9.0", "driver": "535.183", "directory": "cuda_v12"},
                subject="dir:cuda_v12",
            ),
        )
        if cause
        else ()
    )
    closure = {
        "closures": [
            {
                "directory": "cuda_v12",
                "model": "child",
                "names": [
                    {"name": name, "path": path, "rule": "LD_LIBRARY_PATH"} for name, path in (names or {}).items()
                ],
            }
        ],
        "fatbins": [{"directory": "cuda_v12", "targets": ["sm_90"]}],
    }
    return {
        "package": record("package", Outcome.PASSED, facts={"version": version, "era": era}),
        "closure": record("closure", Outcome.FAILED if cause else Outcome.PASSED, facts=closure, checks=checks),
        "bootstrap": record(
            "bootstrap", Outcome.PASSED, facts={"kept": list(gpus), "children": [{"seconds": seconds}]}
        ),
        "serve": record(
            "serve",
            Outcome.PROBE_ERROR if serves is None else Outcome.FAILED if serve_cause else Outcome.PASSED,
            facts=None if serves is None else {"devices": list(serves or gpus), "seconds": served},
            checks=(found(serve_cause, SERVE_FACTS),) if serve_cause else (),
        ),
    }


def compared(
    old: dict[str, StageRecord],
    new: dict[str, StageRecord],
    mixed: dict[str, StageRecord] | None = None,
    env: dict[str, str] | None = None,
    stale: tuple[str, ...] = (),
) -> upgrade_compare.Said:
    given_ = StageInput(context(env=env or {}, candidate_path="/new"), {}, old, 60.0)
    return upgrade_compare.compare(given_, new, mixed, list(stale))


def causes(said: upgrade_compare.Said) -> dict[str, str]:
    return {check.finding.cause: check.outcome.value for check in said.checks if check.finding}


def test_the_same_gpus_is_safe() -> None:
    said = compared(install("0.16.3", "B", GPU), install("0.24.0", "B", GPU))
    assert causes(said) == {}
    assert said.sentence == "safe to upgrade to 0.24.0"
    assert {check.prerequisite for check in said.checks} == set(upgrade.ROWS)


def test_a_gpu_that_is_lost_is_named_with_the_reason() -> None:
    new = install("0.32.15", "C", cause="closure.driver_floor")
    said = compared(install("0.16.3", "B", GPU), new)
    assert causes(said) == {"upgrade.loses_gpu": "failed"}
    assert said.sentence.startswith("0.32.15 loses 0000:00:06.0: ")
    assert "550" in said.sentence


def test_the_reason_is_of_the_directory_that_the_installed_release_uses() -> None:
    facts = {"floor": "550", "reason": "x", "cc": "9.0", "directory": "cuda_v12", "driver": "535.183"}
    ptx = found("closure.kernels.ptx_too_new", {**facts, "needs": "13.0", "driver": "12.2"}, subject="dir:cuda_v13")
    new = install("0.32.15", "C", cause="closure.driver_floor")
    checks = (ptx, found("closure.driver_floor", facts, subject="dir:cuda_v12"))
    new["closure"] = dataclasses.replace(new["closure"], checks=checks)
    said = compared(install("0.16.3", "B", GPU), new)
    assert said.sentence == "0.32.15 loses 0000:00:06.0: driver 535.183 is below the floor 550 of cuda_v12"
    new["closure"] = dataclasses.replace(new["closure"], checks=checks[:1])  # cuda_v12 is not there any more
    assert "PTX" in compared(install("0.16.3", "B", GPU), new).sentence


def test_one_of_two_is_lost() -> None:
    said = compared(install("0.16.3", "B", GPU, SECOND), install("0.24.0", "B", GPU))
    assert causes(said) == {"upgrade.loses_gpu": "failed"}
    assert "0000:00:07.0" in said.sentence
    assert "0000:00:06.0" not in said.sentence


def test_a_broken_install_is_no_reason_to_stay() -> None:
    old = install("0.16.3", "B")
    del old["bootstrap"], old["serve"]
    said = compared(old, install("0.24.0", "B", GPU))
    assert causes(said) == {}
    assert said.sentence == "safe to upgrade to 0.24.0: 1 GPU(s)"


def test_neither_keeps_a_gpu() -> None:
    said = compared(install("0.16.3", "B"), install("0.24.0", "B"))
    assert causes(said) == {"upgrade.no_gpu": "failed"}


def test_a_candidate_that_was_not_asked_is_no_green() -> None:
    new = install("0.24.0", "B", GPU)
    new["bootstrap"] = record("bootstrap", Outcome.NOT_REACHED, facts={})
    said = compared(install("0.16.3", "B"), new)
    (row,) = [check for check in said.checks if check.prerequisite == "P98"]
    assert row.outcome is CheckOutcome.UNKNOWN
    assert said.sentence == "cannot tell whether 0.24.0 keeps the GPUs"


def test_what_the_server_computes_on_is_what_counts() -> None:
    """Its children keep both GPUs, and its server says another thing."""
    old = install("0.16.3", "B", GPU, SECOND)
    for serves, cause, lost in (
        ((CPU,), "serve.cpu_alone", "0000:00:06.0, 0000:00:07.0"),
        ((GPU,), "serve.fewer", "0000:00:07.0"),
    ):
        said = compared(old, install("0.32.15", "C", GPU, SECOND, serves=serves, serve_cause=cause))
        assert causes(said) == {"upgrade.loses_gpu": "failed"}
        assert said.sentence.startswith(f"0.32.15 loses {lost}: ")
        assert said.comparison["candidate"]["cause"] == cause
        assert [gpu["pci"] for gpu in said.comparison["candidate"]["computes"]] == [
            gpu["pci"] for gpu in serves if gpu is not CPU
        ]
    assert said.comparison["installed"]["computes"] == [GPU, SECOND]


def test_a_server_that_was_not_asked_is_no_green() -> None:
    said = compared(install("0.16.3", "B", GPU), install("0.24.0", "B", GPU, serves=None))
    assert said.sentence == "cannot tell whether 0.24.0 keeps the GPUs"


def test_a_slower_server() -> None:
    new = install("0.24.0", "B", GPU, served=9.0)
    assert causes(compared(install("0.16.3", "B", GPU, served=1.0), new)) == {"upgrade.slower": "warned"}
    broken = install("0.16.3", "B", GPU)
    broken["serve"] = record("serve", Outcome.NOT_REACHED, facts={})
    assert causes(compared(broken, new)) == {}


def test_what_unpacking_over_the_old_release_leaves() -> None:
    old, new = install("0.16.3", "B", GPU), install("0.32.15", "C", GPU)
    said = compared(old, new, install("0.32.15", "C"), stale=("cuda_v12/libggml-old.so",))
    assert causes(said) == {"upgrade.in_place": "warned"}
    assert said.sentence.startswith("safe to upgrade to 0.32.15; unpacked over the installed release")
    assert said.comparison["in_place"]["stale"] == ["cuda_v12/libggml-old.so"]
    assert causes(compared(old, new, new, stale=("x.so",))) == {}


def test_variables_that_mean_something_else() -> None:
    env = {"GGML_BACKEND_PATH": "/x.so", "OLLAMA_DEBUG": "1"}
    said = compared(install("0.16.3", "B", GPU), install("0.32.15", "C", GPU), env=env)
    assert causes(said) == {"upgrade.variable": "warned"}
    summary = next(check.finding.summary for check in said.checks if check.finding)
    assert said.sentence == summary == "safe to upgrade to 0.32.15; GGML_BACKEND_PATH means something else there"
    assert causes(compared(install("0.16.3", "B", GPU), install("0.24.0", "B", GPU), env=env)) == {}


def test_every_variable_of_the_table_is_complete() -> None:
    for entry in upgrade_compare.meanings():
        assert entry["meaning"].split()[0] in ("was", "is", "now", "asserted", "chose"), "goes on after: it"
        assert set(entry) == {"name", "from", "to", "meaning", "source"}
        assert set(entry["from"]) <= set("ABC")
        assert set(entry["to"]) <= set("ABC")


def test_a_slower_discovery() -> None:
    said = compared(install("0.16.3", "B", GPU, seconds=1.0), install("0.24.0", "B", GPU, seconds=9.0))
    assert causes(said) == {"upgrade.slower": "warned"}
    assert causes(compared(install("0.16.3", "B", GPU, seconds=0.4), install("0.24.0", "B", GPU, seconds=2.0))) == {}


def test_what_moved_in_the_closure() -> None:
    old = install("0.16.3", "B", GPU, names={"libcublas.so.12": "/usr/lib/ollama/cuda_v12/libcublas.so.12"})
    same = install("0.24.0", "B", GPU, names={"libcublas.so.12": "/tmp/new/lib/ollama/cuda_v12/libcublas.so.12"})
    moved = install("0.24.0", "B", GPU, names={"libcublas.so.12": "/usr/lib/libcublas.so.12"})
    assert compared(old, same).comparison["closures"] == []
    rule = "DT_RPATH of {}/lib/ollama/cuda_v12/libcublas.so.12"
    for side, place in ((old, "/usr"), (same, "/tmp/new")):  # the backend is named by its path, a rule names a file
        backend = f"{place}/lib/ollama/cuda_v12/libggml-cuda.so"
        names = side["closure"].facts["closures"][0]["names"]
        names[0]["rule"] = rule.format(place)
        names.append({"name": backend, "path": backend, "rule": "path"})
    assert compared(old, same).comparison["closures"] == []
    old = install("0.16.3", "B", GPU, names={"libcublas.so.12": "/usr/lib/ollama/cuda_v12/libcublas.so.12"})
    (change,) = compared(old, moved).comparison["closures"]
    assert (change["name"], change["candidate"]["path"]) == ("libcublas.so.12", "/usr/lib/libcublas.so.12")


@settings(deadline=None)
@given(ANYTHING, ANYTHING)
def test_any_facts_at_all_never_raise(old: Any, new: Any) -> None:
    sides = [
        {name: record(name, Outcome.PASSED, facts=facts) for name in ("package", "closure", "bootstrap", "serve")}
        for facts in (old, new)
    ]
    said = compared(sides[0], sides[1], sides[1])
    assert isinstance(said.sentence, str)


# --- the mix ---------------------------------------------------------------------------------------------------------


class _Steps:
    """A journal that keeps nothing."""

    result: Any = None

    def step(self, _: str) -> _Steps:
        return self

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def observe(self, *_: object) -> None:
        return None


def test_the_mix_has_the_new_files_and_what_only_the_old_release_has(tmp_path: Path) -> None:
    for release, files in {"old": ("a.so", "cuda_v12/b.so", "cuda_v11/c.so"), "new": ("a.so", "cuda_v12/b.so")}.items():
        for name in files:
            path = tmp_path / release / "lib/ollama" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{release} {name}")
    (tmp_path / "new/bin").mkdir()
    (tmp_path / "new/bin/ollama").write_text("program")
    (tmp_path / "new/lib/ollama/link.so").symlink_to("a.so")
    request = {
        "old_lib": str(tmp_path / "old/lib/ollama"),
        "new_lib": str(tmp_path / "new/lib/ollama"),
        "new_binary": str(tmp_path / "new/bin/ollama"),
        "into": str(tmp_path / "mix"),
    }
    answer = mix.probe(request, _Steps())  # type: ignore[arg-type]
    assert answer == {"stale": ["cuda_v11/c.so"], "built": True}
    lib = tmp_path / "mix/lib/ollama"
    assert (lib / "cuda_v12/b.so").read_text() == "new cuda_v12/b.so"
    assert (lib / "cuda_v11/c.so").read_text() == "old cuda_v11/c.so"
    assert os.readlink(lib / "link.so") == "a.so"
    assert not (tmp_path / "mix/bin/ollama").is_symlink()  # Ollama follows links to find its libraries
    assert (tmp_path / "old/lib/ollama/a.so").read_text() == "old a.so"


def test_nothing_is_built_where_nothing_would_be_left(tmp_path: Path) -> None:
    for release in ("old", "new"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "a.so").write_text(release)
    request = {"old_lib": str(tmp_path / "old"), "new_lib": str(tmp_path / "new"), "into": str(tmp_path / "mix")}
    assert mix.probe({**request, "new_binary": "/x"}, _Steps()) == {"stale": [], "built": False}  # type: ignore[arg-type]
    assert not (tmp_path / "mix").exists()


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newer simulated release, elsewhere."""
    made = simulate.prepare(simulate.parse("h100-ollama-c"), str(tmp_path_factory.mktemp("candidate")))
    assert made.ollama is not None
    return Path(made.ollama)


@pytest.mark.parametrize(
    ("host", "verdict", "stage", "sentence"),
    [
        ("h100-ollama", "ready", "", "safe to upgrade"),
        ("h100", "ready", "", "safe to upgrade"),  # no Ollama yet
        ("h100-ollama:ggml_base.missing", "degraded", "", "safe to upgrade"),
        ("h100-ollama:driver.cuinit.100", "blocked", "driver", "keeps no GPU"),
    ],
)
def test_a_release_beside_what_is_installed(release: Path, host: str, verdict: str, stage: str, sentence: str) -> None:
    said = run_gate(host, until=None, ollama_candidate=str(release))
    assert said.verdict.value == verdict, (primary(said), warnings(said))
    assert primary(said)[0] == stage or verdict == "degraded"
    last = next(record for record in said.stages if record.name == "upgrade")
    assert sentence in last.summary
    candidate = said.comparison["candidate"]
    assert (candidate["version"], candidate["era"]) == ("0.32.15", "C")
    if verdict == "blocked":
        assert candidate["computes"] is None  # its children show no GPU: no server is started for that
    else:
        assert [gpu["pci"] for gpu in candidate["computes"]] == ["0000:00:06.0"]
        assert candidate["serve_seconds"] > 0


def test_a_candidate_whose_server_does_not_compute_on_the_gpu_blocks(tmp_path: Path) -> None:
    made = simulate.prepare(simulate.parse("h100-ollama-c:serve.cpu"), str(tmp_path))
    said = run_gate("h100-ollama", until=None, ollama_candidate=f"{made.ollama}/bin/ollama")  # named by its binary
    assert primary(said) == ("upgrade", "failed", "upgrade.loses_gpu")
    assert said.comparison["candidate"]["cause"] == "serve.cpu_alone"


def test_a_candidate_that_loses_the_gpu_blocks(tmp_path: Path) -> None:
    made = simulate.prepare(simulate.parse("h100-ollama:ggml_base.older"), str(tmp_path))
    said = run_gate("h100-ollama", until=None, ollama_candidate=made.ollama)
    assert said.verdict.value == "blocked"
    assert primary(said)[2] == "upgrade.loses_gpu"
    assert "loses 0000:00:06.0" in said.blockers[0].summary


def test_a_driver_that_hung_is_left_alone(release: Path) -> None:
    said = run_gate("h100-ollama:hang.cuinit.sleep", until=None, ollama_candidate=str(release), hangs=True)
    assert said.verdict.value == "blocked"
    last = next(record for record in said.stages if record.name == "upgrade")
    assert last.outcome is Outcome.NOT_REACHED
    assert dataclasses.asdict(said)["comparison"] is None
