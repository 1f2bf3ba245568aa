"""--gpu-as pid:N over real processes: another user, other limits and directories, namespaces and roots of their own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery import context
from pytest_gpudiscovery.options import Settings, UsageProblem
from pytest_gpudiscovery.probes import process as probe
from pytest_gpudiscovery.service import process
from pytest_gpudiscovery.service.who import EVERY, NATIVE, Who
from pytest_gpudiscovery.stages.spec import RunContext
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import Probe
from tests import fakes
from tests.privileges import needs_mounts, needs_to_look

ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(not ROOT, reason="only root starts processes as somebody else")
ENV = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/",
    "CUDA_VISIBLE_DEVICES": "7",
    "OLLAMA_API_KEY": "hunter2",
    "LD_LIBRARY_PATH": "/opt/x",
}


class Started:
    """A process that sleeps, after it has done what CODE says."""

    def __init__(self, code: str, *prefix: str, **keywords: Any) -> None:
        program = f"{code}\nimport os, sys, time\nos.write(1, b'ready')\ntime.sleep(600)"
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", program], stdout=subprocess.PIPE, env=ENV, **keywords
        )
        assert self._process.stdout is not None
        assert self._process.stdout.read(5) == b"ready"
        self.pid = self._process.pid
        if prefix:  # unshare --fork: the program is its child
            tree = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            self.pid = int(tree[0]) if tree else self.pid

    def end(self) -> None:
        if self.pid != self._process.pid:
            os.kill(self.pid, 9)
        self._process.kill()
        self._process.communicate(timeout=10)


@pytest.fixture
def start() -> Iterator[Any]:
    """Start processes that end with the test."""
    running: list[Started] = []

    def make(code: str = "", *prefix: str, **keywords: Any) -> int:
        running.append(Started(code, *prefix, **keywords))
        return running[-1].pid

    yield make
    for one in running:
        one.end()


def what(who: Who) -> dict[str, tuple[str, ...]]:
    return {item.what: item.stages for item in who.missing}


def test_environment_directory_and_limits_of_a_process_of_our_own(start: Any, tmp_path: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (77, 99))"
    pid = start(code, cwd=tmp_path)
    who = process.asked_for(pid)
    assert who.refused == ""
    assert who.identity is not None
    assert who.identity.uid == os.geteuid()
    assert dict(who.env or {}) | ENV == dict(who.env or {})
    assert (who.cwd, who.root, who.mntns, who.netns) == (str(tmp_path), None, None, None)
    assert who.limits["RLIMIT_NOFILE"] == (77, 99)
    assert set(what(who)) == {"cgroup", "security context"}
    assert who.sandbox["process"]["uid_map"] == [[0, 0, 4294967295]] or not ROOT


@root_only
def test_a_root_with_fewer_capabilities_is_said(start: Any) -> None:
    code = "from pytest_gpudiscovery.probes import capabilities\ncapabilities.drop(capabilities.CAP_MKNOD)"
    who = process.asked_for(start(code))
    held = who.sandbox["process"]["effective"]
    assert int(held, 16) >> 27 & 1 == 0
    assert any(item.what == "capabilities" and held in item.why and not item.stages for item in who.missing)


def build(pid: int, tmp_path: Path, **settings: Any) -> RunContext:
    return context.build(Settings(as_service=f"pid:{pid}", **settings), str(tmp_path))


def ask(built: RunContext, module: str = "service") -> Any:
    request = {"mode": "look", "view": dict(built.view), "env": {}, "pid": None}
    result = run(Probe(module, request, built.env, 8.0, built.cwd, built.setup))
    assert result.answer is not None, (result.ending, result.notes, result.stderr)
    return result.answer


@needs_to_look
def test_probes_become_the_process_as_far_as_it_goes(start: Any, tmp_path: Path) -> None:
    code = (
        "import os, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))\n"
        "os.setgroups([44, 65534]); os.setgid(12); os.setuid(65534)"
    )
    pid = start(code)
    built = build(pid, tmp_path)
    assert built.adopted["as"].startswith(f"process {pid} (python")
    assert (built.adopted["uid"], built.adopted["gid"], built.adopted["groups"]) == (65534, 12, [44, 65534])
    assert built.adopted["adopted"] == ["user", "groups", "environment", "limits", "working directory"]
    assert built.env["CUDA_VISIBLE_DEVICES"] == "7"
    seen = ask(built)
    assert (seen["identity"]["uid"], seen["identity"]["gid"], seen["identity"]["groups"]) == (65534, 12, [44, 65534])
    assert seen["limits"]["NOFILE"] == [300, 400]
    assert int(built.adopted["capabilities"], 16) == 0, "what root could do is lost with root's user"
    assert built.unspoken == {}


def test_no_secret_enters_the_verdict_and_the_file_of_the_context_is_private(start: Any, tmp_path: Path) -> None:
    built = build(start(), tmp_path)
    assert built.env["OLLAMA_API_KEY"] == "hunter2"
    assert built.adopted["environment"]["CUDA_VISIBLE_DEVICES"] == "7"
    assert "hunter2" not in str(built.adopted)
    assert "hunter2" not in str(built.caller_env) + str(built.service)
    context.save(built)
    assert (tmp_path / context.FILE).stat().st_mode & 0o077 == 0
    assert context.load(str(tmp_path)) == built


def test_a_process_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"^--gpu-as=pid:4194303: no such process$"):
        build(4194303, tmp_path)


def test_a_process_that_has_ended_is_one_line(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie until it is waited for
        with pytest.raises(UsageProblem, match="has ended"):
            build(ended.pid, tmp_path)


@needs_to_look
def test_a_deleted_working_directory_is_adopted_as_such(start: Any, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    pid = start(cwd=gone)
    gone.rmdir()
    who = process.asked_for(pid)
    assert who.cwd == f"/proc/{pid}/cwd"
    result = run(Probe("package", {"view": {"kind": "live"}, "env": {}, "ollama_path": "/"}, {}, 5.0, who.cwd))
    assert result.answer["cwd"] is None
    built = build(pid, tmp_path)
    assert (built.cwd, built.service["directory"]["errno"]) == ("/", "ENOENT")


@needs_mounts
def test_a_network_namespace_is_entered(start: Any, tmp_path: Path) -> None:
    pid = start("", "unshare", "--net", "--fork")
    built = build(pid, tmp_path)
    assert built.setup.netns == f"/proc/{pid}/ns/net"
    assert "network namespace" in built.adopted["adopted"]
    result = run(Probe("nothing", {}, built.env, 5.0, setup=built.setup))
    assert result.answer is not None
    look = run(Probe("loopback", {"view": {"kind": "live"}, "tmpdir": "/tmp"}, built.env, 8.0, setup=built.setup))
    assert look.answer["lo"]["ifr_flags"] & 1 == 0  # nobody has set it up in there


@needs_mounts
def test_a_sandbox_with_our_root_directory_is_entered(start: Any, tmp_path: Path) -> None:
    code = (
        "import subprocess\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'x', '/mnt'], check=True)\nopen('/mnt/only-there', 'w').close()\n"
    )
    pid = start(code, "unshare", "--mount", "--propagation", "private", "--fork")
    assert not os.path.exists("/mnt/only-there")
    built = build(pid, tmp_path)
    assert built.setup.mntns == f"/proc/{pid}/ns/mnt"
    assert built.view == {"kind": "live"}
    assert built.unspoken == {}
    request = {"view": {"kind": "live"}, "env": {}, "ollama_path": "/mnt", "hints": []}
    result = run(Probe("package", request, {"PATH": "/bin"}, 8.0, setup=built.setup))
    assert result.answer is not None, result
    (Path("/proc") / str(pid) / "root" / "mnt" / "ollama").write_bytes(b"x")
    result = run(Probe("package", request, {"PATH": "/bin"}, 8.0, setup=built.setup))
    assert result.answer["binary"]["path"] == "/mnt/ollama"


@root_only
def test_another_users_namespace_is_judged_and_not_entered(start: Any, tmp_path: Path) -> None:
    pid = start("", "unshare", "--user", "--map-root-user", "--fork")
    who = process.asked_for(pid)
    assert what(who)["user namespace"] == NATIVE
    assert who.sandbox["process"]["uid_map"] == [[0, os.geteuid(), 1]]


@root_only
def test_what_a_stuck_process_does_not_tell_is_missing() -> None:
    seen = {"status": {"uid": 990, "gid": 990, "groups": [], "name": "ollama", "state": "D (disk sleep)"}}
    ended = fakes.hang("read /proc/5/environ", observed=seen)
    who = process.asked_for(5, supervise=lambda _: ended)
    assert who.refused == "the environment of process 5 cannot be read"
    assert who.missing[0].stages == EVERY
    assert "stuck in the kernel" in who.missing[0].why
    assert who.env is None


def test_another_users_process_is_refused_and_the_verdict_incomplete(tmp_path: Path) -> None:
    seen = {
        "status": {"uid": 990, "gid": 990, "groups": [], "name": "ollama"},
        "environ": None,
        "environ_errno": "EACCES",
    }
    who = process.asked_for(5, supervise=lambda _: fakes.result(answer=seen))
    assert "EACCES: another user's process" in str([item.why for item in who.missing])
    assert who.refused


@pytest.mark.parametrize(
    ("exe", "name", "binary"),
    [
        ("/usr/bin/ollama", "ollama", "/usr/bin/ollama"),
        ("/usr/bin/ollama (deleted)", "ollama", "/usr/bin/ollama"),
        ("/nix/store/x/bin/.ollama-wrapped", ".ollama-wrapped", "/nix/store/x/bin/.ollama-wrapped"),
        ("/usr/bin/python3.11", "python3", None),
        (None, "ollama", None),
    ],
)
def test_the_program_of_the_process(exe: str | None, name: str, binary: str | None) -> None:
    assert process._binary(exe, name) == binary


@pytest.mark.parametrize(
    ("root", "binary"),
    [("/", "/srv/box/bin/ollama"), ("/srv/box", "/bin/ollama"), ("/srv/bo", "/srv/box/bin/ollama")],
)
def test_the_program_of_a_process_in_a_chroot_is_named_as_the_process_names_it(root: str, binary: str) -> None:
    status = {"uid": 0, "gid": 0, "groups": [], "name": "ollama"}
    links = {"root": root, "exe": "/srv/box/bin/ollama"}
    who = process.asked_for(5, supervise=lambda _: fakes.result(answer={"status": status, "links": links}))
    assert who.binary == binary


@given(st.binary(max_size=200))
def test_any_environment_is_variables(raw: bytes) -> None:
    assert all(name and "=" not in name for name in probe.environment(raw))


@given(st.text(max_size=400))
def test_any_text_of_limits_is_numbers(text: str) -> None:
    assert all(len(pair) == 2 for pair in probe.limits(text).values())


def test_our_own_limits_are_read_right() -> None:
    said = probe.limits(Path("/proc/self/limits").read_text())
    for name in ("NOFILE", "AS", "NPROC", "CORE"):
        assert tuple(said[name]) == resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
