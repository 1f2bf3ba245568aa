"""--gpu-as pid:N of a process in another root directory: what is read there, what is left open, and never a green."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery import context
from pytest_gpudiscovery.engine import Engine
from pytest_gpudiscovery.model import CheckOutcome, Outcome, State, Verdict
from pytest_gpudiscovery.options import Settings, UsageProblem
from pytest_gpudiscovery.probes.rootview import RootView
from pytest_gpudiscovery.service import process
from pytest_gpudiscovery.verdict import conclude
from tests.privileges import needs_mounts, needs_to_look
from tests.service import container
from tests.service.test_process import root_only, start

__all__ = ["start"]
UNSHARE = ("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork")


@pytest.fixture
def image() -> Iterator[Path]:
    """A container's image that every user can enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield container.make(Path(folder, "image"))


def verdict(pid: int, run_dir: Path, until: str = "closure") -> Verdict:
    built = context.build(Settings(as_service=f"pid:{pid}", until=until), str(run_dir))
    engine = Engine(built, f"{run_dir}/ledger")
    engine.complete()
    return conclude(engine, started=time.time(), selection={})


def stage(found: Verdict, name: str) -> Any:
    return next(record for record in found.stages if record.name == name)


@needs_to_look
@pytest.mark.parametrize("prefix", [(), pytest.param(UNSHARE, marks=needs_mounts)], ids=["chroot", "namespaces"])
@pytest.mark.parametrize("uid", [0, 65534])
def test_the_install_of_another_root_is_judged_and_the_verdict_is_open(
    start: Any, image: Path, tmp_path: Path, prefix: tuple[str, ...], uid: int
) -> None:
    pid = start(container.code(image, uid=uid), *prefix)
    found = verdict(pid, tmp_path)
    package = stage(found, "package")
    assert (package.facts["binary"], package.facts["version"]) == ("/usr/bin/ollama.real", "0.16.3"), package.summary
    assert package.facts["lib_dir"] == "/usr/lib/ollama"
    assert package.outcome in (Outcome.PASSED, Outcome.WARNED), package.summary
    service = stage(found, "service")
    preload = next(c for c in service.checks if c.prerequisite == "P10" and c.finding is not None)
    assert "libvgpu.so does not exist" in preload.reason
    closure = stage(found, "closure")
    child = closure.facts["closures"][0]
    assert child["library"] == "/usr/lib/ollama/cuda_v12/libggml-cuda.so"
    assert found.verdict in (State.INCOMPLETE, State.BLOCKED)
    assert found.context["as"].startswith(f"process {pid} ")
    said = {item["what"] for item in found.context["not_adopted"]}
    assert said & {"mount namespace", "root directory"}


@needs_to_look
def test_a_root_directory_that_is_closed_to_its_own_user_is_said(start: Any, image: Path, tmp_path: Path) -> None:
    pid = start(container.code(image, uid=65534, dumpable=False))
    built = context.build(Settings(as_service=f"pid:{pid}"), str(tmp_path))
    assert built.setup.identity is None
    assert "closed to its own user" in built.unspoken["package"]
    found = verdict(pid, tmp_path, until="package")
    assert stage(found, "package").facts["binary"] == "/usr/bin/ollama.real"
    assert found.verdict is State.INCOMPLETE


@needs_to_look
def test_a_root_directory_that_nobody_here_can_read_leaves_the_stages_that_read_it_open(
    start: Any, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rootless container's on FUSE: EACCES for root too, so nothing can be said to be absent."""
    pid = start(container.code(image, uid=65534))
    seen = process.asked_for(pid)
    shut = {**seen.sandbox["process"], "closed": True}
    monkeypatch.setattr(
        process, "asked_for", lambda *_, **__: dataclasses.replace(seen, sandbox={**seen.sandbox, "process": shut})
    )
    assert seen.sandbox["process"]["closed"] is False
    found = verdict(pid, tmp_path)
    assert stage(found, "package").outcome is Outcome.WARNED
    assert {check.outcome for check in stage(found, "closure").checks} == {CheckOutcome.UNKNOWN}
    assert "run the gate in there" in stage(found, "kernel").summary
    assert stage(found, "service").outcome is not Outcome.NOT_REACHED
    assert found.context["uid"] == 65534
    assert found.verdict is State.INCOMPLETE


@needs_to_look
def test_stages_that_load_the_install_are_not_asked_of_this_system(start: Any, image: Path, tmp_path: Path) -> None:
    pid = start(container.code(image), *UNSHARE)
    built = context.build(Settings(as_service=f"pid:{pid}"), str(tmp_path))
    assert built.view == {"kind": "root", "path": f"/proc/{pid}/root", "pid": pid}
    engine = Engine(built, f"{tmp_path}/ledger")
    for name in ("runtime", "load", "backend"):
        record = engine._run(engine.stages[name], time.time())
        assert {check.outcome for check in record.checks} == {CheckOutcome.UNKNOWN}
        assert "docs/containers.md" in record.summary


@root_only
def test_another_ollama_than_the_containers_own_is_refused(start: Any, image: Path, tmp_path: Path) -> None:
    pid = start(container.code(image))
    with pytest.raises(UsageProblem, match="--gpu-ollama=/usr: the service has another root directory"):
        context.build(Settings(as_service=f"pid:{pid}", ollama="/usr"), str(tmp_path))


@root_only
def test_paths_resolve_inside_the_other_root(image: Path) -> None:
    (image / "abs").symlink_to("/usr/lib")
    (image / "up").symlink_to("../../../../etc")
    (image / "loop").symlink_to("loop")
    view = RootView(str(image), None)
    assert view.realpath("/usr/bin/ollama") == "/usr/bin/ollama.real"
    assert view.realpath("/abs/ollama") == "/usr/lib/ollama"
    assert view.listdir("/up") == ["ld.so.preload"]
    assert view.readlink("/usr/bin/ollama") == "/usr/bin/ollama.real"
    assert view.stat("/abs/ollama")["type"] == "dir"
    with pytest.raises(OSError, match="symbolic links"):
        view.read("/loop")
    assert view.realpath("/loop") == "/loop"
    assert view.access("/loop", os.R_OK) is False
    with pytest.raises(FileNotFoundError):
        view.read("/etc/passwd")
    # A container's /proc counts its own processes; ours are meant.
    assert RootView(str(image), os.getpid()).read(f"/proc/{os.getpid()}/cgroup")
    assert RootView("/", os.getpid()).read("/proc/self/comm") == Path(f"/proc/{os.getpid()}/comm").read_bytes()


@root_only
def test_nodes_are_looked_at_below_the_other_root(start: Any, image: Path, tmp_path: Path) -> None:
    shutil.rmtree(image / "dev")
    pid = start(container.code(image))
    built = context.build(Settings(as_service=f"pid:{pid}"), str(tmp_path))
    devices = built.service["running"]["devices"]
    assert [node["path"] for node in devices["nodes"]][:2] == ["/dev/nvidiactl", "/dev/nvidia0"]
