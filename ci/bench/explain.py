"""Measure how fast a log is explained, against a plain read of the same bytes, and that memory does not grow.

    python ci/bench/explain.py [--size MB] [--kinds 'requests;debug;...'] [--check]

For each kind of log a file of --size MB (default 1000) is written to the temporary directory; in a process of its own
it is read plainly, then explained twice, of which the faster counts: what else runs on the machine is not its time.
Prints MB per second of processor time for both, their ratio, MB/s by the wall clock, and the peak resident size of the
process for a tenth of the size and for all of it. The promise: 100 MB/s of processor time, in constant memory.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import logs

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a clone

GIN = '[GIN] 2026/02/25 - 08:55:12 | 200 |      13.518µs |       127.0.0.1 | GET      "/api/tags"\n'
DEBUG = (
    'time=2026-02-25T08:54:34.396-05:00 level=DEBUG source=sched.go:147 msg="evaluating already loaded" '
    "model=/usr/share/ollama/.ollama/models/blobs/sha256-6a0746a1ec1aef3e7ec53868f220ff6e389f6f8ef87a01d77c96807de94ca2aa\n"
)
TRACE = (
    'time=2026-02-25T08:54:34.396-05:00 level=TRACE source=bytepairencoding.go:268 msg=encoded string="a" ids=[64]\n'
)
CHILD = "llama_model_loader: - kv  17:                       tokenizer.ggml.tokens arr[str,128256]\n"
LOADS = (
    'time=2026-02-25T08:54:34.396-05:00 level=INFO source=server.go:431 msg="starting runner" '
    'cmd="/usr/local/bin/ollama runner --ollama-engine --model /m --port 37001"\n'
)
START = """\
time=2026-02-25T08:54:04.366-05:00 level=INFO source=routes.go:1718 msg="Listening on [::]:11434 (version 0.16.3)"
time=2026-02-25T08:54:04.366-05:00 level=INFO source=runner.go:67 msg="discovering available GPUs..."
time=2026-02-25T08:54:04.376-05:00 level=INFO source=server.go:431 msg="starting runner" cmd="/usr/bin/ollama runner --ollama-engine --port 37001"
time=2026-02-25T08:54:34.396-05:00 level=INFO source=runner.go:464 msg="failure during GPU discovery" OLLAMA_LIBRARY_PATH="[/usr/lib/ollama /usr/lib/ollama/cuda_v12]" extra_envs=map[] error="failed to finish discovery before timeout"
time=2026-02-25T08:54:34.647-05:00 level=INFO source=types.go:60 msg="inference compute" id=cpu library=cpu compute="" total="3.8 GiB"
time=2026-02-25T08:54:34.647-05:00 level=INFO source=routes.go:1768 msg="vram-based default context" total_vram="0 B" default_num_ctx=4096
"""  # noqa: E501 - lines of a log
IN_USE = """\
time=2026-02-25T08:54:04.366-05:00 level=INFO source=routes.go:1663 msg="server config" env="map[CUDA_VISIBLE_DEVICES: OLLAMA_DEBUG:INFO OLLAMA_HOST:http://0.0.0.0:11434]"
Error: listen tcp 0.0.0.0:11434: bind: address already in use
"""  # noqa: E501
REFRESH = """\
time=2026-02-25T08:54:04.366-05:00 level=DEBUG source=runner.go:264 msg="refreshing free memory"
time=2026-02-25T08:54:04.366-05:00 level=DEBUG source=runner.go:328 msg="unable to refresh all GPUs with existing runners, performing bootstrap discovery"
time=2026-02-25T08:54:04.376-05:00 level=INFO source=server.go:431 msg="starting runner" cmd="/usr/bin/ollama runner --ollama-engine --port 37001"
time=2026-02-25T08:54:04.396-05:00 level=DEBUG source=runner.go:437 msg="bootstrap discovery took" duration=30ms OLLAMA_LIBRARY_PATH="[/usr/lib/ollama /usr/lib/ollama/cuda_v12]" extra_envs=map[]
time=2026-02-25T08:54:04.396-05:00 level=DEBUG source=runner.go:40 msg="overall device VRAM discovery took" duration=30ms
"""  # noqa: E501


def _journal(text: str) -> str:
    fields = {"_PID": "7", "_SYSTEMD_UNIT": "ollama.service", "__REALTIME_TIMESTAMP": "1772027674396000"}
    return "".join(json.dumps({**fields, "MESSAGE": line}) + "\n" for line in text.splitlines())


DAY = GIN * 60 + DEBUG * 12 + CHILD * 20 + LOADS  # what a busy server writes between two starts
DEBUG_REFRESH = functools.cache(lambda: logs.some(logs.refresh_b))
TRACE_REFRESH = functools.cache(lambda: logs.some(lambda write: logs.refresh_b(write, trace=True)))
PROMISED = 100  # MB/s of processor time
KINDS: dict[str, Callable[[], str]] = {
    "requests": lambda: START + GIN * 100_000,
    "debug": lambda: START + DEBUG * 40_000,
    "trace": lambda: START + TRACE * 80_000,
    "trace, no line twice": lambda: logs.some(logs.prompts),
    "child output": lambda: START + CHILD * 100_000,
    "mixed with starts": lambda: START + DAY * 700,
    "journal-json with starts": lambda: _journal(START + DAY * 200),
    "binary rubbish": lambda: START + "\0\x01\x7f" * 2_700_000,
    "nothing but starts": lambda: START * 2000,
    "starts in journal-json": lambda: _journal(START * 1000),
    "starts with child output": lambda: (START + CHILD * 1000) * 30,
    "port in use": lambda: IN_USE * 2000,
    "the same refreshes": lambda: START + REFRESH * 2000,
    "refreshes": DEBUG_REFRESH,
    "refreshes, era C": lambda: logs.some(logs.refresh_c, version="0.32.15"),
    "refreshes at TRACE": TRACE_REFRESH,
    "refreshes, all fail": lambda: logs.some(lambda write: logs.refresh_b(write, failed=True)),
    "refreshes, all slow": lambda: logs.some(lambda write: logs.refresh_b(write, slow=True)),
    "refreshes, 1 in 200 bad": lambda: logs.some(logs.now_and_then(200)),
    "refreshes among requests": lambda: logs.some(logs.between(logs.refresh_b, logs.requests, 0.5)),
    "refreshes among tensors": lambda: logs.some(logs.between(logs.refresh_b, logs.tensors, 0.5)),
    "refreshes, journal": lambda: logs.journal(DEBUG_REFRESH()),
    "refreshes, journal-json": lambda: logs.journal_json(DEBUG_REFRESH()),
    "two servers in turn": lambda: logs.two(DEBUG_REFRESH(), DEBUG_REFRESH(), logs.journal, block=6),
    "two servers line by line": lambda: logs.two(DEBUG_REFRESH(), DEBUG_REFRESH(), logs.journal, block=1),
    "two at TRACE, at random": lambda: logs.two_at_random(TRACE_REFRESH(), TRACE_REFRESH(), logs.journal, longest=9),
    "model loads, INFO": lambda: logs.some(lambda write: logs.load(write, "INFO")),
    "model loads, DEBUG": lambda: logs.some(lambda write: logs.load(write, "DEBUG")),
    "model loads, journal": lambda: logs.journal(logs.some(lambda write: logs.load(write, "DEBUG"))),
    "model loads, journal-json": lambda: logs.journal_json(logs.some(lambda write: logs.load(write, "DEBUG"))),
    "one failure": lambda: START + logs.HEAD + START.splitlines(keepends=True)[3] * 5000,
    "one child": lambda: START + logs.HEAD + START.splitlines(keepends=True)[2] * 5000,
    "one result": lambda: START + logs.HEAD + START.splitlines(keepends=True)[4] * 5000,
    "chatter, no line twice": lambda: logs.some(logs.chatter),
}
PROGRAM = """
import json, sys, time
from pytest_gpudiscovery.ollama import postmortem
path = sys.argv[1]
with open(path, "rb", buffering=0) as file:
    begin = time.process_time()
    while file.read(1 << 20):
        pass
    plain = max(time.process_time() - begin, 1e-3)
runs = []
for _ in range(2):
    with open(path, "rb", buffering=0) as file:
        begin, wall = time.process_time(), time.perf_counter()
        found = postmortem.explain(file.read, path)
        runs.append((time.process_time() - begin, time.perf_counter() - wall))
took, wall = min(runs)
with open("/proc/self/status") as status:  # not ru_maxrss: that begins with the parent's
    peak = int(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
print(json.dumps({"plain": plain, "took": took, "wall": wall, "peak": peak / 1024, "answer": found["answer"]}))
"""


def measure(path: Path) -> dict[str, float]:
    """Return seconds of a plain read and of an explanation of PATH, and the peak of the process in MB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        env={"PYTHONPATH": ":".join(entry for entry in sys.path if entry)},
        capture_output=True,
        text=True,
        timeout=3600,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def write(path: Path, head: bytes, unit: bytes, size: int) -> None:
    """Write SIZE bytes to PATH: HEAD and then UNIT, again and again."""
    with path.open("wb") as file:
        left = size - file.write(head)
        while left > 0:
            left -= file.write(unit[:left])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, metavar="MB")
    parser.add_argument("--kinds", default=";".join(KINDS), help="names of the first column, with ; between them")
    parser.add_argument("--check", action="store_true", help=f"exit 1 when one is below {PROMISED} MB/s")
    options = parser.parse_args()
    columns = ("MB/s", "plain", "ratio", "wall MB/s", "peak, a tenth", "peak, all")
    print(f"{'log':<26}{'':2}" + "".join(f"{name:>15}" for name in columns))
    slow = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "ollama.log")
        for kind in options.kinds.split(";"):
            head, _, body = KINDS[kind]().rpartition(logs.HEAD)
            write(path, head.encode(), body.encode(), options.size * 100_000)
            small = measure(path)
            write(path, head.encode(), body.encode(), options.size * 1_000_000)
            time.sleep(1)  # let what was written reach the page cache's quiet
            found = measure(path)
            speed, plain = options.size / found["took"], options.size / found["plain"]
            slow += [kind] if speed < PROMISED else []
            row = (
                f"{speed:.0f}",
                f"{plain:.0f}",
                f"{found['took'] / found['plain']:.1f}",
                f"{options.size / found['wall']:.0f}",
                f"{small['peak']:.1f} MB",
                f"{found['peak']:.1f} MB",
            )
            print(f"{kind:<26}{'':2}" + "".join(f"{cell:>15}" for cell in row), flush=True)
    print(f"below {PROMISED} MB/s: {', '.join(slow) or 'none'}")
    return int(options.check and bool(slow))


if __name__ == "__main__":
    raise SystemExit(main())
