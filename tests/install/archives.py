"""Archives of every shape, written header by header: what tarfile would refuse to write is what a hostile one holds."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One member as the archive says it, right or wrong."""

    name: str
    data: bytes = b""
    kind: bytes = b"0"
    target: str = ""
    mode: int = 0o644
    size: int | None = None  # None: the size of the data
    header: bytes = b""  # blocks before this one: a long name, a pax header


def block(entry: Entry) -> bytes:
    """Return the ustar header of ENTRY with its right checksum."""
    size = len(entry.data) if entry.size is None else entry.size
    sized = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    head = bytearray(512)
    head[0:100] = entry.name.encode("utf-8", "surrogateescape")[:100].ljust(100, b"\0")
    head[100:108] = b"%07o\0" % entry.mode
    head[124:136] = sized
    head[148:156] = b" " * 8
    head[156:157] = entry.kind
    head[157:257] = entry.target.encode()[:100].ljust(100, b"\0")
    head[257:265] = b"ustar\x0000"
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def padded(data: bytes) -> bytes:
    """Return DATA filled up to whole blocks."""
    return data + bytes(-len(data) % 512)


def tar(entries: Iterable[Entry], *, end: bool = True) -> bytes:
    """Return the archive of ENTRIES, without its end mark where END is false."""
    parts = [entry.header + block(entry) + padded(entry.data) for entry in entries]
    return b"".join(parts) + (bytes(1024) if end else b"")


def pax(records: dict[str, str], kind: bytes = b"x") -> bytes:
    """Return a pax header with RECORDS (with g: for all that follows), to stand before another entry."""
    data = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        data += str(length).encode() + rest
    return block(Entry("pax", data, kind)) + padded(data)


def long_name(name: str, kind: bytes = b"L") -> bytes:
    """Return GNU's long name (or with K: long link) to stand before another entry."""
    data = name.encode() + b"\0"
    return block(Entry("././@LongLink", data, kind)) + padded(data)


def tgz(entries: Iterable[Entry]) -> bytes:
    """Return ENTRIES as a .tgz."""
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", mtime=0) as file:
        file.write(tar(entries))
    return made.getvalue()


ELF = b"\x7fELF" + bytes(60)
RELEASE = (
    Entry("./", kind=b"5", mode=0o755),
    Entry("./bin/", kind=b"5", mode=0o755),
    Entry("./bin/ollama", ELF, mode=0o755),
    Entry("./lib/ollama/libggml-base.so", kind=b"2", target="libggml-base.so.0"),
    Entry("./lib/ollama/libggml-base.so.0", ELF),
    Entry("./lib/ollama/cuda_v12/libggml-cuda.so", ELF, mode=0o755),
    Entry("./lib/ollama/cuda_v12/libcudart.so.12", kind=b"2", target="libcudart.so.12.8.90"),
    Entry("./lib/ollama/cuda_v12/libcudart.so.12.8.90", ELF),
    Entry("./lib/ollama/mlx_cuda_v13/libcudart.so.12", kind=b"2", target="../cuda_v12/libcudart.so.12"),
    Entry("./lib/ollama/cuda_v12/hard", kind=b"1", target="./lib/ollama/libggml-base.so.0"),
)
