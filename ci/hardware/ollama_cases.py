"""The faults that ci/hardware/ollama.py injects into real Ollama installs, and what each must lead to."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

WORK = Path("/tmp/gpu-discovery-ollama")  # noqa: S108  made anew and removed by ollama.py
ERA_C = ("llama",)  # names of installs whose discovery children are llama-server

# Preloaded objects. The constructor acts only in a discovery child: there argv[1] is "runner" (to 0.24) or the program
# is llama-server (from 0.30), so that the server itself and every other program start as ever.
SHIMS = {
    "cuinit999": "int cuInit(unsigned f) { (void)f; return 999; }\n",
    "pause": "for (;;) pause();",
    "stop": "raise(SIGSTOP);",
    "exit": "_exit(0);",
    "abort": "abort();",
}
IN_A_CHILD = """#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void __attribute__((constructor)) start(int argc, char **argv, char **envp) {
  (void)envp;
  if (strstr(program_invocation_short_name, "llama-server") || (argc > 1 && strcmp(argv[1], "runner") == 0)) { %s }
}
"""
NEEDED = "#include <unistd.h>\nstatic void __attribute__((constructor)) start(void) { for (;;) pause(); }\n"


@dataclass(frozen=True)
class Case:
    """One fault of install INSTALL; `computes`: gpu, cpu or ended; `causes`: what may be named first where not gpu.

    `stage`: where the first blocker must be, for a fault that can only be seen in Ollama's own child.
    """

    install: str
    name: str
    computes: str
    causes: tuple[str, ...] = ()
    damage: Callable[[Path], None] = lambda _: None
    env: dict[str, str] = field(default_factory=dict)
    as_nobody: bool = False
    no_nodes: tuple[str, ...] = ()  # device nodes that are missing
    before: tuple[str, ...] = ()  # shell lines in a mount namespace of their own; $lib is lib/ollama
    around: tuple[str, ...] = ()  # words before the command
    stage: str = ""


def build() -> None:
    """Compile the shims into WORK; raises CalledProcessError without a C compiler."""
    for name, body in SHIMS.items():
        text = body if name == "cuinit999" else IN_A_CHILD % body
        _compile(name, text)
    _compile("needed", NEEDED)


def _compile(name: str, text: str) -> None:
    source = WORK / f"{name}.c"
    source.write_text(text)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", WORK / f"{name}.so", source], check=True)


def backend(install: Path) -> Path:
    """Return the CUDA backend of INSTALL."""
    return next(iter(sorted((install / "lib/ollama").glob("*/libggml-cuda.so"))))


def gone(pattern: str) -> Callable[[Path], None]:
    """Return a damage that removes the files below lib/ollama that PATTERN names."""

    def damage(install: Path) -> None:
        for path in sorted((install / "lib/ollama").glob(pattern)):
            path.unlink()

    return damage


def cut(install: Path) -> None:
    """Cut libggml-cuda.so off in the middle."""
    path = backend(install)
    _replace(path, path.read_bytes()[: path.stat().st_size // 2])


def lfs(install: Path) -> None:
    """Put a git-lfs pointer in the place of libggml-cuda.so."""
    _replace(backend(install), b"version https://git-lfs.github.com/spec/v1\n")


def arm(install: Path) -> None:
    """Say in libggml-cuda.so's ELF header that it is for AArch64."""
    data = bytearray(backend(install).read_bytes())
    data[18:20] = (183).to_bytes(2, "little")
    _replace(backend(install), bytes(data))


def private(install: Path) -> None:
    """Leave libggml-cuda.so to root alone."""
    backend(install).chmod(0o600)


def foreign_runtime(install: Path) -> None:
    """Put the cublas library in the place of libcudart: the name is right, the symbols are not there."""
    path = next(iter(sorted(backend(install).parent.glob("libcudart.so.*"))))
    path.unlink()
    shutil.copy(next(iter(sorted(path.parent.glob("libcublas.so.*")))), path)


def needs_what_hangs(install: Path) -> None:
    """Make libggml-cuda.so need a library whose constructor never returns."""
    path = backend(install)
    shutil.copy(WORK / "needed.so", path.parent / "libneeded.so")
    subprocess.run(["patchelf", "--add-needed", "libneeded.so", str(path)], check=True)


def not_executable_server(install: Path) -> None:
    """Take the right to execute llama-server away."""
    (install / "lib/ollama/llama-server").chmod(0o644)


def _replace(path: Path, data: bytes) -> None:
    path.unlink()  # the copy may be a hard link
    path.write_bytes(data)
    path.chmod(0o755)


def cases(names: list[str]) -> list[Case]:
    """Return the cases of the installs NAMES: machine and newer (machine code), ptx (PTX only), llama (era C)."""
    rows = [Case(name, "healthy", "gpu") for name in names]
    for name in names:
        if name != "ptx":
            rows += [*_environment(name), *_files(name), *_context(name), *_children(name)]
    if "ptx" in names:
        eager = ("closure.jit.eager_hang",)
        rows.append(Case("ptx", "CUDA_MODULE_LOADING=EAGER", "cpu", eager, env={"CUDA_MODULE_LOADING": "EAGER"}))
    return rows


def _environment(name: str) -> list[Case]:
    hides = ("service.env.cuda_visible_devices_hides_all",)
    twice, order = ("service.env.cuda_visible_devices_twice",), ("service.env.cuda_device_order",)
    one = "GPU-deadbeef-0000-4000-8000-000000000000"
    preload = {"LD_PRELOAD": str(WORK / "cuinit999.so")}
    directory = ("service.env.ollama_llm_library",)
    return [
        Case(name, "CUDA_VISIBLE_DEVICES empty", "cpu", hides, env={"CUDA_VISIBLE_DEVICES": ""}),
        Case(name, "CUDA_VISIBLE_DEVICES of no GPU", "cpu", hides, env={"CUDA_VISIBLE_DEVICES": one}),
        Case(name, "CUDA_VISIBLE_DEVICES of no MIG", "cpu", hides, env={"CUDA_VISIBLE_DEVICES": "MIG-" + one[4:]}),
        Case(name, "CUDA_VISIBLE_DEVICES=0", "gpu", env={"CUDA_VISIBLE_DEVICES": "0"}),
        Case(name, "CUDA_VISIBLE_DEVICES=0x1", "gpu", env={"CUDA_VISIBLE_DEVICES": "0x1"}),  # read as 0
        Case(name, "CUDA_VISIBLE_DEVICES=0,0", "cpu", twice, env={"CUDA_VISIBLE_DEVICES": "0,0"}),
        Case(name, "CUDA_DEVICE_ORDER=pci_bus_id", "cpu", order, env={"CUDA_DEVICE_ORDER": "pci_bus_id"}),
        # The CUDA runtime asks libcuda itself: an interposed cuInit is not called, and Ollama keeps the GPU.
        Case(name, "LD_PRELOAD whose cuInit answers 999", "gpu", env=preload),
        Case(name, "OLLAMA_LLM_LIBRARY of no directory", "cpu", directory, env={"OLLAMA_LLM_LIBRARY": "cuda_v99"}),
        Case(name, "CUDA_MODULE_LOADING=EAGER", "gpu", env={"CUDA_MODULE_LOADING": "EAGER"}),
    ]


def _files(name: str) -> list[Case]:
    base = ("closure.base.missing",)
    # Its directory stays; with nothing else in it there is no directory for a GPU at all.
    none = ("package.gpu_dir.incomplete", "package.gpu_dir.missing")
    rows = [
        Case(name, "libggml-cuda.so is cut off", "cpu", ("package.library.truncated",), cut),
        Case(name, "libggml-cuda.so is a git-lfs pointer", "cpu", ("package.library.not_elf",), lfs),
        Case(name, "libggml-cuda.so is for AArch64", "cpu", ("package.library.foreign",), arm),
        Case(name, "no libggml-cuda.so", "cpu", none, gone("*/libggml-cuda.so")),
        Case(name, "libcudart is another library", "cpu", (), foreign_runtime),
        Case(name, "unreadable libggml-cuda.so", "cpu", ("package.library.unreadable",), private, as_nobody=True),
        Case(name, "lib/ollama mounted noexec", "", ("package.mount.noexec",), before=(NOEXEC,)),
    ]
    if name in ERA_C:
        rows.append(Case(name, "llama-server not executable", "cpu", (), not_executable_server))
    else:
        rows.append(Case(name, "no libggml-base.so.0", "cpu", base, gone("libggml-base.so*")))
    return rows


NOEXEC = 'mount --bind "$lib" "$lib"; mount -o remount,bind,noexec "$lib"'


def _context(name: str) -> list[Case]:
    node, lo = ("kernel.node.missing",), ("loopback.lo.down",)
    nvidiactl, gpu0 = ("nvidiactl",), ("nvidia0",)
    memory = ("service.limit.address_space", "service.limit.address_space_finite")
    listens = "gpu" if name in ERA_C else "cpu"  # llama-server is asked over its standard output
    missing = {"TMPDIR": "/nonexistent/tmp"}
    return [
        Case(name, "as uid 65534", "gpu", as_nobody=True),
        Case(name, "no /dev/nvidia-uvm, uid 65534", "cpu", node, as_nobody=True, no_nodes=("nvidia-uvm",)),
        Case(name, "no /dev/nvidiactl, uid 65534", "cpu", node, as_nobody=True, no_nodes=nvidiactl),
        Case(name, "no /dev/nvidia0, uid 65534", "cpu", node, as_nobody=True, no_nodes=gpu0),
        Case(name, "own network namespace, lo down", listens, lo, around=("unshare", "-n")),
        Case(name, "TMPDIR does not exist", listens, ("loopback.tmp.missing",), env=missing),
        Case(name, "RLIMIT_AS of 8 GB", "cpu", memory, around=("prlimit", f"--as={8 << 30}")),
    ]


def _children(name: str) -> list[Case]:
    """Return what only Ollama's own child meets; the last two take its 30 s."""

    def shim(word: str) -> dict[str, str]:
        return {"LD_PRELOAD": str(WORK / f"{word}.so")}

    hang = ("bootstrap.hang.preload", "bootstrap.hang.start", "bootstrap.start.hang")
    rows = [
        Case(name, "preloaded object ends the child", "cpu", (), env=shim("exit"), stage="bootstrap"),
        Case(name, "preloaded object aborts the child", "cpu", (), env=shim("abort"), stage="bootstrap"),
        Case(name, "preloaded object hangs the child", "cpu", hang, env=shim("pause"), stage="bootstrap"),
    ]
    if name == "machine":
        constructor = ("load.constructor.hang",)
        stopped = ("bootstrap.hang.stopped",)
        rows.append(Case(name, "the child is stopped", "cpu", stopped, env=shim("stop"), stage="bootstrap"))
        if shutil.which("patchelf"):
            rows.append(Case(name, "a library that it needs hangs", "cpu", constructor, needs_what_hangs))
    return rows
