"""Captured output, bounded: its head, its tail, and how much was between them."""

from __future__ import annotations

LIMIT = 64 * 1024  # bytes per stream


class HeadTail:
    """Keeps the first and the last half of LIMIT bytes of a stream and counts the rest."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._half = limit // 2
        self._head, self._tail = bytearray(), bytearray()
        self._total = 0

    def feed(self, data: bytes) -> None:
        """Take the next DATA of the stream."""
        self._total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data[-self._half :]
            del self._tail[: -self._half]

    @property
    def dropped(self) -> int:
        """The number of bytes that are not kept."""
        return self._total - len(self._head) - len(self._tail)

    def text(self) -> str:
        """Return what is kept, as text; what is not UTF-8 is written as \\xNN."""
        middle = f"\n... {self.dropped} bytes dropped ...\n".encode() if self.dropped else b""
        return (bytes(self._head) + middle + bytes(self._tail)).decode("utf-8", "backslashreplace")
