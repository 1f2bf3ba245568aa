"""The decompressed bytes of a file: gzip by zlib; zstd by whatever of three ways this machine has.

Each reader returns at most what was asked for, so a bomb costs no memory; what it would cost on disk is the unpacker's
to count.
"""

from __future__ import annotations

import os
import zlib

from pytest_gpudiscovery.probes.tarstream import ArchiveProblem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Read = Callable[[int], bytes]

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
INPUT = 1 << 18
WINDOW_LIMIT = 27  # log2 of bytes: what `zstd -d` accepts without --long, and what Ollama's releases need
ZSTD_PLACES = ("/usr/bin", "/bin", "/usr/local/bin")
NO_ZSTD = "zstd needs Python 3.14, the package zstandard or the program zstd, and none is here"


def gzip(fd: int) -> Read:
    """Return a reader over the gzip members in FD; it raises ArchiveProblem for what is broken or cut off."""
    state: dict[str, Any] = {"inflate": zlib.decompressobj(31), "rest": b""}

    def read(size: int) -> bytes:
        while True:
            inflate = state["inflate"]
            raw = state["rest"] or inflate.unconsumed_tail or os.read(fd, INPUT)
            state["rest"] = b""
            if not raw:
                if not inflate.eof:
                    raise ArchiveProblem("the gzip stream is cut off")
                return b""
            if inflate.eof:
                if not raw.startswith(GZIP):
                    return b""  # padding after the last member, as gzip(1) ignores it
                inflate = state["inflate"] = zlib.decompressobj(31)
            try:
                data = inflate.decompress(raw, size)
            except zlib.error as error:
                raise ArchiveProblem(f"the gzip stream is broken: {error}") from None
            if inflate.eof:
                state["rest"] = inflate.unused_data
            if data:
                return bytes(data)
            if inflate.eof and not state["rest"]:
                state["rest"] = os.read(fd, INPUT)
                if not state["rest"]:
                    return b""

    return read


def zstd(fd: int, path: str) -> tuple[Read, str]:
    """Return (reader, which of the three ways) over the zstd frames in FD; PATH is searched for the program.

    Raises ArchiveProblem when this machine has none of the three; so does the reader for what is broken. A stream that
    is cut off may simply end, as zstandard lets it: the archive inside tells by its own end mark.
    """
    for way in (_by_stdlib, _by_package):
        try:
            reader, broken = way(fd)
        except ImportError:
            continue
        return _guarded(reader, broken), way.__name__.removeprefix("_by_")
    return _by_program(fd, path)


def _guarded(reader: Any, broken: type[Exception]) -> Read:
    def read(size: int) -> bytes:
        try:
            return bytes(reader.read(size))
        except (broken, EOFError) as error:
            raise ArchiveProblem(f"the zstd stream is broken or cut off: {error}") from None

    return read


def _by_stdlib(fd: int) -> tuple[Any, type[Exception]]:
    module: Any = __import__("compression.zstd", fromlist=["ZstdFile"])
    limit = {module.DecompressionParameter.window_log_max: WINDOW_LIMIT}
    return module.ZstdFile(os.fdopen(os.dup(fd), "rb"), options=limit), module.ZstdError


def _by_package(fd: int) -> tuple[Any, type[Exception]]:
    module: Any = __import__("zstandard")
    made = module.ZstdDecompressor(max_window_size=1 << WINDOW_LIMIT)
    return made.stream_reader(os.fdopen(os.dup(fd), "rb"), read_across_frames=True), module.ZstdError


def _by_program(fd: int, path: str) -> tuple[Read, str]:
    """Start `zstd -d` over FD. It lives in the supervised child's process group and dies with it."""
    places = dict.fromkeys([*(part for part in path.split(":") if part.startswith("/")), *ZSTD_PLACES])
    program = next((f"{place}/zstd" for place in places if os.access(f"{place}/zstd", os.X_OK)), None)
    if program is None:
        raise ArchiveProblem(NO_ZSTD)
    out, child_out = os.pipe()
    err, child_err = os.pipe()
    pid = os.posix_spawn(
        program,
        [program, "-d", "-q", "-c", f"--memory={1 << (WINDOW_LIMIT - 20)}MB"],
        {"PATH": path},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, fd, 0),
            (os.POSIX_SPAWN_DUP2, child_out, 1),
            (os.POSIX_SPAWN_DUP2, child_err, 2),
        ],
    )
    os.close(child_out)
    os.close(child_err)
    ended = False

    def read(size: int) -> bytes:
        nonlocal ended
        data = b"" if ended else os.read(out, size)
        if not data and not ended:
            ended = True
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said = " ".join(os.read(err, 4096).decode("utf-8", "replace").split())
            if status != 0:
                raise ArchiveProblem(f"the zstd stream is broken or cut off: {said or f'zstd ended with {status}'}")
        return data

    return read, program
