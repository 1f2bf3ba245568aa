"""Does what Ollama and its discovery child do over loopback and in the temporary directory, for real.

Ollama up to 0.24 asks its child over HTTP on 127.0.0.1 and the child writes a small file to the temporary directory;
later versions still bind a port (v0.20.0, llm/server.go, ml/device.go, runner/ollamarunner/runner.go).
"""

from __future__ import annotations

# The C half of the module socket: the Python half costs 10 ms to import, a tenth of what this probe takes.
import _socket
import fcntl
import os
import time

from pytest_gpudiscovery.probes.facts import errno_name, number, text
from pytest_gpudiscovery.probes.host import open_view
from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REQUEST = b"GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
SIOCGIFFLAGS = 0x8913  # linux/sockios.h
PATIENCE_S = 2.0  # for one TCP exchange between two sockets of this process
BLOCK = b"\0" * 4096


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"lo", "hosts", "ports", "bind", "resolve", "tcp", "tmp"}; REQUEST: {"view", "tmpdir": str}."""
    view = open_view(request["view"])
    answer: dict[str, Any] = {}
    with journal.step("read the state of lo"):
        # sysfs shows the network namespace in which it was mounted, the ioctl that of this process.
        answer["lo"] = {name: text(view, f"/sys/class/net/lo/{name}") for name in ("operstate", "flags")}
        answer["lo"]["ifr_flags"] = interface_flags("lo")
        answer["ports"] = port_range(text(view, "/proc/sys/net/ipv4/ip_local_port_range"))
        answer["hosts"] = hosts_of(text(view, "/etc/hosts"), "localhost")
    with journal.step("bind 127.0.0.1:0") as step:
        listener, answer["bind"] = bind()
        step.result = answer["bind"]
    with journal.step("tcp 127.0.0.1") as step:
        answer["tcp"] = step.result = exchange(listener) if listener is not None else None
    for key, value in answer.items():
        journal.observe(key, value)
    with journal.step(f"write a file in {request['tmpdir']}") as step:
        answer["tmp"] = step.result = use_directory(request["tmpdir"])
    journal.observe("tmp", answer["tmp"])
    # Last, because a slow resolver must not use up the time of the others.
    with journal.step("resolve localhost") as step:
        answer["resolve"] = step.result = resolve("localhost")
    return answer


def interface_flags(name: str) -> int | None:
    """Return the flags of network interface NAME in this process' network namespace, None when it has none."""
    try:
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    except OSError:
        return None  # a sandbox without IPv4 or without sockets: what is bound next says so
    try:
        filled = fcntl.ioctl(sock.fileno(), SIOCGIFFLAGS, name.encode()[:15].ljust(40, b"\0"))
    except OSError:
        return None
    finally:
        sock.close()
    return int.from_bytes(filled[16:18], "little")


def bind() -> tuple[_socket.socket | None, dict[str, Any]]:
    """Return a listening socket on 127.0.0.1 with a port that the kernel picked, and {"port", "errno"}."""
    try:
        listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
    except OSError as error:
        return None, {"port": None, "errno": errno_name(error)}
    return listener, {"port": listener.getsockname()[1], "errno": None}


def resolve(name: str) -> dict[str, Any]:
    """Return {"addresses", "seconds", "error"} of getaddrinfo(NAME) for TCP."""
    begun = time.monotonic()
    try:
        found = _socket.getaddrinfo(name, 0, 0, _socket.SOCK_STREAM)
        error = None
    except OSError as problem:
        found, error = [], str(problem)
    seconds = round(time.monotonic() - begun, 4)
    return {"addresses": list(dict.fromkeys(str(item[4][0]) for item in found)), "seconds": seconds, "error": error}


def exchange(listener: _socket.socket) -> dict[str, Any]:
    """Send a request and a reply between LISTENER and a new socket; {"errno", "phase", "seconds"}.

    errno "ETIMEDOUT" stands for an exchange that did not end within PATIENCE_S, "EPROTO" for one in which something
    else arrived than was sent.
    """
    begun, phase = time.monotonic(), "connect"
    client = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    ends = [client]
    problem: str | None = None
    try:
        listener.settimeout(PATIENCE_S)
        client.settimeout(PATIENCE_S)
        client.connect(listener.getsockname())
        phase = "accept"
        fd, _ = listener._accept()  # type: ignore[attr-defined]  # what socket.accept() itself calls
        server = _socket.socket(fileno=fd)
        ends.append(server)
        server.settimeout(PATIENCE_S)
        phase = "request"
        client.send(REQUEST)
        if receive(server, len(REQUEST)) != REQUEST:
            problem = "EPROTO"
        else:
            phase = "reply"
            server.send(REPLY)
            problem = None if receive(client, len(REPLY)) == REPLY else "EPROTO"
    except TimeoutError:
        problem = "ETIMEDOUT"
    except OSError as error:
        problem = errno_name(error)
    for end in ends:
        end.close()
    return {
        "errno": problem,
        "phase": None if problem is None else phase,
        "seconds": round(time.monotonic() - begun, 4),
    }


def receive(connection: _socket.socket, size: int) -> bytes:
    """Return what CONNECTION delivers until SIZE bytes are there or the other side closes."""
    data = b""
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return data


def use_directory(path: str) -> dict[str, Any]:
    """Create, write, sync and remove a small file in PATH; {"path", "is_dir", "errno", "phase", "free",
    "inodes", "seconds"}, in bytes and seconds.

    The name is removed before the data is written, so that no file is left behind when this process is killed.
    """
    begun, phase = time.monotonic(), "create"
    answer: dict[str, Any] = {"path": path, "is_dir": os.path.isdir(path), "errno": None, "phase": None}
    name = f"{path.rstrip('/')}/.gpu-discovery-{os.getpid()}-{time.monotonic_ns()}"
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            phase = "unlink"
            os.unlink(name)
            phase = "write"
            os.write(fd, BLOCK)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        answer |= {"errno": errno_name(error), "phase": phase}
    try:
        found = os.statvfs(path)
        answer |= {"free": found.f_bavail * found.f_frsize, "inodes": found.f_favail if found.f_files else None}
    except OSError:
        answer |= {"free": None, "inodes": None}
    return {**answer, "seconds": round(time.monotonic() - begun, 4)}


def port_range(value: str | None) -> list[int] | None:
    """Return [first, last] of ip_local_port_range, None when it cannot be read."""
    found = [number(field) for field in (value or "").split()]
    return [found[0], found[1]] if len(found) == 2 and found[0] is not None and found[1] is not None else None


def hosts_of(lines: str | None, name: str) -> list[str] | None:
    """Return the addresses that /etc/hosts LINES give NAME, None when the file cannot be read."""
    if lines is None:
        return None
    found = []
    for line in lines.splitlines():
        fields = line.partition("#")[0].split()
        if name in fields[1:]:
            found.append(fields[0])
    return found
