"""Record a real GPU host: `python3 record.py OUT.json`, as root, standard library only, no network.

The recording holds `entries` (the host view, format of probes/host.py), `answers` (what NVML, the driver API and
libcudart reply, error codes included) and `libraries` (where they are and which symbols they export). It is the raw
material of hosts/*.json. Serial numbers, UUIDs, host names, addresses and container ids are replaced.

Files are read before anything native runs, because the driver's user space creates missing device nodes when it is
run as root. Each group runs in a forked child with a limit: a host that hangs still gives a partial recording, and
what failed stands in `problems`.
"""

from __future__ import annotations

import functools
import json
import os
import re
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":  # run as a plain file, on a host where nothing is installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pytest_gpudiscovery.simulate.record_answers import Caller, ask_driver, ask_nvml, ask_runtime, send
from pytest_gpudiscovery.simulate.record_libraries import record_libraries
from pytest_gpudiscovery.simulate.record_view import Entries, record_view

GROUP_LIMIT_S = 60.0


def isolated(work: Callable[[], Any], limit_s: float = GROUP_LIMIT_S) -> tuple[Any, list[Any], str]:
    """Run WORK() in a forked child; return (its value or None, the calls it noted, what went wrong or "").

    Calls arrive one by one, so that a library that hangs or crashes costs only what comes after.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reader)
        Caller.stream = writer
        try:
            send(writer, {"value": work()})
        except BaseException:
            send(writer, {"problem": traceback.format_exc(limit=4)})
        os._exit(0)  # no destructors of driver libraries
    os.close(writer)
    deadline, data = time.monotonic() + limit_s, b""
    while (left := deadline - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
        part = os.read(reader, 1 << 20)
        if not part:
            break
        data += part
    os.close(reader)
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    status = None
    for _ in range(40):  # a child in state D is abandoned, not waited for
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    lines = [json.loads(line) for line in data.split(b"\n")[:-1]]
    last = lines[-1] if lines else {}
    calls = [line["call"] for line in lines if "call" in line]
    if "value" in last or "problem" in last:
        return last.get("value"), calls, last.get("problem", "")
    return None, calls, f"no end within {limit_s:g} s, or the child died: wait status {status}"


def redact(text: str) -> str:
    """Return TEXT (the recording as JSON) without UUIDs, host names, hardware addresses and container ids."""
    known: dict[str, str] = {}

    def uuid(match: re.Match[str]) -> str:
        return known.setdefault(match[0], f"{match[1]}-00000000-0000-4000-8000-{len(known):012x}")

    text = re.sub(r"\b(GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", uuid, text)
    text = re.sub(r"(?<![0-9a-fA-F:])(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}(?![0-9a-fA-F:])", "00:00:00:00:00:00", text)
    text = re.sub(r"(?<!GPU-)(?<!MIG-)\b[0-9a-f]{8}[-_](?:[0-9a-f]{4}[-_]){3}[0-9a-f]{12}\b", "ID", text)
    text = re.sub(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", "ID", text)
    text = re.sub(r"\((?:\w|[.-])+@(?:\w|[.-])+\)", "(build@host)", text)
    name = socket.gethostname()
    if len(name) > 3:
        text = text.replace(name, "host")
    return text


def redact_entries(entries: Entries) -> None:
    """Keep mount points, types and flags, no sources and group paths: those name images, containers and hosts."""
    for path, entry in entries.items():
        lines = str(entry.get("text", "")).splitlines()
        if path in ("/proc/self/mountinfo", "/proc/self/mounts"):
            lines = [mount_line(line) for line in lines]
        elif path == "/proc/self/cgroup":
            lines = [f"{line.rsplit(':', 1)[0]}:/" for line in lines]
        elif path == "/etc/hosts":
            lines = [re.sub(r"(?<=\s)(?!localhost|ip6-|#)\S+", "host", line) for line in lines]
        else:
            continue
        entry["text"] = "".join(f"{line}\n" for line in lines)


def mount_line(line: str) -> str:
    """Return LINE of mountinfo (a ` - ` in it) or mounts without source and super-block options."""
    if " - " in line:
        left, right = line.split(" - ", 1)
        fields = left.split()
        fields[3] = "/"
        return f"{' '.join(fields)} - {right.split()[0]} none rw"
    fields = line.split()
    return " ".join(["none", *fields[1:3], ",".join(o for o in fields[3].split(",") if "=" not in o), "0 0"])


def main(arguments: list[str]) -> int:
    """Record this host into ARGUMENTS[0] and print a summary; 0 when the file was written."""
    if len(arguments) != 1:
        print("usage: python3 record.py OUT.json", file=sys.stderr)
        return 4
    problems: dict[str, str] = {}

    def attempt(name: str, work: Callable[[], Any]) -> tuple[Any, list[Any]]:
        value, calls, problem = isolated(work)
        if problem:
            problems[name] = problem
        return value, calls

    entries: Entries = attempt("view", record_view)[0] or {}
    redact_entries(entries)
    libraries = attempt("libraries", record_libraries)[0] or {"paths": {}, "entries": {}, "symbols": {}}
    answers = {"nvml": attempt("nvml", ask_nvml)[1], "driver": attempt("driver", ask_driver)[1]}
    for name in ("libcudart.so.12", "libcudart.so.13"):
        for path in libraries["paths"].get(name, [])[:1]:
            answers[name] = attempt(name, functools.partial(ask_runtime, path))[1]
    recording = {
        "format": 1,
        "recorded": time.strftime("%Y-%m-%d"),
        "uid": os.geteuid(),
        "entries": {**libraries.pop("entries"), **entries},
        "libraries": libraries,
        "answers": answers,
        "problems": problems,
    }
    with open(arguments[0], "w", encoding="utf-8") as file:
        file.write(redact(json.dumps(recording, indent=1, sort_keys=True)) + "\n")
    for line in summary(recording):
        print(line)
    return 0


def summary(recording: dict[str, Any]) -> list[str]:
    """Return about ten lines that say what was recorded and what was not."""
    answers = recording["answers"]
    lines = [f"entries    : {len(recording['entries'])} paths"]
    lines.append(f"nodes      : {' '.join(sorted(p for p in recording['entries'] if p.startswith('/dev/nvidia')))}")
    for name, paths in recording["libraries"]["paths"].items():
        count = len(recording["libraries"]["symbols"].get(name, ()))
        lines.append(f"{name:<11}: {', '.join(paths) or 'not found'} ({count} symbols)")
    for name, calls in answers.items():
        bad = [f"{call['call']}={call['rc']}" for call in calls if call["rc"]]
        lines.append(f"{name:<11}: {len(calls)} calls, {len(bad)} with an error: {' '.join(bad)[:300]}")
    lines += [f"PROBLEM    : {name}: {text.strip().splitlines()[-1]}" for name, text in recording["problems"].items()]
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
