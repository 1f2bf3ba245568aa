"""One GET /info as Ollama asks its runner (v0.16.3:ml/device.go:622-670): never blocks, and the answer is bounded."""

from __future__ import annotations

import _socket
import errno

from pytest_gpudiscovery.probes.facts import errno_name

LIMIT = 1 << 20  # bytes of an answer; 16 GPUs take 8 kB


class Ask:
    """A request under way. `fd` is to be watched for reading, and for writing until `connected`."""

    def __init__(self, port: int) -> None:
        self.connected = self.sent = self.ended = False
        self.error: str | None = None  # errno name, or "EOF": the other side closed before the answer was whole
        self.status: int | None = None
        self.body: bytes = b""
        self._data = bytearray()
        self._request = (
            f"GET /info HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: Go-http-client/1.1\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n\r\n"
        ).encode()
        self._socket = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        self._socket.setblocking(False)
        code = self._socket.connect_ex(("127.0.0.1", port))
        if code not in (0, errno.EINPROGRESS):
            self._end(errno.errorcode.get(code, str(code)))
        self.fd = self._socket.fileno()

    def step(self) -> None:
        """Go on as far as possible without waiting."""
        try:
            if not self.connected:
                code = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
                if code:
                    self._end(errno.errorcode.get(code, str(code)))
                    return
                self._socket.send(self._request)  # raises ENOTCONN or EAGAIN while the handshake is not done
                self.connected = self.sent = True
            while True:
                part = self._socket.recv(65_536)
                if not part:
                    self._whole(at_end=True)
                    return
                self._data += part
                if len(self._data) > LIMIT:
                    self._end("EMSGSIZE")
                    return
                if self._whole(at_end=False):
                    return
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self._end(errno_name(error))

    def _whole(self, *, at_end: bool) -> bool:
        answer = parse(bytes(self._data), at_end=at_end)
        if answer is not None:
            self.status, self.body = answer
            self._end(None)
        elif at_end:
            self._end("EOF")
        return self.ended

    def _end(self, why: str | None) -> None:
        self.ended, self.error = True, why
        self._socket.close()

    def close(self) -> None:
        """Give up."""
        if not self.ended:
            self._end("gave up")


def parse(data: bytes, *, at_end: bool) -> tuple[int, bytes] | None:
    """Return (status, body) of HTTP response DATA, None while it is not whole. AT_END: nothing more will come.

    What does not begin like HTTP has status 0, and is whole at its end only.
    """
    head, blank, rest = data.partition(b"\r\n\r\n")
    if not blank:
        return (0, data) if at_end and data else None
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not (words[1].isascii() and words[1].isdigit()):
        return (0, data) if at_end else None
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if fields.get("transfer-encoding", "").lower() == "chunked":
        body = unchunked(rest)
        return (int(words[1][:4]), rest if body is None else body) if body is not None or at_end else None
    length = fields.get("content-length", "")
    if length.isascii() and length.isdigit() and len(length) < 10:
        size = int(length)
        return (int(words[1][:4]), rest[:size]) if len(rest) >= size else None
    return (int(words[1][:4]), rest) if at_end else None


def unchunked(data: bytes) -> bytes | None:
    """Return the body of chunked DATA, None while its last chunk is not there."""
    parts: list[bytes] = []
    while True:
        line, newline, data = data.partition(b"\r\n")
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            return None
        if not newline or size < 0 or len(data) < size + 2:
            return b"".join(parts) if newline and size == 0 else None
        if size == 0:
            return b"".join(parts)
        parts.append(data[:size])
        data = data[size + 2 :]
