"""Why a child did not answer in time: every branch of the decision, from what a look at the stuck child shows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.stages import bootstrap_hang, bootstrap_server, protocol
from pytest_gpudiscovery.stages.protocol import Directory
from tests.stages.bootstrap_answers import LISTED, RUN_B, process, run_c, stuck, thread
from tests.stages.hostile import ANYTHING, mutated

BINARY = "/usr/local/bin/ollama"
LIB = "/usr/local/lib/ollama"
CUDA = f"{LIB}/cuda_v12/libggml-cuda.so"
DRIVER = "/usr/lib/libcuda.so.1"
VARIANT = f"{LIB}/libggml-cpu-icelake.so"
HIP = f"{LIB}/rocm/libggml-hip.so"
SHIM = "/opt/shim/libvgpu.so"
JIT = "/usr/lib/libnvidia-ptxjitcompiler.so.1"
MLX = f"{LIB}/mlx_cuda_v13/libmlxc.so"
FUTEX, FLOCK, IOCTL, OPENAT, READ = (
    f"{number} 0x5 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x7f00" for number in (202, 73, 16, 257, 0)
)
FAULT = "-1 0x7ffc 0x7f00"


def cause(look: dict[str, Any], *, connected: float | None = 0.1, preloaded: tuple[str, ...] = ()) -> str:
    run = {**RUN_B, "reason": "timeout", "connected": connected, "stuck": look}
    return bootstrap_hang.cause(run, BINARY, preloaded)[0]


def other_exe() -> dict[str, Any]:
    look = stuck()
    return {**look, "close": {**look["close"], "exe": "/usr/bin/python3.11"}}


def spent(look: dict[str, Any], ticks: int, faults: int = 0) -> dict[str, Any]:
    """Return LOOK at a child whose main thread had TICKS of the processor and FAULTS between the two looks (6 s)."""
    first, *rest = look["threads"]["threads"]
    stat = first["stat"].replace(" 0 0 0 0 0 5 1 0 0 20", f" 0 {faults} 0 0 0 {5 + ticks} 1 0 0 20")
    assert stat != first["stat"]
    return {**look, "threads": {**look["threads"], "threads": [{**first, "stat": stat}, *rest]}}


CASES: list[tuple[str, dict[str, Any]]] = [
    ("exec", other_exe()),
    ("stopped", stuck(threads=[thread(100, "T")])),
    ("stopped", stuck(threads=[thread(100), thread(101, "t")])),
    ("debugger", stuck(CUDA, children=[{"pid": 7, "name": "gdb"}])),
    ("port", stuck(stranger=True, listens=False)),
    ("start", stuck(listens=False)),
    ("mlx", stuck(MLX, listens=False, frames=(MLX, DRIVER))),
    ("mlx", stuck(MLX, listens=False)),
    ("variant", stuck(VARIANT, frames=(VARIANT,))),
    ("variant", stuck(f"{LIB}/libggml-cpu-x64.so", VARIANT)),
    ("tmpdir", stuck(f"{LIB}/libm.so", threads=[thread(100, "S", OPENAT)])),
    ("mute", stuck("/usr/lib/libm.so.6")),
    ("storage", stuck("/usr/lib/libm.so.6", threads=[thread(100, "D", READ)])),
    ("storage", stuck(VARIANT, threads=[thread(100, "D", FAULT)])),
    ("storage", stuck(CUDA, threads=[thread(100, "D", FAULT)])),
    ("jit", stuck(CUDA, JIT, frames=(JIT, DRIVER, CUDA), threads=[thread(100, "R", "running")])),
    ("driver", stuck(CUDA, frames=(DRIVER,), threads=[thread(100, "D", IOCTL)])),
    ("ioctl", stuck(CUDA, threads=[thread(100, "S", IOCTL)], fds={"5": "/dev/nvidiactl"})),
    ("spin", spent(stuck(CUDA, threads=[thread(100, "R", "running")]), 500)),
    ("slow", spent(stuck(CUDA, threads=[thread(100, "R", "running")]), 500, faults=900)),
    ("slow", stuck(CUDA, threads=[thread(100, "R", "running")])),  # it could run, and got no processor
    ("lock", stuck(CUDA, threads=[thread(100, "S", FUTEX)])),
    ("lock", stuck(CUDA, threads=[thread(100, "S", FLOCK)], fds={"5": "/tmp/vgpulock/lock"})),
    ("wait", stuck(CUDA)),
    ("unknown", stuck(CUDA, threads=[thread(100, "S", "")])),
    ("early", stuck("/usr/lib/libm.so.6", listens=None)),
    # The CPU variant lies deeper on the stack: it was done with, or its frames are stale.
    ("backend", stuck(VARIANT, HIP, frames=(HIP, VARIANT))),
]


@pytest.mark.parametrize(("expected", "look"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_the_class_of_a_hang(expected: str, look: dict[str, Any]) -> None:
    assert cause(look) == expected


def test_a_preloaded_object_is_named_before_mlx() -> None:
    assert cause(stuck(SHIM, listens=False), preloaded=("libvgpu.so",)) == "preload"
    assert cause(stuck(SHIM, MLX, listens=False, frames=(SHIM,)), preloaded=("libvgpu.so",)) == "preload"
    assert cause(stuck(SHIM, MLX, listens=False, frames=(MLX,)), preloaded=("libvgpu.so",)) == "mlx"
    # llama-server is asked over no port: what is on the stack decides
    assert cause(stuck(SHIM, listens=None, frames=(SHIM,)), preloaded=("libvgpu.so",)) == "preload"
    assert cause(stuck(SHIM, CUDA, listens=None, frames=(DRIVER,)), preloaded=("libvgpu.so",)) == "wait"


def test_a_listener_that_nobody_reaches() -> None:
    assert cause(stuck(), connected=None) == "loopback"


SERVER = f"{LIB}/llama-server"
# What a process of era C can be caught in: nobody asks it over a port, so nothing depends on a listener.
CASES_C: list[tuple[str, dict[str, Any]]] = [
    ("exec", other_exe()),
    ("stopped", stuck(listens=None, threads=[thread(100, "T")])),
    ("debugger", stuck(CUDA, listens=None, children=[{"pid": 7, "name": "gdb"}])),
    ("preload", stuck(SHIM, listens=None, frames=(SHIM,))),
    ("mlx", stuck(MLX, DRIVER, listens=None, frames=(MLX, DRIVER))),
    ("variant", stuck(VARIANT, listens=None, frames=(VARIANT,))),
    ("backend", stuck(VARIANT, HIP, listens=None, frames=(HIP, VARIANT))),
    ("tmpdir", stuck(f"{LIB}/libm.so", listens=None, threads=[thread(100, "S", OPENAT)])),
    ("early", stuck("/usr/lib/libm.so.6", listens=None)),
    ("storage", stuck(CUDA, listens=None, threads=[thread(100, "D", FAULT)])),
    ("jit", stuck(CUDA, JIT, listens=None, frames=(JIT, DRIVER), threads=[thread(100, "R", "running")])),
    ("driver", stuck(CUDA, listens=None, frames=(DRIVER,), threads=[thread(100, "D", IOCTL)])),
    ("ioctl", stuck(CUDA, listens=None, threads=[thread(100, "S", IOCTL)], fds={"5": "/dev/nvidiactl"})),
    ("spin", spent(stuck(CUDA, listens=None, threads=[thread(100, "R", "running")]), 500)),
    ("slow", stuck(CUDA, listens=None, threads=[thread(100, "R", "running")])),
    ("lock", stuck(CUDA, listens=None, threads=[thread(100, "S", FUTEX)])),
    ("lock", stuck(CUDA, listens=None, threads=[thread(100, "S", FLOCK)], fds={"5": "/tmp/vgpulock/lock"})),
    ("wait", stuck(CUDA, listens=None)),
    ("unknown", stuck(CUDA, listens=None, threads=[thread(100, "S", "")])),
]
ASKED_OVER_A_PORT = {"port", "start", "loopback", "mute"}
OF_THE_ASKER = {"resolve", "asker"}  # the process that starts the children hangs itself


@pytest.mark.parametrize("which", ["start", "list", "native"])
@pytest.mark.parametrize(("expected", "look"), CASES_C, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES_C)])
def test_the_class_of_a_hang_of_era_c(expected: str, look: dict[str, Any], which: str) -> None:
    exe = SERVER if expected != "exec" else look["close"]["exe"]
    look = {**look, "close": {**look["close"], "exe": exe}}
    step = {"reason": "timeout", "exit": None, "dead": True, "argv": [SERVER], "lines": 0, "stuck": look}
    parts = dict.fromkeys(("start", "list", "native"), None) | {"start": process("start", reason="seen", exit=None)}
    parts |= {"list": process("list", LISTED)} if which == "native" else {}
    run = run_c(**{**parts, which: step})
    directory = Directory("cuda_v12", f"{LIB}/cuda_v12", CUDA)
    checks = bootstrap_server.judge(directory, run, protocol.of({"era": "C"}, newer=True), SERVER, ["libvgpu.so"], 30.0)
    finding = next(check.finding for check in checks if check.finding and check.finding.cause.endswith("hang"))
    mine = catalogue.causes()[f"bootstrap.hang.{expected}"]
    assert finding.cause == f"bootstrap.{which}.hang"
    assert finding.action is mine.action
    assert finding.next.split()[0] == mine.next.split()[0], "the remedy is that of what it hangs in"
    if which != "native":
        assert f"class {expected}." in finding.detail
    assert finding.evidence["blocked_in"]
    assert finding.evidence["activity"]["pace"]


def test_every_class_is_reached() -> None:
    of_b = {name for name, _ in CASES} | {"preload", "loopback"}
    of_c = {name for name, _ in CASES_C}
    known = {name.removeprefix("bootstrap.hang.") for name in catalogue.causes() if name.startswith("bootstrap.hang.")}
    assert of_b == known - OF_THE_ASKER
    assert of_c == known - OF_THE_ASKER - ASKED_OVER_A_PORT


def test_the_thread_that_holds_the_others_up_is_not_gos_main_thread() -> None:
    look = stuck(CUDA, threads=[thread(100, "S", FUTEX), thread(101, "S", IOCTL)], fds={"5": "/dev/nvidiactl"})
    stack = {"frames": [{"library": DRIVER, "symbol": "cuInit", "offset": 1, "estimate": True}], "path": None}
    look["close"]["stacks"]["101"] = stack
    assert cause(look) == "ioctl"
    _, facts = bootstrap_hang.cause({**RUN_B, "stuck": look}, BINARY, ())
    assert facts["blocked_in"] == "ioctl on /dev/nvidiactl < cuInit (libcuda.so.1); state S"


def test_a_thread_without_progress_that_runs_is_spinning() -> None:
    look = spent(stuck(CUDA, threads=[thread(100, "R", "")]), 500)
    assert bootstrap_hang.read(look).activity["verdict"] == "spinning in user space"
    assert cause(look) == "spin"


def test_when_no_further_child_may_touch_the_driver() -> None:
    def unsafe(look: dict[str, Any], **changes: Any) -> bool:
        return bootstrap_hang.unsafe({**RUN_B, "stuck": look, **changes})

    assert not bootstrap_hang.unsafe(RUN_B)
    assert not unsafe(stuck(CUDA))
    assert unsafe(stuck(CUDA), dead=False)
    assert unsafe(stuck(CUDA, threads=[thread(100), thread(101, "D")]))
    assert unsafe(stuck(CUDA, threads=[thread(100, "S", IOCTL)], fds={"5": "/dev/nvidia0"}))


def test_the_processes_of_one_discovery() -> None:
    assert bootstrap_hang.parts(RUN_B) == [RUN_B]
    run = {"start": {"exit": 0}, "list": {"exit": 1}, "native": None}
    assert bootstrap_hang.parts(run) == [run, {"exit": 0}, {"exit": 1}]


@settings(deadline=None)  # a loaded machine is no failure
@given(mutated(stuck(CUDA, VARIANT, frames=(DRIVER, CUDA), fds={"5": "/dev/nvidiactl"})))
def test_a_hostile_look_never_raises(look: dict[str, Any]) -> None:
    cause(look, preloaded=("libvgpu.so",))
    bootstrap_hang.unsafe({"stuck": look})


@settings(deadline=None)
@given(ANYTHING, ANYTHING)
def test_any_value_at_all_never_raises(look: Any, close: Any) -> None:
    for one in (look, {"close": close, "threads": look, "first": look, "children": close}):
        name, facts = bootstrap_hang.cause({"stuck": one, "connected": look}, BINARY, ("libvgpu.so",))
        assert name
        assert isinstance(facts["blocked_in"], str)
        bootstrap_hang.unsafe({"stuck": one, "dead": close})
