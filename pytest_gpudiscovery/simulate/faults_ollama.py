"""Faults in the files of an Ollama install: missing, broken, of another version, shadowed; the device code in them."""

from __future__ import annotations

import functools

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.fatbin import Code
from pytest_gpudiscovery.simulate.fault import NO_REAL, OLLAMA, UNPRIVILEGED, Fault, environment, library, preload
from pytest_gpudiscovery.simulate.world import File

WHERE = "in the GPU directory VALUE, or in all"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 158993272\n"
SONAMES = {
    "libggml-base": ("libggml-base.so.0",),
    "libcudart": ("libcudart.so.12", "libcudart.so.13"),
    "libcublas": ("libcublas.so.12", "libcublas.so.13"),
    "libcublasLt": ("libcublasLt.so.12", "libcublasLt.so.13"),
}
# library, its name in faults
LIBRARIES = (
    ("libggml-base", "ggml_base"),
    ("libggml-cuda", "ggml_cuda"),
    ("libcudart", "ollama_cudart"),
    ("libcublas", "cublas"),
    ("libcublasLt", "cublaslt"),
)
TARGETS = {
    "sm_80_only": (("sm_80",), "only machine code for compute capability 8.0: 209 at the first kernel"),
    "compute_80_only": (("compute_80",), "only PTX for 8.0: it runs by JIT, and Ollama drops the device"),
    "compute_90_only": (("compute_90",), "only PTX for 9.0: every start compiles unless a cache is kept (healthy)"),
    "compute_120_only": (("compute_120",), "only PTX for compute capability 12.0: 209 at the first kernel"),
    "no_code": ((), "no device code at all"),
}


def faults() -> list[Fault]:
    """Return the faults of this table."""
    return [*_files(), *_versions(), *_strangers(), *_code()]


def _ollama(name: str, text: str, *changes: c.Change, value: str | None = o.ALL, needs: tuple[str, ...] = ()) -> Fault:
    return library(name, text, *changes, value=value, needs=(*OLLAMA, *needs))


def _files() -> list[Fault]:
    found = []
    for name, short in LIBRARIES:
        real = tuple(NO_REAL + soname for soname in SONAMES.get(name, ()))
        where, value = ("", None) if name == "libggml-base" else (f" {WHERE}", o.ALL)
        unread = File("bytes", data=b"\x7fELF", mode=0o600)
        for kind, text, change, needs in (
            ("missing", "is not there", o.removed(name), real),
            ("truncated", "is cut off in the middle", o.mangled(name, c.truncated), ()),
            ("empty", "is an empty file", o.replaced(name, File("bytes")), ()),
            ("lfs_pointer", "is a git-lfs pointer, a text file", o.replaced(name, File("bytes", data=POINTER)), ()),
            ("elf32", "is a 32-bit library", o.mangled(name, c.other_class), real),
            ("other_machine", "is for another processor", o.mangled(name, c.other_machine), real),
            ("fifo", "is a FIFO: dlopen waits for a writer", o.replaced(name, File("fifo")), ()),
            ("directory", "is a directory", o.replaced(name, File("dir")), ()),
            ("unreadable", "has mode 0600", o.replaced(name, unread), (*UNPRIVILEGED, *real)),
        ):
            found.append(_ollama(f"{short}.{kind}", f"{name} {text}{where}", change, value=value, needs=needs))
    return found


def _versions() -> list[Fault]:
    base = "libggml-base.so.0"
    found = [
        _ollama(
            "ggml_base.other_soname",
            "libggml-base is the file of an Ollama up to 0.13.3: no libggml-base.so.0",
            o.base_of_other_name,
            value=None,
            needs=(NO_REAL + base,),
        ),
        _ollama("ggml_base.older", f"{base} lacks a symbol that libggml-cuda wants", o.older_base, value=None),
        _ollama(
            "ggml_cuda.undefined_symbol",
            f"libggml-cuda wants a symbol that nobody has, {WHERE}",
            o.mangled("libggml-cuda", o.without_symbol),
        ),
    ]
    for name, short in LIBRARIES[2:]:
        needs = tuple(NO_REAL + soname for soname in SONAMES[name])
        other = f"{name} is of the other CUDA major, {WHERE}"
        found.append(_ollama(f"{short}.other_major", other, o.other_major(name), needs=needs))
        without = f"{name} has no version nodes, {WHERE}; ld.so takes it as it is (healthy)"
        found.append(_ollama(f"{short}.unversioned", without, o.rebuilt(name, "unversioned")))
        bare = f"{name} has no versions of any kind and needs no libc, {WHERE}: ld.so ends the process (127)"
        found.append(_ollama(f"{short}.bare", bare, o.rebuilt(name, "bare")))
        node = f"{name} has the version node of CUDA 11 only, {WHERE}"
        found.append(_ollama(f"{short}.other_node", node, o.rebuilt(name, "other_node")))
    return found


def _strangers() -> list[Fault]:
    sonames = tuple(NO_REAL + name for names in SONAMES.values() for name in names if name.startswith("libcu"))
    return [
        _ollama("ollama.only", "the release has only the GPU directory VALUE (healthy)", o.only, value="cuda_v12"),
        _ollama("ollama.stray_toolkit", f"lib/ollama holds CUDA libraries that come before those {WHERE}", o.stray),
        _ollama("ollama.stub_inside", "lib/ollama has a link to the toolkit's stub libcuda", o.stub_inside, value=None),
        _ollama(
            "ollama.stray_blas",
            f"libggml-blas.so lies before libggml-cuda.so {WHERE}: llama-server is told to load that",
            o.stray_backend,
        ),
        environment(
            "toolkit.foreign_path",
            "LD_LIBRARY_PATH begins with a toolkit's libraries; Ollama puts its own before them (healthy)",
            o.foreign(first=False),
            value=o.ALL,
            needs=OLLAMA,
        ),
        environment(
            "toolkit.foreign_only",
            f"the CUDA libraries are missing {WHERE}, and come from LD_LIBRARY_PATH",
            o.foreign(first=True),
            value=o.ALL,
            needs=(*OLLAMA, *sonames),
        ),
        preload(
            "toolkit.preloaded",
            "a shim for libcudart without versions is preloaded: ld.so ends whoever opens libggml-cuda of VALUE",
            o.preloaded_runtime,
            value="cuda_v12",
            needs=OLLAMA,
        ),
    ]


def _code() -> list[Fault]:
    found = [
        _ollama(f"code.{name}", f"libggml-cuda has {text}", o.holds(Code(targets, (8, 7))))
        for name, (targets, text) in TARGETS.items()
    ]
    v13 = functools.partial(o.only, where="cuda_v13")
    for variable, value in (("CUDA_MODULE_LOADING", "EAGER"), ("CUDA_FORCE_PTX_JIT", "1")):
        short = variable.partition("_")[2].lower()
        text = f"only cuda_v13, which is PTX, and {variable}={value}: 125 modules are compiled at initialisation"
        eager = (lambda world, _: v13(world), c.env(**{variable: value}))
        found.append(environment(f"code.eager.{short}", text, *eager, needs=OLLAMA))
    return found
