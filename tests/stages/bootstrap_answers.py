"""What the probe of stage 12 sees of Ollama's children, healthy and stuck, and the judgement over it.

The runner's answer and llama-server's words were recorded from Ollama 0.16.3 and 0.32.15, built from source, over the
simulated driver libraries.
"""

from __future__ import annotations

from typing import Any

from pytest_gpudiscovery.model import Outcome
from pytest_gpudiscovery.outcome import Conclusion, conclude
from pytest_gpudiscovery.stages import bootstrap
from pytest_gpudiscovery.stages.spec import Judgement, RunContext, StageInput
from pytest_gpudiscovery.supervise.types import ChildResult
from tests.fakes import context, record, result
from tests.stages.runtime_answers import DEVICE, DRIVER, LIB, UUID, directory

PACKAGE = {"lib_dir": LIB, "version": "0.16.3", "era": "B", "binary": "/usr/local/bin/ollama"}
SERVER = f"{LIB}/llama-server"
DEVICE_B: dict[str, Any] = {
    "id": UUID,
    "backend": "CUDA",
    "name": "CUDA0",
    "description": DEVICE["name"],
    "pci_id": "0000:00:06.0",
    "total_memory": 85520809984,
    "free_memory": 85017493504,
    "ComputeMajor": 9,
    "ComputeMinor": 0,
    "driver_major": 13,
    "LibraryPath": [LIB, f"{LIB}/cuda_v12"],
}
OUTPUT_B = (
    'time=2026-11-25T00:30:46.626Z level=INFO source=runner.go:1411 msg="starting ollama engine"\n'
    "ggml_cuda_init: found 1 CUDA devices:\n"
    f"load_backend: loaded CUDA backend from {LIB}/cuda_v12/libggml-cuda.so\n"
)
RUN_B: dict[str, Any] = {
    "port": 36431,
    "port_error": None,
    "limit_s": 30.0,
    "seconds": 0.09,
    "reason": None,
    "status": 200,
    "body": "[]",
    "devices": [DEVICE_B],
    "error": None,
    "attempts": 4,
    "connected": 0.05,
    "garbage": 0,
    "argv": ["/usr/local/bin/ollama", "runner", "--ollama-engine", "--port", "36431"],
    "problem": None,
    "exit": None,
    "dead": True,
    "pid": 4711,
    "output": {"text": OUTPUT_B, "dropped": 0},
}
STARTED = (
    "0.00.027.161 I cmn  common_param: common_params_print_info: build 0 (4df29be4f) with GNU 12.2.0 for Linux x86_64\n"
    "0.00.027.226 I cmn  common_param: system_info: n_threads = 2 (n_threads_batch = 2) / 2 | CPU : SSE3 = 1 | "
    "CUDA : ARCHS = 500,520,600,610,700,750,800,860,890,900,1000,1200 | USE_GRAPHS = 1 | PEER_MAX_BATCH_SIZE = 128 | \n"
)
LISTED = "Available devices:\n  CUDA0: NVIDIA H100 80GB HBM3 (81079 MiB, 80552 MiB free)\n"
NATIVE = (
    '{"devices":[{"library":"CUDA","index":0,"index_matches_backend":true,"name":"CUDA0","description":"'
    'NVIDIA H100 80GB HBM3","device_id":"0000:00:06.0","integrated_known":true,"total_memory":85017493504,'
    '"free_memory":84465090560,"compute_major":9,"cuda_driver_major":13,"nvidia_driver_major":580}]}\n'
)
INIT_C = (
    "ggml_cuda_init: found 1 CUDA devices (Total VRAM: 81079 MiB):\n"
    "  Device 0: NVIDIA H100 80GB HBM3, compute capability 9.0, VMM: yes, VRAM: 81079 MiB\n"
)


def process(name: str, out: str = "", err: str = "", **changes: Any) -> dict[str, Any]:
    """Return what the probe says of one process of era C that ended well."""
    return {
        "reason": "exited",
        "argv": [SERVER if name != "native" else "/usr/local/bin/ollama", name],
        "problem": None,
        "exit": 0,
        "dead": True,
        "pid": 4712,
        "lines": err.count("\n"),
        "output": {"text": err, "dropped": 0},
        "out": out,
        "seconds": 0.05,
        **changes,
    }


def run_c(**changes: Any) -> dict[str, Any]:
    """Return what the probe says of one discovery of era C; CHANGES replace parts."""
    healthy = {
        "backend": f"{LIB}/cuda_v12/libggml-cuda.so",
        "cudart": ["libcudart.so.12", "libcudart.so.12.8.90"],
        "limit_s": 30.0,
        "seconds": 0.16,
        "start": process("start", err=STARTED, reason="seen", exit=None),
        "list": process("list", LISTED),
        "native": process("native", NATIVE, INIT_C),
    }
    return {**healthy, **changes}


def thread(
    tid: int, state: str = "S", syscall: str = "34 0x0 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x7f00", wchan: str = ""
) -> Any:
    """Return the texts of /proc of one thread: it sleeps in pause(2) unless told otherwise."""
    fields = " ".join(["0"] * 5)  # flags and page faults
    stat = f"{tid} (ollama) {state} 1 {tid} {tid} 0 -1 {fields} 5 1 0 0 20 0 9 0 4000 0\n"
    return {"tid": tid, "stat": stat, "status": "Name:\tollama\n", "wchan": wchan, "syscall": syscall, "stack": ""}


def stuck(
    *libraries: str,
    frames: tuple[str, ...] = (),
    listens: bool | None = True,
    threads: list[Any] | None = None,
    fds: dict[str, str] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return a look at a stuck child whose main thread has FRAMES (libraries) on its stack."""
    own = threads or [thread(100)]
    stack = {
        "frames": [{"library": name, "symbol": None, "offset": 16, "estimate": True} for name in frames],
        "path": None,
    }
    close = {"exe": "/usr/local/bin/ollama", "fds": fds or {}, "libraries": list(libraries), "errors": {}}
    return {
        "first": {"at": 10.0, "threads": own, "more": 0},
        "threads": {"at": 16.0, "threads": own, "more": 0},
        "listens": listens,
        "stranger": False,
        "children": [],
        "close": {**close, "stacks": {str(own[0]["tid"]): stack}},
        **changes,
    }


def prior(*names: str, package: Any = None, driver: Any = None, **stages: Any) -> dict[str, Any]:
    """Return the records before stage 12 for an install with GPU directories NAMES; STAGES replace or add records."""
    install = {**PACKAGE, "gpu_dirs": [directory(name) for name in names], **(package or {})}
    records = {
        "package": record("package", Outcome.PASSED, facts=install),
        "driver": record("driver", Outcome.PASSED, facts=DRIVER if driver is None else driver),
    }
    return {**records, **stages}


def results(answers: dict[str, Any], server: Any = None) -> dict[str, ChildResult]:
    """Return ANSWERS (probe name -> its answer or its end) behind the look for llama-server."""
    seen = {"layout": {"server": server, "newer": bool(server), "tried": []}, **answers}
    return {name: one if isinstance(one, ChildResult) else result(answer=one) for name, one in seen.items()}


def second(name: str = "cuda_v12", run: dict[str, Any] | None = None, key: str = UUID) -> dict[str, Any]:
    """Return the second pass of one device of directory NAME."""
    return {"children": {f"{name} {key}": RUN_B if run is None else run}, "seconds": 0.1}


def judged(
    answers: dict[str, Any], *names: str, server: Any = None, given: RunContext | None = None, **records: Any
) -> Judgement:
    """Return the judgement over ANSWERS for the directories NAMES."""
    facts = prior(*(names or ("cuda_v12",)), **records)
    return bootstrap.judge(StageInput(given or context(), results(answers, server), facts, 90.0))


def concluded(answers: dict[str, Any], judgement: Judgement, server: Any = None) -> Conclusion:
    """Return what the engine makes of JUDGEMENT."""
    return conclude(bootstrap.SPEC, judgement, results(answers, server), started=0.0, deadline_s=90.0)


def causes(judgement: Judgement) -> dict[str, str]:
    """Return cause -> outcome of what was found."""
    return {check.finding.cause: check.outcome.value for check in judgement.checks if check.finding}
