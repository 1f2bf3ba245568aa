"""04 kernel: the judgement is total. Any file may hold anything, and any answer may stop anywhere."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.model import CheckOutcome, Kind, Outcome, Step
from pytest_gpudiscovery.stages import kernel_nodes
from pytest_gpudiscovery.stages.kernel import ROWS, SPEC
from pytest_gpudiscovery.stages.spec import RunContext, StageInput
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Identity, Setup
from tests import fakes
from tests.privileges import needs_mounts
from tests.stages import hosts

PATHS = sorted(path for path in hosts.h100() if not path.startswith(("/etc", "/sys/class")))
ERRORS = ["EACCES", "EPERM", "EIO", "ELOOP", "ENXIO", "ENOMEM", "ESTALE"]
HOSTILE = st.one_of(
    st.text(max_size=200),
    st.sampled_from(["", "\0", "0x10de\n", "195 nvidia", ":" * 50, "9" * 5000, "Device Minor: -1", "0x0302zz", "Y"]),
)
ENTRY = st.one_of(
    st.none(),
    st.builds(hosts.file, HOSTILE, st.sampled_from([0o444, 0o000, 0o4755])),
    st.builds(hosts.node, st.integers(0, 4095), st.integers(0, 1 << 20), open=st.sampled_from([*ERRORS, "ENODEV"])),
    st.builds(lambda name: {"type": "error", "errno": name}, st.sampled_from(ERRORS)),
    st.just({"type": "dir", "mode": 0o755, "uid": 0, "gid": 0}),
    st.builds(
        lambda target: {"type": "link", "target": target}, st.sampled_from(["/", ".", "..", "loop", "/dev/kmsg"])
    ),
)


def record(entries: hosts.Entries, directory: str) -> RunContext:
    """Return a context over ENTRIES, recorded below DIRECTORY."""
    path = os.path.join(directory, "host.json")
    Path(path).write_text(json.dumps({"entries": entries}), encoding="utf-8")
    return fakes.context(view={"kind": "recorded", "path": path}, env={"LD_LIBRARY_PATH": hosts.LIBRARIES})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.dictionaries(st.sampled_from(PATHS), ENTRY, max_size=6))
def test_no_content_of_any_file_makes_the_stage_raise(changes: dict[str, Any]) -> None:
    entries = {path: entry for path, entry in {**hosts.h100(), **changes}.items() if entry is not None}
    with tempfile.TemporaryDirectory() as directory:
        context = record(entries, directory)
        said = hosts.judged(SPEC, context, hosts.in_process(SPEC, context))
    assert {check.prerequisite for check in said.checks} == set(ROWS)
    assert said.outcome in (Outcome.PASSED, Outcome.WARNED, Outcome.FAILED)
    assert said.summary


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChildResult]:
    """What the probes answer on a healthy host, asked as another user: three probes."""
    context = record(hosts.h100(), str(tmp_path_factory.mktemp("host")))
    return hosts.in_process(SPEC, dataclasses.replace(context, setup=Setup(identity=Identity(65534, 65534))))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_an_answer_that_stops_anywhere_is_judged(healthy: dict[str, ChildResult], data: st.DataObject) -> None:
    last = data.draw(st.sampled_from(["look", "nodes", "processes"]))
    results = {}
    for name, result in healthy.items():
        if name != last:
            results[name] = result
            continue
        keys = data.draw(st.integers(0, len(result.answer)))
        observed = dict(list(result.answer.items())[:keys])
        results[name] = fakes.result(Ending.TIMED_OUT, observed=observed, steps=(Step("open /dev/nvidia0", 0.1, None),))
        break
    said = hosts.judged(SPEC, fakes.context(), results)
    if last == "processes":
        assert said.outcome is Outcome.PASSED
        scan = next(check for check in said.checks if check.prerequisite == "P87")
        assert (scan.outcome, scan.kind) == (CheckOutcome.UNKNOWN, Kind.OBSERVABILITY)
    else:
        assert said.outcome is Outcome.TIMED_OUT
        assert hosts.causes(said, "failed") == ["kernel.node.open_hang"]


def test_a_node_after_the_one_that_hangs_is_not_called_missing(healthy: dict[str, ChildResult]) -> None:
    answer = healthy["nodes"].answer
    observed = {**answer, "nodes": answer["nodes"][:2]}  # nvidiactl and nvidia-uvm
    hung = fakes.hang("open /dev/nvidia0", observed=observed)
    said = hosts.judged(SPEC, fakes.context(), {"look": healthy["look"], "nodes": hung})
    assert hosts.causes(said) == ["kernel.node.open_hang"]
    one = fakes.hang("open /dev/nvidia0", observed={**healthy["look"].answer, **observed})
    assert hosts.causes(hosts.judged(SPEC, fakes.context(), {"look": one})) == ["kernel.node.open_hang"]


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        ("open /dev/nvidia-uvm", "kernel.node.open_hang"),
        ("read /proc/driver/nvidia/gpus", "kernel.proc.read_hang"),
        ("read /sys/module", "engine.probe.hang"),
    ],
)
def test_a_hang_is_named_by_its_step(step: str, cause: str) -> None:
    said = hosts.judged(SPEC, fakes.context(), {"look": fakes.hang(step, evidence={"blocked_in": "ioctl"})})
    assert said.outcome is Outcome.TIMED_OUT
    assert hosts.causes(said) == [cause]


def test_a_stuck_process_warns_and_is_named(healthy: dict[str, ChildResult]) -> None:
    task = {"pid": 7, "tid": 8, "comm": "python", "wchan": "rwsem_down_read", "nodes": ["/dev/nvidia0"], "started": 1}
    answer = {"holders": [{"pid": 7, "comm": "python", "nodes": ["/dev/nvidia0"]}], "stuck": [task], "hidden": 0}
    said = hosts.judged(SPEC, fakes.context(), {**healthy, "processes": fakes.result(answer=answer)})
    assert said.outcome is Outcome.WARNED
    assert hosts.causes(said) == ["kernel.processes.stuck"]
    assert said.summary == "python (pid 7) holds /dev/nvidia0 in state D (rwsem_down_read)"
    assert said.facts["holders"][0]["pid"] == 7


@pytest.mark.parametrize("wchan", ["folio_wait_bit_common", "rpc_wait_bit_killable", "io_schedule", "xfs_buf_lock"])
def test_a_job_that_waits_for_its_data_is_not_stuck(healthy: dict[str, ChildResult], wchan: str) -> None:
    task = {"pid": 7, "tid": 8, "comm": "python", "wchan": wchan, "nodes": ["/dev/nvidia0"], "started": 1}
    answer = {"holders": [{"pid": 7, "comm": "python", "nodes": ["/dev/nvidia0"]}], "stuck": [task], "hidden": 0}
    said = hosts.judged(SPEC, fakes.context(), {**healthy, "processes": fakes.result(answer=answer)})
    assert (said.outcome, hosts.causes(said)) == (Outcome.PASSED, [])


def test_tasks_in_state_d_that_hide_their_files_are_unknown(healthy: dict[str, ChildResult]) -> None:
    answer = {"holders": [], "stuck": [], "hidden": 2}
    said = hosts.judged(SPEC, fakes.context(), {**healthy, "processes": fakes.result(answer=answer)})
    scan = next(check for check in said.checks if check.prerequisite == "P87")
    assert scan.outcome is CheckOutcome.UNKNOWN
    assert said.outcome is Outcome.PASSED


def test_the_plan_ends_without_a_driver_and_asks_as_the_service() -> None:
    who = Setup(identity=Identity(65534, 65534), private_dev=True, drop_mknod=True)
    context = hosts.context(hosts.h100(), setup=who, env={"LD_PRELOAD": "/x.so", "LD_AUDIT": "/y.so"})
    name, look = SPEC.plan(context, {}, {}) or ("", None)
    assert name == "look"
    assert look is not None
    assert look.setup.identity is None
    assert not {"LD_PRELOAD", "LD_AUDIT"} & set(look.env)
    assert look.request["env"] is None
    alone = SPEC.plan(dataclasses.replace(context, setup=Setup()), {}, {})
    assert alone is not None
    assert alone[1].request["env"]["LD_LIBRARY_PATH"] == hosts.LIBRARIES
    seen = {"proc_gpus": {"gpus": [{"minor": 3}, {"minor": None}]}, "devices": {"nvidia": True, "uvm": 238}}
    name, nodes = SPEC.plan(context, {}, {"look": fakes.result(answer=seen)}) or ("", None)
    assert name == "nodes"
    assert nodes is not None
    assert (nodes.setup.identity, nodes.setup.private_dev, nodes.setup.drop_mknod) == (who.identity, False, False)
    assert (nodes.request["minors"], nodes.request["uvm_major"]) == ([3], 238)
    nothing = {"proc_gpus": {"gpus": []}, "devices": {"nvidia": False, "uvm": None}}
    assert SPEC.plan(context, {}, {"look": fakes.result(answer=nothing)}) is None


IDENTITIES = st.fixed_dictionaries(
    {
        "uid": st.sampled_from([0, 1000]),
        "gid": st.sampled_from([0, 44, 1000]),
        "groups": st.lists(st.sampled_from([44, 109]), max_size=2),
        "effective": st.sampled_from([None, "", "zz", "0", "0000000000000002", "000001ffffffffff"]),
    }
)


@given(identity=IDENTITIES, mode=st.integers(0, 0o777), uid=st.sampled_from([0, 1000]), gid=st.sampled_from([0, 44]))
def test_the_mode_decides_as_the_kernel_does(identity: dict[str, Any], mode: int, uid: int, gid: int) -> None:
    # The kernel takes the first class that fits, also when a later one would allow more (path_resolution(7)).
    allowed = kernel_nodes.mode_allows({"mode": mode, "uid": uid, "gid": gid}, identity)
    if identity["effective"] in ("0000000000000002", "000001ffffffffff"):
        assert allowed
    elif identity["uid"] == uid:
        assert allowed == (mode & 0o600 == 0o600)
    elif gid == identity["gid"] or gid in identity["groups"]:
        assert allowed == (mode & 0o060 == 0o060)
    else:
        assert allowed == (mode & 0o006 == 0o006)


@given(
    node=st.fixed_dictionaries(
        {
            "path": st.sampled_from(["/dev/nvidia0", "/dev/nvidiactl"]),
            "expected": st.tuples(st.none() | st.integers(0, 500), st.none() | st.integers(0, 300)),
            "stat": st.none()
            | st.fixed_dictionaries(
                {
                    "type": st.sampled_from(["char", "file", "dir", "other"]),
                    "mode": st.integers(0, 0o7777),
                    "uid": st.integers(0, 9),
                    "gid": st.integers(0, 9),
                    "major": st.none() | st.integers(0, 500),
                    "minor": st.none() | st.integers(0, 300),
                }
            ),
            "errno": st.none() | st.sampled_from(sorted(errno.errorcode.values())),
            "open": st.none() | st.sampled_from(["ok", *sorted(errno.errorcode.values())]),
            "nodev": st.booleans(),
        }
    ),
    identity=IDENTITIES,
)
def test_every_answer_of_a_node_has_a_state_with_a_cause(node: dict[str, Any], identity: dict[str, Any]) -> None:
    state = kernel_nodes.state(node, identity, {1, 2})
    assert state == kernel_nodes.OK or state in kernel_nodes.CAUSE_OF
    if state == kernel_nodes.OK:
        assert node["open"] == "ok"
        assert node["stat"]["type"] == "char"


@needs_mounts
def test_the_running_kernel_answers_as_the_states_expect() -> None:
    """Make nodes in a /dev of our own and open them for real: no driver is ENXIO, nodev and mode are EACCES."""
    code = (
        "import json,os,sys\n"
        "from pytest_gpudiscovery.probes import nodes\n"
        "from pytest_gpudiscovery.probes.journal import Journal\n"
        "os.mknod('/dev/nvidiactl', 0o20666, os.makedev(195, 255)); os.chmod('/dev/nvidiactl', 0o666)\n"
        "os.mknod('/dev/nvidia0', 0o20600, os.makedev(195, 0)); os.chmod('/dev/nvidia0', 0o600)\n"
        "open('/dev/nvidia-uvm', 'w').close()\n"
        "sink = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o666)\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "request = {'view': {'kind': 'live'}, 'env': {}, 'minors': [0, 1], 'uvm_major': None}\n"
        "print(json.dumps(nodes.probe(request, Journal(sink))))\n"
    )
    states = {}
    for options in ("mode=755", "mode=755,nodev"):
        with tempfile.TemporaryDirectory() as directory:
            shell = f'mount -t tmpfs -o {options} none /dev && exec "$@"'
            done = subprocess.run(
                ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-c", code, f"{directory}/journal"],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        states[options] = kernel_nodes.states(answer["nodes"], {}, answer["identity"])
    plain = {"/dev/nvidiactl": "no_driver", "/dev/nvidia0": "no_permission"}
    same = {"/dev/nvidia-uvm": "not_char", "/dev/nvidia1": "missing"}
    assert states["mode=755"] == {**plain, **same}
    assert states["mode=755,nodev"] == {"/dev/nvidiactl": "nodev", "/dev/nvidia0": "nodev", **same}


def test_judging_nothing_says_so() -> None:
    said = SPEC.judge(StageInput(fakes.context(), {}, {}, 10.0))
    assert said.checks == ()
