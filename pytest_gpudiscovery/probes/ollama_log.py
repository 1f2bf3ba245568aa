"""Looks at a log before the caller opens it, and reads a unit's journal: both may block for ever.

REQUEST {"ask": "file", "path"}: what kind of file it is and how it begins; a file is opened and read from, a pipe is
only looked at. REQUEST {"ask": "journal", "unit", "to", "limit"}: `journalctl -o json` of the unit's newest lines,
written to the file TO (at most LIMIT bytes of it).
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

HEAD = 64  # bytes that tell compressed and binary files apart
LINES = 200_000  # of the journal: years of an Ollama service, 250 MB at most
SAID = 2000  # bytes of what journalctl complains about
FIELDS = "MESSAGE,_PID,_SYSTEMD_UNIT,UNIT,SYSLOG_IDENTIFIER,CONTAINER_NAME"


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Answer REQUEST."""
    if request["ask"] == "journal":
        return _journal(request, journal)
    return _file(request["path"], journal)


def _file(path: str, journal: Journal) -> dict[str, Any]:
    try:
        with journal.step(f"stat {path}"):
            found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = "directory" if stat.S_ISDIR(found.st_mode) else "stream"
            return {"kind": kind, "size": 0, "head": ""}
        with journal.step(f"open {path}"):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with journal.step(f"read {path}"):
            head = os.read(fd, HEAD)
        return {"kind": "file", "size": found.st_size, "head": head.hex()}
    except OSError as error:
        return {"error": error.strerror or str(error)}


def _journal(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    import shutil  # noqa: PLC0415 - only here

    program = shutil.which("journalctl")
    if program is None:
        return {"error": "journalctl is not installed"}
    arguments = [program, "-o", "json", "-u", request["unit"], "--no-pager", "-n", str(LINES)]
    with journal.step("journalctl"):
        found = _run([*arguments, f"--output-fields={FIELDS}"], request["to"], request["limit"])
        if found["code"] != 0 and found["size"] == 0 and "output-fields" in found["said"]:  # before systemd 236
            found = _run(arguments, request["to"], request["limit"])
    return found


def _run(arguments: list[str], to: str, limit: int) -> dict[str, Any]:
    """Return the exit code of ARGUMENTS, the bytes written to TO, whether that is not all, and its last complaints."""
    out_reader, out_writer = os.pipe()
    err_reader, err_writer = os.pipe()
    pid = os.posix_spawn(
        arguments[0],
        arguments,
        {**os.environ, "SYSTEMD_COLORS": "0"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, out_writer, 1),
            (os.POSIX_SPAWN_DUP2, err_writer, 2),
        ],
    )
    os.close(out_writer)
    os.close(err_writer)
    size, said, cut = 0, b"", False
    fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    import select  # noqa: PLC0415 - only here

    open_ends = {out_reader, err_reader}
    while open_ends:
        for reader in select.select(list(open_ends), [], [])[0]:
            data = os.read(reader, 1 << 16)
            if not data:
                open_ends.discard(reader)
            elif reader == err_reader:
                said = (said + data)[-SAID:]
            elif size + len(data) <= limit:
                size += os.write(fd, data)
            else:
                os.kill(pid, 9)
                cut = True
                open_ends.clear()  # what it has started itself may hold them open
                break
    for end in (out_reader, err_reader, fd):
        os.close(end)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"code": code, "size": size, "cut": cut, "said": said.decode("utf-8", "backslashreplace").strip()}
