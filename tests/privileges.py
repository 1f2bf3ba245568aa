"""What the user of the tests may do here: root of an ordinary container may neither mount nor look into others."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

_CAPABILITIES = int(re.findall(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)[0], 16)
CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21
MAY_MOUNT = os.geteuid() == 0 and bool(_CAPABILITIES >> CAP_SYS_ADMIN & 1)
MAY_LOOK = os.geteuid() == 0 and bool(_CAPABILITIES >> CAP_SYS_PTRACE & 1)

needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="needs root with CAP_SYS_ADMIN: mounts or enters namespaces")
needs_to_look = pytest.mark.skipif(not MAY_LOOK, reason="needs root with CAP_SYS_PTRACE: looks into others' processes")
