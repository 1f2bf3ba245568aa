"""Faults in the library files: missing, broken, foreign, shadowed by a stub or a shim."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_host as h
from pytest_gpudiscovery.simulate.fault import NO_REAL, UNPRIVILEGED, Fault, environment, library, preload
from pytest_gpudiscovery.simulate.world import File

# file name up to .so, name in faults, what ld.so looks for
FILES = (
    ("libcuda", "libcuda", "libcuda.so.1"),
    ("libnvidia-ml", "nvml", "libnvidia-ml.so.1"),
    ("libcudart", "cudart", "libcudart.so.12"),
)


def faults() -> list[Fault]:
    """Return the faults of this table."""
    found = []
    for file, name, soname in FILES:
        unread = File("bytes", data=b"\x7fELF", mode=0o600)
        for kind, text, change, needs in (
            ("missing", "is not there", c.remove(f"{file}."), (NO_REAL + soname,)),
            ("truncated", "is cut off in the middle", c.mangle(file, c.truncated), ()),
            ("empty", "is an empty file", c.replace(file, File("bytes")), ()),
            ("not_elf", "is a text file", c.replace(file, File("bytes", data=b"this is no library\n" * 64)), ()),
            ("elf32", "is a 32-bit library", c.mangle(file, c.other_class), (NO_REAL + soname,)),
            ("other_machine", "is for another processor", c.mangle(file, c.other_machine), (NO_REAL + soname,)),
            ("dangling", "is a link to nothing", c.replace(file, File("link", "gone")), (NO_REAL + soname,)),
            ("unreadable", "has mode 0600", c.replace(file, unread), (*UNPRIVILEGED, NO_REAL + soname)),
        ):
            found.append(library(f"{name}.{kind}", f"{file}.so {text}", change, needs=needs))
        lacks = f"{file}.so does not export the function VALUE"
        found.append(library(f"{name}.lacks", lacks, c.hide(file), value="", needs=("value",)))
    found += [
        library("libcuda.no_cuinit", "libcuda.so exports no cuInit", c.hide("libcuda", "cuInit")),
        library("libcuda.stub", "the toolkit's stub comes first on LD_LIBRARY_PATH: everything is 34", c.stub_first),
        library("libcuda.unversioned", "libcuda.so.1 is a plain file without a version", c.unversioned("libcuda")),
        library(
            "libcuda.foreign_version",
            "libcuda is of version VALUE, the module is not: 803",
            c.foreign("libcuda"),
            value="535.183.01",
        ),
        library(
            "nvml.foreign_version",
            "NVML is of version VALUE, the module is not: 18",
            c.foreign("libnvidia-ml"),
            value="535.183.01",
        ),
        library(
            "ptxjit.missing",
            "libnvidia-ptxjitcompiler.so.1 is not there: 221",
            c.remove("libnvidia-ptxjitcompiler."),
            needs=(NO_REAL + "libnvidia-ptxjitcompiler.so.1",),
        ),
        library(
            "driver.reinstalled",
            "the user space is of version VALUE, the old module still runs",
            h.reinstall,
            value="595.45.04",
        ),
        library(
            "driver.r535",
            "the whole driver is of the CUDA 12.2 generation, version VALUE",
            c.driver_of(12020, 82),
            value="535.183.01",
        ),
        library(
            "driver.r470",
            "the whole driver is of the CUDA 11.4 generation, version VALUE",
            c.driver_of(11040, 74),
            value="470.256.02",
        ),
        library("cudart.12_only", "no libcudart.so.13", c.remove("libcudart.so.13")),
        library("cudart.13_only", "no libcudart.so.12", c.remove("libcudart.so.12")),
        preload(
            "shim.hami",
            "a HAMi-like libvgpu.so is preloaded and shows 16 GiB",
            c.preload("vgpu", "libvgpu.so"),
            c.conf(shim__memory=str(16 << 30)),
        ),
        preload(
            "shim.hang",
            "the preloaded libvgpu.so never returns from cuInit",
            c.preload("vgpu", "libvgpu.so"),
            c.act("shim.cuInit", "hang futex"),
        ),
        preload(
            "shim.spin",
            "the preloaded libvgpu.so burns a CPU in cuInit",
            c.preload("vgpu", "libvgpu.so"),
            c.act("shim.cuInit", "hang spin"),
        ),
        preload(
            "shim.crash",
            "the preloaded libvgpu.so crashes in cuInit",
            c.preload("vgpu", "libvgpu.so"),
            c.act("shim.cuInit", "segv"),
        ),
        preload(
            "shim.ctor_hang",
            "the preloaded libvgpu.so never returns from its constructor",
            c.preload("vgpu", "libvgpu.so"),
            c.act("constructor.vgpu", "hang sleep"),
        ),
        environment(
            "shim.missing", "LD_PRELOAD names a library that is not there", c.env(LD_PRELOAD="{dir}/lib/libgone.so")
        ),
    ]
    return found
