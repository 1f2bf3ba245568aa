"""A systemd of this test's own: PID 1 of new namespaces, over a directory of units that only it reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

SYSTEMD = next((path for path in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if os.path.exists(path)), "")
TARGETS = (
    "sysinit",
    "basic",
    "shutdown",
    "umount",
    "final",
    "exit",
    "local-fs",
    "sockets",
    "timers",
    "paths",
    "slices",
)
BEGIN = """
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/lock
mount -t proc proc /proc
ip link set lo up 2>/dev/null
export container=other SYSTEMD_UNIT_PATH={units}
exec {systemd} --system --unit=default.target --log-target=console --show-status=no
"""
READY_S = 15.0
CGROUPS = Path("/sys/fs/cgroup")


class PrivateSystemd:
    """systemd as PID 1 of its own; raises OSError or RuntimeError with a reason when it cannot be had here."""

    def __init__(self, directory: Path) -> None:
        if os.geteuid() != 0 or not SYSTEMD or not all(map(shutil.which, ("unshare", "nsenter", "systemd-run"))):
            raise OSError("needs root, systemd, unshare and nsenter")
        if os.path.isdir("/run/systemd/system"):
            raise OSError("this machine's own systemd runs: two of them would share its cgroups")
        self._before = set(CGROUPS.glob("*/*/"))
        self.units = directory / "units"
        self.units.mkdir()
        for name in TARGETS:
            (self.units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        (self.units / "default.target").write_text("[Unit]\nWants=dbus.socket dbus.service\n")
        for name in ("dbus.service", "dbus.socket"):
            shutil.copy(Path(SYSTEMD).parent / "system" / name, self.units / name)
        script = BEGIN.format(units=self.units, systemd=SYSTEMD)
        with open(directory / "log", "wb") as log:
            self._outer = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "/bin/sh", "-c", script],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.pid = 0
        until = time.monotonic() + READY_S
        while time.monotonic() < until and self._outer.poll() is None:
            children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
            if children:
                self.pid = int(children[0])
                if self.run(["systemctl", "is-active", "dbus.service"]).stdout.strip() == "active":
                    return
            time.sleep(0.1)
        self.end()
        raise RuntimeError(f"it did not start: {(directory / 'log').read_text(errors='replace')[-500:]}")

    def run(self, command: Sequence[str], **keywords: object) -> subprocess.CompletedProcess[str]:
        """Run COMMAND inside."""
        inside = ["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-n", "--", *command]
        return subprocess.run(inside, capture_output=True, text=True, timeout=90, check=False)

    def end(self) -> None:
        """End it with everything in it: the death of PID 1 ends its namespace."""
        if self.pid:
            try:
                os.kill(self.pid, 9)
            except ProcessLookupError:
                pass
        try:
            self._outer.wait(20)  # it waits for PID 1, and that for everybody in its namespace
        except subprocess.TimeoutExpired:
            self._outer.kill()
            self._outer.wait(20)
        until = time.monotonic() + 5
        while (left := set(CGROUPS.glob("*/*/")) - self._before) and time.monotonic() < until:
            for directory in (directory for folder in left for directory, _, _ in os.walk(folder, topdown=False)):
                try:
                    os.rmdir(directory)
                except OSError:
                    time.sleep(0.01)  # its last process is not gone yet
