"""Looks at what Ollama's discovery child inherits: identity, limits, cgroup, preloaded objects, library path.

Two modes. `look` runs without LD_PRELOAD, so that it can say what is preloaded when that very object hangs. `preload`
runs with the whole environment and does nothing: that it starts is the answer.
"""

from __future__ import annotations

import _thread
import os
import resource
import time

from pytest_gpudiscovery.probes import devicecgroup, facts, libraries, procdriver
from pytest_gpudiscovery.probes.host import HostView, LiveView, open_view
from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

THREADS = 32  # a Go runtime with CUDA loaded has about 20 on a 16-core host
LIMITS = ("AS", "CPU", "DATA", "NOFILE", "NPROC")
CGROUP = "/sys/fs/cgroup"


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return the facts of mode REQUEST["mode"]; REQUEST: {"view", "mode": "look" | "preload", "env": {LD_* names}}."""
    if request["mode"] == "preload":
        with journal.step("read /proc/self/maps"):
            return {"mapped": mapped(request["names"])}
    view, env = open_view(request["view"]), request["env"]
    answer: dict[str, Any] = {"machine": os.uname().machine}
    with journal.step("read /proc/self"):
        answer["identity"] = facts.identity()
        answer["limits"] = {name: list(resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))) for name in LIMITS}
        answer["namespaces"] = namespaces()
    for key, value in answer.items():
        journal.observe(key, value)
    with journal.step("read the preload lists"):
        answer["preload"], answer["ld_so_preload"] = preloads(view, env)
        journal.observe("preload", answer["preload"])
    with journal.step("search LD_LIBRARY_PATH"):
        answer["library_path"] = [
            {"directory": directory, "libcuda": libcuda_in(view, directory)}
            for directory in libraries.library_path(env.get("LD_LIBRARY_PATH", ""))
        ]
        answer["libcuda_without"] = libraries.find(view, "libcuda.so.1", {})
    with journal.step("read the cgroup"):
        answer["cgroup"] = cgroup(view, request.get("pid"))
        answer["available"] = available_memory(view)
    with journal.step("read /proc/driver/nvidia/gpus"):
        answer["gpus"] = procdriver.gpus(view)["gpus"]
        answer["mig"] = procdriver.has_mig(view)
        answer["tegra"] = facts.text(view, "/etc/nv_tegra_release") is not None
        answer["control_node"] = facts.kind(view, devicecgroup.CONTROL_PATH) == "char"
        answer["nodes"] = devicecgroup.nvidia_nodes(view)
        answer["devices"] = drivers(view)
    with journal.step("fork") as step:
        answer["fork"] = step.result = fork()
    with journal.step(f"start {THREADS} threads") as step:
        answer["threads"] = step.result = threads(THREADS)
    return answer


def drivers(view: HostView) -> dict[str, list[int]]:
    """Return name -> majors of the character devices in /proc/devices; one name may have several."""
    found: dict[str, list[int]] = {}
    characters, _, _ = (facts.text(view, "/proc/devices") or "").partition("Block devices:")
    for line in characters.splitlines():
        major, _, name = line.strip().partition(" ")
        if (value := facts.number(major)) is not None and name:
            found.setdefault(name, []).append(value)
    return found


def namespaces() -> dict[str, Any]:
    """Return {"uid_map", "proc_is_ours"}: /proc of another pid namespace is what CUDA stumbles over after unshare."""
    lines = facts.text(LiveView(), "/proc/self/uid_map")
    shown = facts.link(LiveView(), "/proc/self")
    return {
        "uid_map": None
        if lines is None
        else [[facts.number(part) for part in line.split()] for line in lines.splitlines()],
        "proc_is_ours": None if shown is None else shown == str(os.getpid()),
    }


def preload_names(value: str) -> list[str]:
    """Return the objects of an LD_PRELOAD value; ld.so splits at blanks and colons."""
    return value.replace(":", " ").split()


def preloads(view: HostView, env: dict[str, str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the objects that ld.so would preload, and what became of reading /etc/ld.so.preload.

    An object: {"name", "source": "LD_PRELOAD" | "LD_AUDIT" | "/etc/ld.so.preload", "path", "elf"}; path None when it
    is in no directory that ld.so searches.
    """
    listed = [(name, "LD_PRELOAD") for name in preload_names(env.get("LD_PRELOAD", ""))]
    listed += [(name, "LD_AUDIT") for name in env.get("LD_AUDIT", "").split(":") if name]
    system: dict[str, Any] = {"exists": True, "errno": None}
    try:
        text = view.read("/etc/ld.so.preload", 65536).decode("utf-8", "surrogateescape")
        lines = (line.partition("#")[0] for line in text.splitlines())
        listed += [(name, "/etc/ld.so.preload") for line in lines for name in preload_names(line)]
    except OSError as error:
        system = {"exists": False, "errno": facts.errno_name(error)}
    found = []
    for name, source in listed:
        if "/" in name:
            path: str | None = name if "$" not in name else None
        else:
            library = libraries.find(view, name, env)
            path = library["path"] if library else None
        elf = libraries.elf(view, path) if path else {"errno": "ENOENT"}
        found.append({"name": name, "source": source, "path": path, "elf": elf, "token": "$" in name})
    return found, system


def mapped(names: list[str]) -> list[str]:
    """Return which of NAMES (base names of libraries) are mapped in this process."""
    lines = (facts.text(LiveView(), "/proc/self/maps", 1 << 22) or "").splitlines()
    files = {line.rpartition("/")[2] for line in lines if "/" in line}
    return [name for name in names if name in files]


def libcuda_in(view: HostView, directory: str) -> dict[str, Any] | None:
    """Return the libcuda.so.1 that DIRECTORY offers to the loader: {"path", "realpath", "version", "stub", "size"}."""
    found = libraries.find(view, "libcuda.so.1", {"LD_LIBRARY_PATH": directory})
    return found if found is not None and found["rule"] == "LD_LIBRARY_PATH" else None


def cgroup(view: HostView, pid: int | None = None) -> dict[str, Any]:
    """Return the tightest limits on the way from the cgroup of PID (None: this process) to the root.

    {"memory": {"max", "free"}, "pids": {"max", "free"}, "cpu": {"cpus", "throttled_s"}}: bytes, tasks, CPUs; a part
    that has no limit, or cannot be read, is None.
    """
    text = facts.text(view, f"/proc/{pid or 'self'}/cgroup") or ""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(","):
            paths[name] = path
    unified = paths.get("", "/")
    return {
        "memory": _tightest(
            [_memory_v2(view, f"{CGROUP}{path}") for path in _ancestors(unified)]
            + [_memory_v1(view, f"{CGROUP}/memory{path}") for path in _ancestors(paths.get("memory", "/"))]
        ),
        "pids": _tightest(
            [_pids(view, f"{CGROUP}{path}") for path in _ancestors(unified)]
            + [_pids(view, f"{CGROUP}/pids{path}") for path in _ancestors(paths.get("pids", "/"))]
        ),
        "cpu": _cpu(view, [f"{CGROUP}{path}" for path in _ancestors(unified)]),
    }


def _ancestors(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["/" + "/".join(parts[:count]) for count in range(len(parts), 0, -1)] + [""]


def _tightest(found: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    return min((item for item in found if item), key=lambda item: item["free"], default=None)


def _memory_v2(view: HostView, path: str) -> dict[str, Any] | None:
    return _memory(view, path, "memory.max", "memory.current", "inactive_file")


def _memory_v1(view: HostView, path: str) -> dict[str, Any] | None:
    return _memory(view, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _memory(view: HostView, path: str, limit: str, usage: str, cache: str) -> dict[str, Any] | None:
    maximum, current = (
        facts.number(facts.text(view, f"{path}/{limit}")),
        facts.number(facts.text(view, f"{path}/{usage}")),
    )
    if maximum is None or current is None or maximum >= 1 << 60:  # v1 says "no limit" as LONG_MAX in pages
        return None
    # The page cache counts as used and is given back under pressure.
    lines = (facts.text(view, f"{path}/memory.stat") or "").splitlines()
    reclaimable = next((facts.number(line.split()[-1]) for line in lines if line.startswith(cache + " ")), None) or 0
    return {"max": maximum, "free": maximum - current + reclaimable, "file": f"{path}/{limit}"}


def _pids(view: HostView, path: str) -> dict[str, int] | None:
    maximum, current = (
        facts.number(facts.text(view, f"{path}/pids.max")),
        facts.number(facts.text(view, f"{path}/pids.current")),
    )
    return None if maximum is None or current is None else {"max": maximum, "free": maximum - current}


def _cpu(view: HostView, paths: list[str]) -> dict[str, float] | None:
    found: dict[str, float] | None = None
    for path in paths:
        fields = (facts.text(view, f"{path}/cpu.max") or "").split()
        quota, period = (facts.number(field) for field in fields) if len(fields) == 2 else (None, None)
        if quota is None or not period:
            continue
        lines = (facts.text(view, f"{path}/cpu.stat") or "").splitlines()
        throttled = next((facts.number(line.split()[-1]) for line in lines if line.startswith("throttled_usec ")), None)
        if found is None or quota / period < found["cpus"]:
            found = {"cpus": quota / period, "throttled_s": (throttled or 0) / 1e6}
    return found


def available_memory(view: HostView) -> int | None:
    """Return MemAvailable of /proc/meminfo in bytes, None when it cannot be read."""
    pairs = facts.pairs(facts.text(view, "/proc/meminfo") or "")
    value = facts.number((pairs.get("MemAvailable") or "").partition(" ")[0])
    return None if value is None else value * 1024


def fork() -> dict[str, Any]:
    """Return {"errno": None | name}: whether this process may fork, as Ollama must to start its discovery child."""
    try:
        pid = os.fork()
    except OSError as error:
        return {"errno": facts.errno_name(error)}
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return {"errno": None}


def threads(wanted: int) -> dict[str, Any]:
    """Return {"wanted", "started", "seconds"}: how many threads could be started at once."""
    gate = _thread.allocate_lock()
    gate.acquire()

    def wait() -> None:
        gate.acquire()
        gate.release()

    started, begun = 0, time.monotonic()
    try:
        while started < wanted:
            _thread.start_new_thread(wait, ())
            started += 1
    except RuntimeError:
        pass  # "can't start new thread": EAGAIN, which is the answer
    seconds = time.monotonic() - begun
    gate.release()
    return {"wanted": wanted, "started": started, "seconds": round(seconds, 4)}
