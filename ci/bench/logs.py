"""Logs to measure with: what servers write in use, and what nobody would write. Lines as Ollama 0.16.3 and 0.32.15 do.

Times, ports, durations, free memory and journal cursors differ from line to line, as they do in a real log: a log that
repeats the same bytes would flatter the reader.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

BEGIN = datetime(2026, 2, 25, 8, 54, 4, tzinfo=timezone.utc)
HEAD = "\0head\0"  # what is before it is written once
LIB = "/usr/local/lib/ollama"
V12, V13 = f"{LIB} {LIB}/cuda_v12", f"{LIB} {LIB}/cuda_v13"
BLOB = "/usr/share/ollama/.ollama/models/blobs/sha256-6a0746a1ec1aef3e7ec53868f220ff6e389f6f8ef87a01d77c96807de94ca2aa"
STARTS = 5  # lines of a start
GPU = "GPU-00000000-0000-4000-8000-000000000000"


class Writer:
    """Writes lines with a clock; `random` has a seed, so that a log is the same every time."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)  # noqa: S311 - the same log every time
        self.now = 0.0

    def line(self, level: str, source: str, rest: str, after: float = 0.001) -> str:
        """Return one line of slog, AFTER seconds after the one before."""
        self.now += after
        time = (BEGIN + timedelta(seconds=self.now)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return f"time={time} level={level} source={source} msg={rest}"

    def ms(self, low: float = 20.0, high: float = 400.0) -> str:
        """Return a duration."""
        return f"{self.random.uniform(low, high):.{self.random.choice((4, 5, 6, 6, 6))}f}ms"

    def port(self) -> int:
        """Return a free port."""
        return self.random.randint(32768, 60999)

    def gin(self) -> str:
        """Return a request."""
        time = BEGIN + timedelta(seconds=self.now)
        took = f"{self.random.uniform(10, 900):.3f}µs"
        path = self.random.choice(("/api/tags", "/api/ps", "/api/version"))
        return f'[GIN] {time:%Y/%m/%d - %H:%M:%S} | 200 | {took:>13} |       127.0.0.1 | GET      "{path}"'


def start(write: Writer, version: str = "0.16.3") -> Iterator[str]:
    """A server that finds its GPU."""
    lines = {"0.16.3": (1663, 1718, 67, 42, 1768), "0.32.15": (1951, 2008, 60, 32, 2058)}[version]
    yield write.line(
        "INFO", f"routes.go:{lines[0]}", '"server config" env="map[CUDA_VISIBLE_DEVICES: OLLAMA_DEBUG:DEBUG]"'
    )
    yield write.line("INFO", f"routes.go:{lines[1]}", f'"Listening on [::]:11434 (version {version})"')
    yield write.line("INFO", f"runner.go:{lines[2]}", '"discovering available GPUs..."')
    yield write.line(
        "INFO",
        f"types.go:{lines[3]}",
        f'"inference compute" id={GPU} library=CUDA compute=9.0 name=CUDA0 description="NVIDIA H100 80GB HBM3" '
        'libdirs=ollama,cuda_v12 driver=12.8 pci_id=0000:06:00.0 type=discrete total="79.2 GiB" available="78.7 GiB"',
        0.5,
    )
    yield write.line(
        "INFO", f"routes.go:{lines[4]}", '"vram-based default context" total_vram="79.2 GiB" default_num_ctx=262144'
    )


def refresh_b(write: Writer, *, trace: bool = False, slow: bool = False, failed: bool = False) -> Iterator[str]:
    """A refresh of 0.16.3 at DEBUG or TRACE."""
    yield write.line("DEBUG", "runner.go:264", '"refreshing free memory"', 2.0)
    yield write.line(
        "DEBUG",
        "runner.go:328",
        '"unable to refresh all GPUs with existing runners, performing bootstrap discovery"',
    )
    if trace:
        yield write.line(
            "TRACE", "runner.go:440", f'"starting runner for device discovery" libDirs="[{V12}]" extraEnvs=map[]'
        )
    port = write.port()
    yield write.line(
        "INFO", "server.go:431", f'"starting runner" cmd="/usr/local/bin/ollama runner --ollama-engine --port {port}"'
    )
    yield write.line(
        "DEBUG",
        "server.go:432",
        f"subprocess PATH=/usr/local/bin:/usr/bin:/bin OLLAMA_DEBUG=1 LD_LIBRARY_PATH={V12.replace(' ', ':')} "
        f"OLLAMA_LIBRARY_PATH={V12.replace(' ', ':')}",
    )
    if trace:
        early, late = _child(write, port), []
        if write.random.random() < 0.5:  # the pipe is slower than the answer
            cut = write.random.randint(8, len(early))
            early, late = early[:cut], early[cut:]
        yield from early
    took = "3.0012345s" if failed else f"{write.random.uniform(1.6, 2.9):.6f}s" if slow else write.ms()
    where = f'OLLAMA_LIBRARY_PATH="[{V12}]" extra_envs=map[]'
    if trace:
        memory = write.random.randint(10**9, 85 * 10**9)
        yield write.line(
            "TRACE",
            "runner.go:467",
            f'"runner enumerated devices" OLLAMA_LIBRARY_PATH="[{V12}]" devices="[{{DeviceID:{{ID:{GPU} Library:CUDA}} '
            f"Name:CUDA0 Description:NVIDIA H100 80GB HBM3 FilterID: Integrated:false PCIID:0000:06:00.0 "
            f'TotalMemory:85520809984 FreeMemory:{memory} ComputeMajor:9 ComputeMinor:0}}]"',
        )
    if failed:
        yield write.line(
            "INFO",
            "runner.go:464",
            f'"failure during GPU discovery" {where} error="failed to finish discovery before timeout"',
            3.0,
        )
    yield write.line("DEBUG", "runner.go:437", f'"bootstrap discovery took" duration={took} {where}', 0.03)
    if failed:
        yield write.line("WARN", "runner.go:356", '"unable to refresh free memory, using old values"')
    yield write.line("DEBUG", "runner.go:40", f'"overall device VRAM discovery took" duration={took}')
    if trace:
        yield from late


def _child(write: Writer, port: int) -> list[str]:
    """Return what a discovery child of 0.16.3 says at TRACE."""
    memory = write.random.randint(10**9, 85 * 10**9)
    return [
        write.line("INFO", "runner.go:1411", '"starting ollama engine"'),
        write.line("INFO", "runner.go:1446", f'"Server listening on 127.0.0.1:{port}"'),
        write.line("DEBUG", "gguf.go:589", "general.architecture type=string"),
        write.line("DEBUG", "gguf.go:589", "tokenizer.ggml.model type=string"),
        write.line(
            "INFO",
            "ggml.go:136",
            '"" architecture=llama file_type=unknown name="" description="" num_tensors=0 num_key_values=3',
        ),
        write.line("DEBUG", "ggml.go:94", f'"ggml backend load all from path" path={LIB}'),
        f"load_backend: loaded CPU backend from {LIB}/libggml-cpu-haswell.so",
        write.line("DEBUG", "ggml.go:94", f'"ggml backend load all from path" path={LIB}/cuda_v12'),
        "ggml_cuda_init: GGML_CUDA_FORCE_MMQ:    no",
        "ggml_cuda_init: GGML_CUDA_FORCE_CUBLAS: no",
        "ggml_cuda_init: found 1 CUDA devices:",
        f"  Device 0: NVIDIA H100 80GB HBM3, compute capability 9.0, VMM: yes, ID: {GPU}",
        f"load_backend: loaded CUDA backend from {LIB}/cuda_v12/libggml-cuda.so",
        write.line(
            "INFO",
            "ggml.go:104",
            "system CPU.0.SSE3=1 CPU.0.AVX=1 CPU.0.AVX2=1 CUDA.0.ARCHS=900 CUDA.0.USE_GRAPHS=1 compiler=cgo(gcc)",
        ),
        write.line("DEBUG", "runner.go:1386", f'"dummy model load took" duration={write.ms()}'),
        f"ggml_backend_cuda_device_get_memory device {GPU} utilizing NVML memory reporting free: {memory} "
        "total: 85520809984",
        write.line("DEBUG", "runner.go:1391", f'"gathering device infos took" duration={write.ms(0.2, 0.3)}'),
    ]


def refresh_c(write: Writer) -> Iterator[str]:
    """A refresh of 0.32.15 at DEBUG."""
    yield write.line("DEBUG", "runner.go:272", '"refreshing free memory"', 2.0)
    yield write.line(
        "DEBUG", "runner.go:336", '"unable to refresh all GPUs with existing runners, performing bootstrap discovery"'
    )
    took = write.ms()
    where = f'libDirs="[{V12}]"'
    yield write.line(
        "DEBUG",
        "llama_server.go:121",
        f'"llama-server discovery: stopped subprocess after collecting GPU info" exit=unknown {where}',
        0.03,
    )
    yield write.line(
        "DEBUG", "llama_server.go:52", f'"llama-server device discovery took" duration={took} {where}', 0.1
    )
    yield write.line(
        "DEBUG",
        "runner.go:494",
        f'"bootstrap discovery took" duration={took} OLLAMA_LIBRARY_PATH="[{V12}]" extra_envs=map[]',
    )
    yield write.line("DEBUG", "runner.go:45", f'"overall device VRAM discovery took" duration={took}')


def load(write: Writer, level: str) -> Iterator[str]:
    """A model load of 0.16.3, with its refresh; LEVEL is INFO or DEBUG."""
    if level == "DEBUG":
        yield from refresh_b(write)
        yield write.line("DEBUG", "sched.go:208", f'"loading first model" model={BLOB}')
    else:
        yield write.line(
            "INFO",
            "server.go:431",
            f'"starting runner" cmd="/usr/local/bin/ollama runner --ollama-engine --port {write.port()}"',
            5.0,
        )
    yield (
        "llama_model_loader: loaded meta data with 29 key-value pairs and 292 tensors from "
        + BLOB
        + " (version GGUF V3 (latest))"
    )
    for index in range(29):
        name, value = f"llama.attention.head_count_{index % 7}", write.random.randint(1, 9999)
        yield f"llama_model_loader: - kv {index:3}: {name:>50} u32              = {value}"
    for name, count in (("f32", 65), ("q4_K", 193), ("q6_K", 33)):
        yield f"llama_model_loader: - type {name:>4}: {count:4} tensors"
    for name in ("n_ctx_train", "n_embd", "n_layer", "n_head", "n_head_kv", "n_rot", "n_swa", "n_ff", "model params"):
        yield f"print_info: {name:<16} = {write.random.randint(1, 99999)}"
    port = write.port()
    command = f"/usr/local/bin/ollama runner --model {BLOB} --port {port}"
    yield write.line("INFO", "server.go:431", f'"starting runner" cmd="{command}"', 0.5)
    if level == "DEBUG":
        yield write.line(
            "DEBUG",
            "server.go:432",
            f"subprocess PATH=/usr/local/bin:/usr/bin OLLAMA_DEBUG=1 OLLAMA_LIBRARY_PATH={V12.replace(' ', ':')}",
        )
    yield write.line("INFO", "runner.go:965", '"starting go runner"', 0.1)
    yield f"load_backend: loaded CPU backend from {LIB}/libggml-cpu-haswell.so"
    yield "ggml_cuda_init: found 1 CUDA devices:"
    yield f"  Device 0: NVIDIA H100 80GB HBM3, compute capability 9.0, VMM: yes, ID: {GPU}"
    yield f"load_backend: loaded CUDA backend from {LIB}/cuda_v12/libggml-cuda.so"
    yield write.line("INFO", "ggml.go:104", "system CPU.0.SSE3=1 CPU.0.AVX=1 CUDA.0.ARCHS=900 compiler=cgo(gcc)")
    yield write.line("INFO", "runner.go:1001", f'"Server listening on 127.0.0.1:{port}"')
    yield write.line("INFO", "server.go:1289", '"waiting for llama runner to start responding"')
    for index in range(33):
        yield f"load_tensors: layer {index:3} assigned to device CUDA0, is_swa = 0"
    for index in range(40 if level == "DEBUG" else 0):
        yield f"create_tensor: loading tensor blk.{index}.attn_q.weight"
    yield f"load_tensors:        CUDA0 model buffer size = {write.random.uniform(1000, 40000):8.2f} MiB"
    yield write.line(
        "INFO", "server.go:1323", f'"llama runner started in {write.random.uniform(1, 9):.2f} seconds"', 3.0
    )
    for _ in range(6):
        yield write.gin()


def prompts(write: Writer) -> Iterator[str]:
    """What TRACE shows of a request: texts that never come again."""
    words = "".join(write.random.choices("abcdefghijklmnopqrstuvwxyz ", k=60))
    yield write.line(
        "TRACE", "bytepairencoding.go:268", f'encoded string="{words}" ids="[{write.random.randint(1, 99999)}]"'
    )


def chatter(write: Writer) -> Iterator[str]:
    """A refresh that never ends, and words that never come again behind it."""
    yield write.line("DEBUG", "runner.go:264", '"refreshing free memory"', 2.0)
    for _ in range(2000):
        yield "".join(write.random.choices("abcdefghijklmnopqrstuvwxyz :=_", k=90))


def some(make: Callable[[Writer], Iterator[str]], size: int = 2_000_000, *, version: str = "0.16.3") -> str:
    """Return a start of VERSION and what MAKE writes, again and again, SIZE characters of it."""
    write = Writer()
    lines = list(start(write, version))
    length = 0
    while length < size:
        new = list(make(write))
        lines += new
        length += sum(map(len, new)) + len(new)
    head, lines = lines[:STARTS], lines[STARTS:]
    return "".join(f"{line}\n" for line in head) + HEAD + "".join(f"{line}\n" for line in lines)


def between(
    make: Callable[[Writer], Iterator[str]], lines: Callable[[Writer], Iterator[str]], often: float
) -> Callable[[Writer], Iterator[str]]:
    """Return what writes MAKE with LINES between its lines."""

    def write_both(write: Writer) -> Iterator[str]:
        for line in make(write):
            yield line
            if write.random.random() < often:
                yield from lines(write)

    return write_both


def now_and_then(often: int) -> Callable[[Writer], Iterator[str]]:
    """Return what writes healthy refreshes, one in OFTEN of them slow and one failed."""

    def write_one(write: Writer) -> Iterator[str]:
        chance = write.random.randrange(often)
        yield from refresh_b(write, slow=chance == 0, failed=chance == 1)

    return write_one


def requests(write: Writer) -> Iterator[str]:
    """A request."""
    write.now += write.random.random() / 100
    yield write.gin()


def tensors(write: Writer) -> Iterator[str]:
    """What a loader prints."""
    index, layer = write.random.randint(0, 999), write.random.randint(0, 99)
    yield f"llama_model_loader: - tensor {index}: blk.{layer}.attn_q.weight"


def journal_json(text: str, pid: int = 7) -> str:
    """Return TEXT as journalctl -o json shows it."""
    if HEAD in text:
        return HEAD.join(journal_json(part, pid) for part in text.split(HEAD))
    lines = []
    for index, line in enumerate(text.splitlines()):
        micros = 1772027674396000 + index * 977
        fields = {
            "__CURSOR": f"s=0123456789abcdef;i={index:x};b=fedcba9876543210;t={micros:x};x=aa",
            "__REALTIME_TIMESTAMP": str(micros),
            "__MONOTONIC_TIMESTAMP": str(micros - 1772020000000000),
            "_PID": str(pid),
            "_SYSTEMD_UNIT": "ollama.service",
            "SYSLOG_IDENTIFIER": "ollama",
            "MESSAGE": line,
        }
        lines.append(json.dumps(fields, separators=(",", ":")) + "\n")
    return "".join(lines)


def journal(text: str, pid: int = 7) -> str:
    """Return TEXT as journalctl shows it."""
    if HEAD in text:
        return HEAD.join(journal(part, pid) for part in text.split(HEAD))
    return "".join(
        f"{BEGIN + timedelta(seconds=index // 5):%b %d %H:%M:%S} host ollama[{pid}]: {line}\n"
        for index, line in enumerate(text.splitlines())
    )


def two(one: str, other: str, carry: Callable[[str, int], str], *, block: int) -> str:
    """Return the lines of two servers, BLOCK of one and then of the other, each under its own pid by CARRY."""
    found, left, right = _two(one, other, carry)
    for place in range(0, max(len(left), len(right)), block):
        found += left[place : place + block] + right[place : place + block]
    return "".join(found)


def two_at_random(one: str, other: str, carry: Callable[[str, int], str], *, longest: int) -> str:
    """Return the lines of two servers, likewise, in blocks of 1 to LONGEST lines, each of either; up to where one ends.

    The same ones every time.
    """
    found, left, right = _two(one, other, carry)
    sides, chance = [left[::-1], right[::-1]], Writer().random
    while all(sides):
        side = chance.choice(sides)
        found += [side.pop() for _ in range(min(len(side), chance.randint(1, longest)))]
    return "".join(found)


def _two(one: str, other: str, carry: Callable[[str, int], str]) -> tuple[list[str], list[str], list[str]]:
    """Return what is written once of two servers, and the lines of each."""
    (first, left), (second, right) = (
        [part.splitlines(keepends=True) for part in carry(text, pid).split(HEAD)]
        for text, pid in ((one, 7), (other, 8))
    )
    return [*first, *second, HEAD], left, right
