"""03 loopback: every action is really done, also where it fails: no address, a full or a read-only directory."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from pytest_gpudiscovery.outcome import Conclusion
from pytest_gpudiscovery.probes import loopback as probe
from pytest_gpudiscovery.stages.loopback import ROWS, SPEC
from pytest_gpudiscovery.supervise.types import Identity, Setup
from tests import fakes
from tests.privileges import MAY_MOUNT, needs_mounts
from tests.stages import hosts


def conclude(entries: hosts.Entries | None = None, **context: Any) -> Conclusion:
    """Run the stage over the H100 host's recording (or ENTRIES)."""
    return hosts.conclusion(SPEC, hosts.context(hosts.h100() if entries is None else entries, **context))


def judged(**changes: Any) -> Conclusion:
    """Return the judgement of a good answer with CHANGES."""
    answer: dict[str, Any] = {
        "lo": {"operstate": "unknown", "flags": "0x9"},
        "ports": [32768, 60999],
        "hosts": ["127.0.0.1"],
        "bind": {"port": 4242, "errno": None},
        "resolve": {"addresses": ["127.0.0.1"], "seconds": 0.001, "error": None},
        "tcp": {"errno": None, "phase": None, "seconds": 0.001},
        "tmp": {"path": "/tmp", "errno": None, "phase": None, "free": 1, "inodes": 1, "seconds": 0.0},
        **changes,
    }
    return hosts.judged(SPEC, fakes.context(), {"loopback": fakes.result(answer=answer)})


@pytest.mark.parametrize("who", [Setup(), Setup(identity=Identity(65534, 65534))], ids=["caller", "uid 65534"])
def test_this_machine_does_all_of_it(who: Setup) -> None:
    if who.identity is not None and os.geteuid() != 0:
        pytest.skip("only root can probe as another user")
    said = hosts.conclusion(SPEC, hosts.context(None, setup=who))
    assert said.outcome in (Outcome.PASSED, Outcome.WARNED), said.summary
    assert hosts.causes(said, "failed") == []
    assert {check.prerequisite for check in said.checks} == set(ROWS)
    assert said.facts["tmp"]["errno"] is None


def test_a_sandbox_without_sockets_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("_socket.socket", refuse)
    assert probe.interface_flags("lo") is None
    assert probe.bind() == (None, {"port": None, "errno": "EPERM"})


def test_nothing_is_left_in_the_temporary_directory(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    said = conclude(env={"TMPDIR": str(folder)})
    assert said.outcome is Outcome.PASSED
    assert said.facts["tmp"]["path"] == str(folder)
    assert list(folder.iterdir()) == []


def test_a_missing_temporary_directory_blocks(tmp_path: Path) -> None:
    said = conclude(env={"TMPDIR": str(tmp_path / "absent")})
    assert hosts.causes(said, "failed") == ["loopback.tmp.missing"]


def test_a_file_system_that_takes_no_files_is_not_called_missing() -> None:
    said = conclude(env={"TMPDIR": "/proc"})
    assert hosts.causes(said, "failed") == ["loopback.tmp.failed"]


def test_a_temporary_directory_of_somebody_else_blocks(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700 if os.geteuid() == 0 else 0o500)
    setup = Setup(identity=Identity(65534, 65534)) if os.geteuid() == 0 else Setup()
    said = conclude(setup=setup, env={"TMPDIR": str(folder)})
    assert hosts.causes(said, "failed") == ["loopback.tmp.denied"]
    assert "EACCES" in said.summary


@needs_mounts
@pytest.mark.parametrize(
    ("options", "cause"), [("size=4k,nr_inodes=1", "full"), ("ro", "denied")], ids=["no inode left", "read-only"]
)
def test_a_real_file_system_says_no(options: str, cause: str) -> None:
    code = (
        "import json; from pytest_gpudiscovery.probes import loopback as l; print(json.dumps(l.use_directory('/mnt')))"
    )
    shell = f'mount -t tmpfs -o {options} none /mnt && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hosts.causes(judged(tmp=json.loads(done.stdout))) == [f"loopback.tmp.{cause}"]


def test_a_network_without_lo_is_met_for_real(tmp_path: Path) -> None:
    """In a new network namespace lo is down and has no address: bind, or the connection, fails by itself."""
    code = (
        "import json, os, sys\n"
        "from pytest_gpudiscovery.probes import loopback\n"
        "from pytest_gpudiscovery.probes.journal import Journal\n"
        "sink = os.open(os.devnull, os.O_WRONLY)\n"
        "request = {'view': {'kind': 'live'}, 'tmpdir': sys.argv[1]}\n"
        "print(json.dumps(loopback.probe(request, Journal(sink))))\n"
    )
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    # sysfs shows the network namespace of its mount: without a new mount lo would look like the host's
    shell = 'mount -t sysfs none /sys 2>/dev/null; exec "$@"'
    done = subprocess.run(
        ["unshare", *user, "--net", "--mount", "sh", "-c", shell, "sh", sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0 and not MAY_MOUNT:
        pytest.skip(f"no network namespace of one's own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    said = judged(**answer)
    failed = hosts.causes(said, "failed")
    assert set(failed) & {"loopback.lo.down", "loopback.bind.failed", "loopback.tcp.refused"}, answer
    assert said.outcome is Outcome.FAILED


@pytest.mark.parametrize(
    "lo",
    [
        {"operstate": "down", "flags": "0x9"},
        {"operstate": "unknown", "flags": "0x8"},
        {"operstate": "down", "flags": None},
    ],
)
def test_an_interface_that_is_down_is_seen_in_sysfs(lo: dict[str, str | None]) -> None:
    entries = hosts.h100()
    for name, text in lo.items():
        path = f"/sys/class/net/lo/{name}"
        if text is None:
            del entries[path]
        else:
            entries[path] = hosts.file(f"{text}\n")
    said = conclude(entries)
    assert hosts.causes(said, "failed") == ["loopback.lo.down"]


@pytest.mark.parametrize(
    ("changes", "cause", "outcome"),
    [
        ({"bind": {"port": None, "errno": "EADDRNOTAVAIL"}, "tcp": None}, "loopback.bind.failed", "failed"),
        ({"tcp": {"errno": "ETIMEDOUT", "phase": "connect", "seconds": 2.0}}, "loopback.tcp.dropped", "failed"),
        ({"tcp": {"errno": "ECONNREFUSED", "phase": "connect", "seconds": 0.0}}, "loopback.tcp.refused", "failed"),
        ({"tcp": {"errno": "EPROTO", "phase": "reply", "seconds": 0.0}}, "loopback.tcp.changed", "failed"),
        (
            {"resolve": {"addresses": [], "seconds": 0.1, "error": "[Errno -3] Temporary failure"}},
            "loopback.localhost.unresolved",
            "warned",
        ),
        (
            {"resolve": {"addresses": ["127.0.0.1"], "seconds": 12.0, "error": None}},
            "loopback.localhost.slow",
            "warned",
        ),
        (
            {"resolve": {"addresses": ["192.0.2.7"], "seconds": 0.1, "error": None}},
            "loopback.localhost.foreign",
            "warned",
        ),
        ({"ports": [61000, 61100]}, "loopback.ports.narrow", "warned"),
        (
            {"tmp": {"path": "/t", "errno": "EIO", "phase": "write", "free": None, "inodes": None, "seconds": 0}},
            "loopback.tmp.failed",
            "failed",
        ),
        (
            {"tmp": {"path": "/t", "errno": "ENOSPC", "phase": "write", "free": 0, "inodes": 9, "seconds": 0}},
            "loopback.tmp.full",
            "failed",
        ),
    ],
)
def test_an_answer_is_named(changes: dict[str, Any], cause: str, outcome: str) -> None:
    said = judged(**changes)
    assert hosts.causes(said) == [cause]
    assert said.outcome.value == outcome


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "::1"])
def test_loopback_addresses_are_ours(address: str) -> None:
    assert hosts.causes(judged(resolve={"addresses": [address], "seconds": 0.0, "error": None})) == []


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        ("resolve localhost", "loopback.localhost.hang"),
        ("write a file in /tmp", "loopback.tmp.hang"),
        ("tcp 127.0.0.1", "loopback.tcp.hang"),
        ("bind 127.0.0.1:0", "engine.probe.hang"),
    ],
)
def test_a_hang_is_named_by_its_step(step: str, cause: str) -> None:
    said = hosts.judged(SPEC, fakes.context(), {"loopback": fakes.hang(step)})
    assert hosts.causes(said) == [cause]
    assert said.outcome is Outcome.TIMED_OUT


def test_what_a_hang_left_out_is_unknown() -> None:
    seen = {"lo": {}, "ports": None, "hosts": None, "bind": {"port": 1, "errno": None}}
    said = hosts.judged(SPEC, fakes.context(), {"loopback": fakes.hang("write a file in /tmp", observed=seen)})
    outcomes = {check.prerequisite: check.outcome for check in said.checks if not check.finding}
    assert outcomes["P19"] is CheckOutcome.UNKNOWN
    assert outcomes["P18"] is CheckOutcome.UNKNOWN
    assert outcomes["P17"] is CheckOutcome.PASSED


class Intercepted:
    """A listener whose accepted connection is another one, into which SENT was put."""

    def __init__(self, sent: bytes) -> None:
        real, _ = probe.bind()
        assert real is not None
        self._real, self._sent = real, sent
        self.opened = [real]

    def settimeout(self, seconds: float) -> None:
        """Pass on."""
        self._real.settimeout(seconds)

    def getsockname(self) -> Any:
        """Pass on."""
        return self._real.getsockname()

    def _accept(self) -> tuple[int, None]:
        inner, outer = socket.socketpair()
        outer.sendall(self._sent)
        self.opened.append(outer)
        return inner.detach(), None


@pytest.mark.parametrize(
    ("sent", "errno", "cause"),
    [
        (probe.REQUEST.upper(), "EPROTO", "loopback.tcp.changed"),
        (b"", "ETIMEDOUT", "loopback.tcp.dropped"),
        (probe.REQUEST[:10], "ETIMEDOUT", "loopback.tcp.dropped"),
    ],
)
def test_what_does_not_arrive_as_it_was_sent(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, errno: str, cause: str
) -> None:
    monkeypatch.setattr(probe, "PATIENCE_S", 0.2)
    listener = Intercepted(sent)
    answer = probe.exchange(listener)  # type: ignore[arg-type]
    for end in listener.opened:
        end.close()
    assert (answer["errno"], answer["phase"]) == (errno, "request")
    assert hosts.causes(judged(tcp=answer)) == [cause]


def test_a_closed_port_refuses() -> None:
    listener, _ = probe.bind()
    assert listener is not None
    name = listener.getsockname()
    listener.close()

    class Closed:
        """A listener that is gone."""

        def settimeout(self, seconds: float) -> None:
            """Nothing is there to wait for."""

        def getsockname(self) -> Any:
            """Where it was."""
            return name

    answer = probe.exchange(Closed())  # type: ignore[arg-type]
    assert (answer["errno"], answer["phase"]) == ("ECONNREFUSED", "connect")


@given(text=st.none() | st.text(max_size=100))
def test_no_text_breaks_the_readers(text: str | None) -> None:
    found = probe.port_range(text)
    assert found is None or len(found) == 2
    assert probe.hosts_of(text, "localhost") is None or text is not None


def test_the_hosts_file_is_read_as_the_resolver_does() -> None:
    lines = "# localhost\n127.0.0.1\tlocalhost loc\n::1 ip6-localhost localhost # x\n10.0.0.1 host.localhost\n"
    assert probe.hosts_of(lines, "localhost") == ["127.0.0.1", "::1"]
    assert probe.port_range("32768\t60999") == [32768, 60999]
