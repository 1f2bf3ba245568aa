"""A private `ollama serve`: own port, own home, own models, until it has said what it computes on; then it is ended.

REQUEST: {"binary", "env": the service's environment, "limit_s", "cache": bool}. The server is asked nothing: its log
says what its discovery found. Lines that print an environment are left out of what is kept.
"""

from __future__ import annotations

import _socket
import os
import select
import time

from pytest_gpudiscovery.probes import private, stuck
from pytest_gpudiscovery.probes.bootstrap import CACHE_LIMIT, copy_tree, jit_cache
from pytest_gpudiscovery.probes.facts import errno_name
from pytest_gpudiscovery.probes.guardian import Guardian
from pytest_gpudiscovery.probes.spawned import Spawned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

SIGTERM = 15
LINES, LENGTH = 600, 4_000  # of the log that are kept: the first half and the last half, and characters of one
TERM_S = 2.0  # for the server to end by itself
QUIET_S = 0.5  # after the last device no further one comes; releases before 0.11.4 say nothing behind it
SAMPLE_AT = 0.8
COMPUTE, AFTER = 'msg="inference compute"', ('msg="vram-based default context"', 'msg="entering low vram mode"')
SECRET = ('msg="server config"', "msg=subprocess ")
# Nothing but loopback: 0.30 and later ask ollama.com for a list of models, unless told not to.
QUIET = {"OLLAMA_NO_CLOUD": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
NAMES = ("ollama", "llama-server")
OLD_S = 60.0


class Log:
    """The lines of a server's log, bounded, and whether its discovery is over."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.last: list[str] = []
        self.dropped = 0
        self.devices = 0
        self.over = False
        self.device_at = 0.0

    def line(self, at: float, text: str) -> None:
        """Take one line that came AT seconds after the begin."""
        if any(mark in text for mark in SECRET):
            head = text.partition(" env=")[0].partition("msg=subprocess")[0]
            text = f"{head} (its environment is left out)"
        self._keep(text[:LENGTH])
        if COMPUTE in text:
            self.devices += 1
            self.device_at = at
        self.over = self.over or any(mark in text for mark in AFTER)

    def _keep(self, text: str) -> None:
        if len(self.first) < LINES // 2:
            self.first.append(text)
            return
        self.last.append(text)
        if len(self.last) > LINES // 2:
            del self.last[0]
            self.dropped += 1


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"lines", "dropped", "reason", "exit", "seconds", "port", "before", "after", "left", "stuck"}.

    `reason`: None (it said what it computes on), "exited", "timeout" or "spawn".
    """
    answer: dict[str, Any] = {}
    with journal.step("look at running servers"):
        answer["before"] = running()
    with Guardian() as guardian:
        home = private.make()
        guardian.directory(home)
        journal.observe("private", home)
        try:
            env, port = environment(request, home, journal)
            answer |= _serve(request, env, port, journal, guardian)
        finally:
            private.remove(home)
        answer["left"] = {"directory": os.path.exists(home), "port": is_open(port)}
    with journal.step("look at running servers again"):
        answer["after"] = running()
    return answer


def environment(request: dict[str, Any], home: str, journal: Journal) -> tuple[dict[str, str], int]:
    """Return the server's environment and its port: HOME, models, address and JIT cache are private."""
    env: dict[str, str] = dict(request["env"])
    cache = jit_cache(env)
    port = free_port()
    if env.get("HOME"):  # empty is none: os.UserHomeDir
        env["HOME"] = home  # where the service has none, this server must end as that one does
    env |= {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": f"{home}/models", "OLLAMA_DEBUG": "2", **QUIET}
    for name in ("NO_PROXY", "no_proxy", "https_proxy", "http_proxy", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        env.pop(name, None)
    if cache is not None:
        env["CUDA_CACHE_PATH"] = f"{home}/ComputeCache"
        if request.get("cache"):
            os.mkdir(env["CUDA_CACHE_PATH"], 0o700)
            with journal.step(f"copy the JIT cache {cache}") as step:
                step.result = copy_tree(cache, env["CUDA_CACHE_PATH"], CACHE_LIMIT)
    return env, port


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on; raises OSError."""
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
    finally:
        listener.close()


def _serve(
    request: dict[str, Any], env: dict[str, str], port: int, journal: Journal, guardian: Guardian
) -> dict[str, Any]:
    log = Log()
    argv = [request["binary"], "serve"]
    answer: dict[str, Any] = {"port": port, "argv": argv, "limit_s": request["limit_s"], "reason": None, "exit": None}
    began = time.monotonic()
    with journal.step(f"start {' '.join(argv)} on port {port}") as step:
        server = Spawned(argv, env, on_line=log.line)
        step.result = server.problem or server.pid
    if not server.pid:
        return {**answer, "reason": "spawn", "problem": server.problem, "lines": [], "dropped": 0}
    guardian.group(server.pid)
    ended = None
    try:
        with journal.step("wait until it says what it computes on") as step:
            answer |= _wait(server, log, began, began + request["limit_s"])
            step.result = answer["reason"] or f"{log.devices} line(s)"
        answer["seconds"] = round(time.monotonic() - began, 6)
        ended = server.status
        if answer["reason"] == "timeout":
            with journal.step(f"look at PID {server.pid} and its children"):
                first = answer.pop("first", None)
                age_s = time.monotonic() - began
                answer["stuck"] = {"first": first, **stuck.look(_deepest(server.pid), None, age_s)}
                answer["listens"] = is_open(port)
            with journal.step(f"ask PID {server.pid} for its goroutines"):
                answer["goroutines"] = stuck.goroutines(server)
    finally:
        with journal.step("end it"):
            answer["by_itself"] = _end(server)
            answer["dead"] = server.kill()
        if answer["dead"]:
            guardian.gone(server.pid)
    return {**answer, "exit": ended, "lines": log.first + log.last, "dropped": log.dropped, "pid": server.pid}


def _wait(server: Spawned, log: Log, began: float, until: float) -> dict[str, Any]:
    sample_at = began + SAMPLE_AT * (until - began)
    found: dict[str, Any] = {"reason": None}
    while True:
        now = time.monotonic()
        if log.over or (log.devices and now - began > log.device_at + QUIET_S):
            return found
        if server.ended():
            server.take()
            return {**found, "reason": None if log.devices else "exited"}
        if now >= until:
            return {**found, "reason": "timeout"}
        if now >= sample_at and "first" not in found:
            found["first"] = stuck.sample(_deepest(server.pid))
        if server.fds:
            select.select(server.fds, [], [], max(0.0, min(until - now, 0.02)))
        else:
            time.sleep(0.005)
        server.take()


def _deepest(pid: int) -> int:
    """Return the newest descendant of PID: what a server waits for is the child that it started last."""
    for _ in range(8):
        below = stuck.children(pid)
        if not below:
            break
        pid = below[-1]
    return pid


def _end(server: Spawned) -> bool:
    """Ask the server to end; whether it did within TERM_S."""
    try:
        os.kill(server.pid, SIGTERM)
    except OSError:
        pass  # it has ended
    return server.wait(time.monotonic() + TERM_S)


def is_open(port: int) -> bool:
    """Whether somebody listens on 127.0.0.1:PORT."""
    client = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        client.settimeout(0.5)
        client.connect(("127.0.0.1", port))
    except OSError:
        return False
    finally:
        client.close()
    return True


def running() -> list[dict[str, Any]]:
    """Return {"pid", "name", "start"} of every server that runs for OLD_S or longer; start is in ticks after boot.

    Runners of models come and go, and so do clients: a child of an Ollama is none, nor what has just begun. Reads only
    /proc/PID/stat, which never waits for the process.
    """
    seen: dict[int, tuple[str, int, int]] = {}
    try:
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError as error:
        return [{"error": errno_name(error)}]
    now = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    for pid in pids:
        text = stuck.read(f"/proc/{pid}/stat")
        fields = text[text.rfind(")") + 1 :].split()
        if len(fields) > 19 and fields[0] != "Z":
            seen[pid] = (text[text.find("(") + 1 : text.rfind(")")], int(fields[1]), int(fields[19]))
    return [
        {"pid": pid, "name": name, "start": start}
        for pid, (name, parent, start) in seen.items()
        if name in NAMES
        and seen.get(parent, ("", 0, 0))[0] not in NAMES
        and now - start > OLD_S * os.sysconf("SC_CLK_TCK")
    ]
