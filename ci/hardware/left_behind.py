"""What a gate leaves behind on a GPU host, also one that is killed in the middle; and whether a running Ollama noticed.

    python ci/hardware/left_behind.py --ollama PREFIX --out DIR [--only WORD,...] [gate options]

Starts a real `ollama serve` as the running service, then runs the gate to its end, and stops others by SIGTERM and by
SIGKILL while they load the backend, ask Ollama's discovery children or run their private server. Around each run it
compares processes, listening sockets, mounts, cgroups, System V shared memory, device nodes and every file below
--roots, and the service's pid, start time, children and log. Exit status 1 when anything is left or has changed.
Best as root on a machine where nothing else runs: what others do is taken for the gate's. On one that others use:

    unshare -mpf --mount-proc bash -c 'for d in /tmp /var/tmp /run /dev/shm; do mount -t tmpfs t $d; done; exec "$@"' \
        x python ci/hardware/left_behind.py ...
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOTS = ("/tmp", "/var", "/run", "/dev", "/etc", "/opt", "/usr/local", "/home", "/root")  # noqa: S108 - looked at
SETTLE_S = 8.0  # for what was killed to go, and for its directories to be removed
GATE_S, SERVE_S = 240.0, 60.0
LISTEN = "0A"
PHASES = {  # what a process below the gate has then: in its command line, in its memory map
    "in stage 11": (re.compile(r"python"), "libggml-cuda.so"),
    "in stage 12": (re.compile(r"\x00runner\x00|llama-server|\x00gpu-discover\x00"), ""),
    "in stage 13": (re.compile(r"ollama\x00serve"), ""),
}
ENDS = (("to its end", None), *((f"{name} {phase}", phase) for phase in PHASES for name in ("SIGTERM", "SIGKILL")))


@dataclass
class Snapshot:
    """A moment of the host: each is a mapping of what there is to what distinguishes it from another of its name."""

    processes: dict[str, str] = field(default_factory=dict)
    sockets: dict[str, str] = field(default_factory=dict)
    mounts: dict[str, str] = field(default_factory=dict)
    cgroups: dict[str, str] = field(default_factory=dict)
    shared_memory: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def differs(self, later: Snapshot) -> list[str]:
        """Return one line for everything that LATER has, lacks or has otherwise."""
        lines = []
        for kind, before in asdict(self).items():
            after = asdict(later)[kind]
            lines += [f"{kind}: {name} is new: {after[name]}" for name in after.keys() - before.keys()]
            lines += [f"{kind}: {name} is gone: {before[name]}" for name in before.keys() - after.keys()]
            lines += [
                f"{kind}: {name} changed: {before[name]} -> {after[name]}"
                for name in before.keys() & after.keys()
                if before[name] != after[name]
            ]
        return sorted(lines)


def read(path: str) -> str:
    """Return the text of PATH, "" where it cannot be read."""
    try:
        return Path(path).read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def processes(mark: str = "") -> dict[str, str]:
    """Return "pid" -> "start name" of every process but ours; MARK limits it to those that have it in theirs.

    Theirs is the environment and the command line. Kernel threads come and go by themselves and are left out.
    """
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        text = read(f"/proc/{entry}/stat")
        fields = text[text.rfind(")") + 1 :].split()
        if len(fields) < 20 or fields[0] == "Z" or "2" in (fields[1], entry):
            continue
        if mark and mark not in read(f"/proc/{entry}/environ") + read(f"/proc/{entry}/cmdline"):
            continue
        found[entry] = f"{fields[19]} {text[text.find('(') + 1 : text.rfind(')')]}"
    return found


def sockets() -> dict[str, str]:
    """Return "tcp ADDRESS:PORT" -> inode of every listening TCP socket, in the kernel's hexadecimal."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in read(f"/proc/net/{name}").splitlines()[1:]:
            words = line.split()
            if words[3] == LISTEN:
                found[f"{name} {words[1]}"] = words[9]
    return found


def files(roots: Sequence[str], but: Sequence[str]) -> dict[str, str]:
    """Return path -> what it is, its size and time, of everything below ROOTS except below BUT.

    The time of a directory changes with every file that comes and goes: only that it is there counts.
    """
    found: dict[str, str] = {}
    for root in roots:
        for here, folders, names in os.walk(root):
            folders[:] = [name for name in folders if os.path.join(here, name) not in but]
            for name in (*folders, *names):
                path = os.path.join(here, name)
                with contextlib.suppress(OSError):
                    one = os.lstat(path)
                    is_file = stat.S_ISREG(one.st_mode)
                    found[path] = f"{one.st_mode:o} {one.st_rdev} {(one.st_size, one.st_mtime_ns) if is_file else ''}"
    return found


def snapshot(roots: Sequence[str], but: Sequence[str], mark: str = "") -> Snapshot:
    """Look at the host; with MARK only at processes that have it and at files, as on a machine that others use."""
    if mark:
        return Snapshot(processes=processes(mark), files=files(roots, but))
    cgroups = {path: "" for path in files(["/sys/fs/cgroup"], []) if os.path.isdir(path)}
    mounts = {" ".join(line.split()[3:6]): "" for line in read("/proc/self/mountinfo").splitlines()}
    memory = {line.split()[1]: "" for line in read("/proc/sysvipc/shm").splitlines()[1:]}
    return Snapshot(processes(), sockets(), mounts, cgroups, memory, files(roots, but))


def below(pid: int) -> list[int]:
    """Return the descendants of PID."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = (text := read(f"/proc/{entry}/stat"))[text.rfind(")") + 1 :].split()
            if len(fields) > 1:
                parents.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


class Service:
    """A running `ollama serve`, and what of it must not change while a gate runs."""

    def __init__(self, binary: Path, home: Path, env: dict[str, str]) -> None:
        """Start BINARY with its HOME, models and log in HOME; raises TimeoutError when it does not say its devices."""
        home.mkdir(parents=True)
        self.log = home / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        env = {**env, "HOME": str(home), "OLLAMA_MODELS": str(home / "models"), "OLLAMA_NO_CLOUD": "1"}
        with self.log.open("wb") as out:
            self.child = subprocess.Popen(
                [binary, "serve"],
                env={**env, "OLLAMA_HOST": f"127.0.0.1:{self.port}", "OLLAMA_DEBUG": "1"},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        until = time.monotonic() + SERVE_S
        while "inference compute" not in self.log.read_text(errors="replace"):
            if time.monotonic() > until or self.child.poll() is not None:
                self.stop()
                raise TimeoutError(f"the service did not say on what it computes: {self.log.read_text()[-800:]}")
            time.sleep(0.05)
        time.sleep(1.0)  # its last lines, and the end of its discovery children

    def state(self) -> dict[str, str]:
        """Return what must stay as it is."""
        pid = self.child.pid
        fields = (text := read(f"/proc/{pid}/stat"))[text.rfind(")") + 1 :].split()
        return {
            "pid": str(pid),
            "state": "gone" if not fields or fields[0] == "Z" else "there",
            "start": fields[19] if len(fields) > 19 else "",
            "children": str(sorted(below(pid))),
            "log": f"{self.log.stat().st_size} {hashlib.sha256(self.log.read_bytes()).hexdigest()[:16]}",
            "listens": str(any(key.endswith(f":{self.port:04X}") for key in sockets())),
        }

    def stop(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


@contextlib.contextmanager
def service(binary: Path, home: Path, env: dict[str, str]) -> Iterator[Service]:
    """Give a running service that ends with the block."""
    one = Service(binary, home, env)
    try:
        yield one
    finally:
        one.stop()


def run(argv: list[str], env: dict[str, str], cwd: Path, number: int | None, phase: str) -> str:
    """Run the gate ARGV and send it signal NUMBER while a process below it is in PHASE; what became of it."""
    with (cwd / "output").open("wb") as out:
        child = subprocess.Popen(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    until, sent = time.monotonic() + GATE_S, ""
    while child.poll() is None:
        if time.monotonic() > until:
            child.kill()
            child.wait()
            return f"no end within {GATE_S:g} s"
        if number is not None and not sent and (pid := there(child.pid, phase)):
            sent = f", {signal.Signals(number).name} beside PID {pid}"
            child.send_signal(number)
        time.sleep(0.01)
    return f"exit {child.returncode}{sent or (', never was there' if phase else '')}"


def there(gate: int, phase: str) -> int:
    """Return the PID of a process below GATE that is in PHASE, 0 when there is none."""
    words, library = PHASES[phase]
    for pid in below(gate):
        if words.search(read(f"/proc/{pid}/cmdline")) and (not library or library in read(f"/proc/{pid}/maps")):
            return pid
    return 0


def settled(before: Snapshot, look: Sequence[Any]) -> tuple[list[str], float]:
    """Return what differs from BEFORE once nothing does or SETTLE_S are over, and after how many seconds."""
    began = time.monotonic()
    while True:
        spent = time.monotonic() - began
        lines = before.differs(snapshot(*look))
        if not lines or spent > SETTLE_S:
            return lines, spent
        time.sleep(0.1)


def row(
    name: str, argv: list[str], env: dict[str, str], cwd: Path, one: Service, look: Sequence[Any]
) -> dict[str, Any]:
    """Run the gate once as NAME says; its row: {"case", "ended", "left", "service", "settled_s", "right"}."""
    word, _, phase = name.partition(" in ")
    number = signal.Signals[word] if phase else None
    before, was = snapshot(*look), one.state()
    ended = run(argv, env, cwd, number, f"in {phase}" if phase else "")
    left, spent = settled(before, look)
    now = one.state()
    service_changed = [f"{key}: {was[key]} -> {now[key]}" for key in was if was[key] != now[key]]
    right = not left and not service_changed and "never" not in ended and "no end" not in ended
    return {
        "case": name,
        "ended": ended,
        "left": left,
        "service": service_changed,
        "settled_s": round(spent, 2),
        "right": right,
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ollama", type=Path, required=True, help="the install prefix of the service and of the gate")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--roots", default=",".join((*ROOTS, os.path.expanduser("~"))))
    options, rest = parser.parse_known_args()
    out = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    roots = sorted({os.path.realpath(root) for root in options.roots.split(",") if os.path.isdir(root)})
    roots = [root for root in roots if not any(root.startswith(f"{other}/") for other in roots)]
    look = (roots, [str(out)])
    argv = [sys.executable, "-m", "pytest_gpudiscovery", "gate", "-q", "--gpu-report", str(out / "report"), *rest]
    if not any(word.startswith("--gpu-simulate") for word in rest):
        argv += ["--gpu-ollama", str(options.ollama)]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # Python's own cache beside our sources is not the question
    wanted = [word for word in options.only.split(",") if word]
    rows = []
    with service(options.ollama / "bin/ollama", out / "service", dict(os.environ)) as one:
        print(f"service: PID {one.child.pid}, port {one.port}; files below {' '.join(roots)}", flush=True)
        for name, _ in ENDS:
            if wanted and not any(word in name for word in wanted):
                continue
            said = row(name, argv, env, out, one, look)
            rows.append(said)
            mark = "ok   " if said["right"] else "WRONG"
            print(f"{mark} {name:<22}{said['ended']:<48}as before after {said['settled_s']:.2f} s", flush=True)
            for line in (*said["left"][:20], *said["service"]):
                print(f"      {line}", flush=True)
    right = sum(said["right"] for said in rows)
    print(f"{right} of {len(rows)}: nothing is left behind, and the running Ollama is as it was")
    (out / "left_behind.json").write_text(json.dumps(rows, indent=1))
    return int(right != len(rows))


if __name__ == "__main__":
    raise SystemExit(main())
