"""Where real Ollama binaries look, against what stage 01 says: `python ci/install/agreement.py PREFIX...`.

Each PREFIX is an install with bin/ollama and lib/ollama. Its files are laid out in every way that one of the eras
knows, `ollama serve` runs there privately (own HOME, own port, killed after its discovery), and the directories that it
names in its log at trace level are compared with the prediction. Exit 0: all agree.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytest_gpudiscovery.probes import eras, gobinary, layout
from pytest_gpudiscovery.probes.host import LiveView
from pytest_gpudiscovery.stages import directories

PASS_S = 40.0
LOOKED_AT = re.compile(r'OLLAMA_LIBRARY_PATH="?\[([^\]]*)\]')
DONE = ("inference compute", "no compatible GPUs")
PLACES = (
    "lib/ollama",
    "bin/build/lib/ollama",
    "bin/lib/ollama",
    "bin/dist/linux-amd64/lib/ollama",
    "bin/dist/linux_amd64/lib/ollama",
    "cwd/build/lib/ollama",
    "lib64/ollama",
    "",
)
Change = Callable[[Path], None]


def lay_out(prefix: Path, base: Path, place: str) -> Path:
    """Copy the install at PREFIX to BASE with its libraries at PLACE and two GPU directories; return the binary."""
    (base / "bin").mkdir(parents=True)
    (base / "cwd").mkdir()
    shutil.copy(prefix / "bin" / "ollama", base / "bin" / "ollama")
    if place:
        lib = base / place
        shutil.copytree(prefix / "lib" / "ollama", lib, symlinks=True, ignore=shutil.ignore_patterns("cuda_*", "mlx_*"))
        for name in ("cuda_v12", "cuda_v13", "vulkan", "cuda_jetpack6"):
            (lib / name).mkdir()
            # No backend: a library that loads and has no entry point, so that each pass is short.
            backend = "libggml-vulkan.so" if name == "vulkan" else "libggml-cuda.so"
            shutil.copy(lib / "libggml-base.so.0", lib / name / backend)
    return base / "bin" / "ollama"


def looked_at(binary: Path, cwd: Path, home: Path, env: Mapping[str, str]) -> list[str]:
    """Return the last directory of each pass that the real `ollama serve` makes, sorted, [""] for none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"PATH": "/usr/bin:/bin", "HOME": str(home), "OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_DEBUG": "2", **env}
    server = subprocess.Popen(
        [binary, "serve"],
        cwd=cwd,
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(server.stdout or ()), daemon=True)
    reader.start()
    until = time.monotonic() + PASS_S
    while time.monotonic() < until and not any(word in line for line in said for word in DONE):
        time.sleep(0.05)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    reader.join(5)
    return sorted({(found.split() or [""])[-1] for found in LOOKED_AT.findall("".join(said))})


def predicted(binary: Path, cwd: Path | None, env: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Return (version, the last directory of each pass) as stage 01 sees them."""
    view = LiveView()
    version = gobinary.version(view, str(binary))["version"]
    era = eras.era(version)
    real = os.path.realpath(binary)
    if cwd is None and era != "C":
        return version, [""]  # os.Getwd fails: nothing is looked at
    lib = layout.find_lib(view, real, str(cwd) if cwd else None, era)["path"]
    names = layout.gpu_directories(view, lib)
    jetson = directories.jetpack(env, os.uname().machine, None)
    kept = [
        f"{lib}/{name}"
        for name in names
        if not directories.skipped(name, env, era=era, version=version, jetpack=jetson, names=names)
    ]
    return version, sorted(kept) if names else [lib]


def flat(base: Path) -> None:
    """Put the backend into lib/ollama itself, as distributions do."""
    lib = base / "lib" / "ollama"
    shutil.copy(lib / "cuda_v12" / "libggml-cuda.so", lib / "libggml-cuda.so")
    for folder in lib.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)


def linked(base: Path) -> None:
    """Start the binary through a link in another directory."""
    (base / "bin" / "ollama").rename(base / "bin" / "real")
    (base / "elsewhere").mkdir()
    (base / "bin" / "ollama").symlink_to("real")


VARIATIONS: tuple[tuple[str, Change | None, dict[str, str]], ...] = (
    ("backend in lib/ollama itself", flat, {}),
    ("binary behind a link", linked, {}),
    ("OLLAMA_LLM_LIBRARY quoted", None, {"OLLAMA_LLM_LIBRARY": ' "cuda_v13" '}),
    ("OLLAMA_LLM_LIBRARY of MLX", None, {"OLLAMA_LLM_LIBRARY": "mlx_cuda_v13"}),
    ("OLLAMA_LLM_LIBRARY of nothing", None, {"OLLAMA_LLM_LIBRARY": "cuda_v11"}),
    ("JETSON_JETPACK", None, {"JETSON_JETPACK": "6"}),
    ("OLLAMA_VULKAN on", None, {"OLLAMA_VULKAN": "1"}),
    ("OLLAMA_VULKAN off", None, {"OLLAMA_VULKAN": "0"}),
    ("working directory gone", None, {}),
)


def main(prefixes: list[str]) -> int:
    """Compare every layout of every prefix; print a line for each."""
    cases: list[tuple[str, str, Change | None, dict[str, str]]] = [
        (place or "none", place, None, {}) for place in PLACES
    ]
    cases += [(title, "lib/ollama", change, env) for title, change, env in VARIATIONS]
    wrong = 0
    for prefix in map(Path, prefixes):
        for title, place, change, env in cases:
            with tempfile.TemporaryDirectory() as folder:
                base = Path(folder, "p")
                binary = lay_out(prefix, base, place)
                if change is not None:
                    change(base)
                cwd: Path | None = base / "cwd"
                lost = title == "working directory gone"
                version, said = predicted(binary, None if lost else cwd, env)
                really = _really(binary, base, env, lost=lost)
            agree = really == said
            wrong += not agree
            short = [path.replace(str(base), "") for path in said]
            print(f"{version}  {'agree' if agree else 'DIFFER'}  {title}: {' '.join(short) or 'nothing'}")
            if not agree:
                print(f"    really: {[path.replace(str(base), '') for path in really]}")
    print(f"{wrong} of {len(cases) * len(prefixes)} differ")
    return 1 if wrong else 0


def _really(binary: Path, base: Path, env: Mapping[str, str], *, lost: bool) -> list[str]:
    home = base / "home"
    home.mkdir()
    cwd = base / "cwd"
    if not lost:
        return looked_at(binary, cwd, home, env)
    wrapper: Any = base / "lost.sh"
    wrapper.write_text(f'#!/bin/sh\ncd {cwd}\nrmdir {cwd}\nexec {binary} "$@"\n')
    wrapper.chmod(0o755)
    return looked_at(wrapper, base, home, env)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
