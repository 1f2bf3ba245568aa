"""SIGTERM as an orderly end, SIGCHLD as it must be for whoever has children.

Slurm, Kubernetes and systemd send SIGTERM before SIGKILL and give some 30 s for reports.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM came. A KeyboardInterrupt, because pytest.exit's exception is one that `except Exception` would catch."""


class Sigchld:
    """Lets the ends of children be learnt although whoever started us ignores SIGCHLD, until `restore`.

    `trap '' CHLD` of an entry point and some process managers hand that down: the kernel then forgets how each child
    ended, and a child that crashed looks like one that ended well.
    """

    def __init__(self) -> None:
        self._ignored = False

    def heed(self) -> None:
        """Begin, where the signal is ignored and this is the main thread."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._ignored = True

    def restore(self) -> None:
        """Ignore it again, as before."""
        if self._ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            self._ignored = False


class Sigterm:
    """Raises Terminated in the main thread at the first SIGTERM, until `close`; later ones change nothing."""

    def __init__(self) -> None:
        self.came = False
        self._closed = False
        self._old: Any = None

    def catch(self) -> None:
        """Begin, unless somebody else handles SIGTERM already or this is not the main thread."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._old = signal.signal(signal.SIGTERM, self._handle)

    def close(self) -> None:
        """Interrupt nothing any more: the reports are being written."""
        self._closed = True

    def restore(self) -> None:
        """Put the handler back that was there before."""
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old)
            self._old = None

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self.came and not self._closed:
            self.came = True
            raise Terminated
