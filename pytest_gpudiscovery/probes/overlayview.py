"""A recorded host on which some directories are those of this machine: an install that the caller named by its path."""

from __future__ import annotations

from pytest_gpudiscovery.probes.host import READ_LIMIT, HostView, LiveView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class OverlayView:
    """Answers for LIVE directories and what is below them from this machine, for everything else from RECORDED."""

    def __init__(self, recorded: HostView, live: Iterable[str]) -> None:
        self._recorded, self._machine = recorded, LiveView()
        self._live = tuple(path.rstrip("/") for path in live)

    def _of(self, path: str) -> HostView:
        inside = any(path == root or path.startswith(root + "/") for root in self._live)
        return self._machine if inside else self._recorded

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        """See HostView."""
        return self._of(path).read(path, limit)

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """See HostView."""
        return self._of(path).read_at(path, offset, size)

    def listdir(self, path: str) -> list[str]:
        """See HostView."""
        return self._of(path).listdir(path)

    def stat(self, path: str) -> dict[str, Any]:
        """See HostView."""
        return self._of(path).stat(path)

    def readlink(self, path: str) -> str:
        """See HostView."""
        return self._of(path).readlink(path)

    def realpath(self, path: str) -> str:
        """See HostView."""
        return self._of(path).realpath(path)

    def open_device(self, path: str) -> None:
        """See HostView."""
        self._of(path).open_device(path)

    def access(self, path: str, wanted: int) -> bool:
        """See HostView."""
        return self._of(path).access(path, wanted)

    def map_executable(self, path: str) -> None:
        """See HostView."""
        self._of(path).map_executable(path)

    def kernel_log(self, limit: int = READ_LIMIT * 8) -> list[bytes]:
        """See HostView."""
        return self._recorded.kernel_log(limit)
