"""A container as far as discovery sees one: a root directory of its own, in namespaces of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.install import goelf
from tests.stages.test_package import LIBRARY

# Runs in the process that is to be looked at: everything it needs is loaded before it changes its root.
ENTER = """
import os, time, ctypes
libc = ctypes.CDLL(None)
os.chroot({root!r})
os.chdir({cwd!r})
os.setgroups([]); os.setgid({gid}); os.setuid({uid})
{then}
"""


def make(root: Path, version: str = "0.16.3") -> Path:
    """Make the image of Ollama's container below ROOT: /usr/bin/ollama beside /usr/lib/ollama, and an absolute link."""
    lib = root / "usr" / "lib" / "ollama"
    for directory in (lib / "cuda_v12", root / "usr" / "bin", root / "etc", root / "tmp", root / "root", root / "dev"):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
    root.chmod(0o755)
    info = {".go.buildinfo": goelf.build_info("path\tgithub.com/ollama/ollama"), **goelf.strings([version])}
    (root / "usr" / "bin" / "ollama.real").write_bytes(goelf.elf(info))
    (root / "usr" / "bin" / "ollama.real").chmod(0o755)
    (root / "usr" / "bin" / "ollama").symlink_to("/usr/bin/ollama.real")
    shutil.copy(LIBRARY, lib / "libggml-base.so.0")
    shutil.copy(LIBRARY, lib / "cuda_v12" / "libggml-cuda.so")
    (root / "etc" / "ld.so.preload").write_text("/opt/vgpu/libvgpu.so\n")
    return root


def code(root: Path, *, uid: int = 0, cwd: str = "/", dumpable: bool = True) -> str:
    """Return what a process does to be inside ROOT; DUMPABLE: as after the exec that a container begins with."""
    then = "libc.prctl(4, 1)" if dumpable else ""  # PR_SET_DUMPABLE
    return ENTER.format(root=str(root), cwd=cwd, uid=uid, gid=uid, then=then)
