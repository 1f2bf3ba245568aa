"""A small Ollama install built with the C compiler: real ELF files, real device code headers, no CUDA."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pytest_gpudiscovery.loader import Image
from pytest_gpudiscovery.model import Outcome, StageRecord
from pytest_gpudiscovery.outcome import Conclusion
from pytest_gpudiscovery.stages import closure, load, package
from pytest_gpudiscovery.stages.spec import RunContext
from tests import fakes
from tests.loader.oracle import Builder
from tests.loader.test_fatbin import container
from tests.stages import hosts

NODE = "libcudart.so.{0} {{ global: cuda*; local: *; }};\n"
BLAS = "libcublas.so.{0} {{ global: cublas*; local: *; }};\n"
USES = """
int ggml_base(void); int cudaGetDeviceCount(int *); int cublasCreate(void *); int cuMemCreate(void);
int ggml_backend_init(void) { int n; return ggml_base() + cudaGetDeviceCount(&n) + cublasCreate(0) + cuMemCreate(); }
__attribute__((used)) static const char archs[] = "CUDA : ARCHS = %s";
__asm__(".section .nv_fatbin,\\"a\\"\\n.balign 8\\n.incbin \\"%s\\"\\n.previous\\n");
"""
SASS_90 = Image("elf", 90, "", (0, 0), "", False)
SASS_80 = Image("elf", 80, "", (0, 0), "", False)
PTX_90 = Image("ptx", 90, "", (9, 0), "", False)
PTX_80 = Image("ptx", 80, "", (8, 4), "", False)


def build(folder: Path) -> None:
    """Build bin/ollama, lib/ollama with cuda_v12 (machine code) and cuda_v13 (PTX only), and driver/ in FOLDER."""
    b = Builder(folder, sys.executable)
    main = folder / "main.c"
    main.write_text("int main(void) { return 0; }\n")
    (folder / "bin").mkdir()
    b.cc("-o", "bin/ollama", "main.c", "-lm")
    b.library("driver/libcuda.so.1", "int cuMemCreate(void) { return 0; }")
    b.library("driver/libnvidia-ptxjitcompiler.so.1")
    b.library("lib/ollama/libggml-base.so.0", "int ggml_base(void) { return 0; }")
    cuda_directory(b, 12, (SASS_90,), "700,800,900")
    cuda_directory(b, 13, (PTX_90,), "900")


def cuda_directory(b: Builder, major: int, images: tuple[Image, ...], archs: str) -> None:
    """Build the GPU directory of CUDA MAJOR: one fatbin of IMAGES, compiled for ARCHS."""
    place = f"lib/ollama/cuda_v{major}"
    cudart, blas = f"{place}/libcudart.so.{major}", f"{place}/libcublas.so.{major}"
    b.versioned(cudart, NODE.format(major), "int cudaGetDeviceCount(int *n) { return *n = 0; }")
    b.library(f"{place}/libcublasLt.so.{major}", "int cublasLtCreate(void) { return 0; }")
    script = b / "blas.map"
    script.write_text(BLAS.format(major))
    source = "int cublasLtCreate(void); int cublasCreate(void *h) { return h != 0 || cublasLtCreate(); }"
    run_path = ("-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN")
    b.library(blas, source, (f"{place}/libcublasLt.so.{major}",), (f"-Wl,--version-script={script}", *run_path))
    backend(b, major, images, archs)


def backend(b: Builder, major: int, images: tuple[Image, ...], archs: str) -> None:
    """Build libggml-cuda.so of CUDA MAJOR, linked with what lies around it."""
    place = f"lib/ollama/cuda_v{major}"
    (b / "images").write_bytes(container(images) if images else bytes(8))
    needs = ("lib/ollama/libggml-base.so.0", f"{place}/libcudart.so.{major}", f"{place}/libcublas.so.{major}")
    source = USES % (archs, b / "images")
    b.library(f"{place}/libggml-cuda.so", source, (*needs, "driver/libcuda.so.1"), soname="")


class Install:
    """A copy of the built install that a test may break."""

    def __init__(self, built: Path, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "lib", "driver"):
            shutil.copytree(built / name, folder / name)
        self.builder = Builder(folder, sys.executable)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def only(self, major: int) -> Install:
        """Leave the GPU directory of CUDA MAJOR alone in the install."""
        shutil.rmtree(self / f"lib/ollama/cuda_v{25 - major}")
        return self

    def context(self, **changes: object) -> RunContext:
        """Return a context that probes this install, with the driver's directory in LD_LIBRARY_PATH."""
        extra = changes.pop("env", {})
        assert isinstance(extra, dict)
        home = self / "home"
        home.mkdir(exist_ok=True)
        env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LD_LIBRARY_PATH": str(self / "driver"), **extra}
        return fakes.context(env=env, ollama_path=str(self.folder), **changes)

    def conclusion(self, *, device: str | None = "2330", module: str = "580.159.04", **changes: object) -> Conclusion:
        """Run stages 01 and 09 with real children; the GPU is PCI DEVICE, the driver MODULE."""
        given = self.context(**changes)
        return hosts.conclusion(closure.SPEC, given, self.prior(given, device, module))

    def loaded(self, deadline_s: float = 20.0, **changes: object) -> Conclusion:
        """Run stages 01, 09 and 10 with real children, 10 whatever 09 says."""
        given = self.context(deadlines={"load": deadline_s}, **changes)
        prior = self.prior(given)
        said = hosts.conclusion(closure.SPEC, given, prior)
        prior["closure"] = fakes.record("closure", said.outcome, facts=said.facts)
        return hosts.conclusion(load.SPEC, given, prior)

    def prior(
        self, given: RunContext, device: str | None = "2330", module: str = "580.159.04"
    ) -> dict[str, StageRecord]:
        """Return the records that stage 09 needs, stage 01's by running it."""
        installed = hosts.conclusion(package.SPEC, given)
        gpus = [{"pci": "0000:00:06.0", "device_id": device}] if device else []
        passed = Outcome.PASSED
        return {
            "package": fakes.record("package", passed, facts=installed.facts),
            "service": fakes.record("service", passed, facts={}),
            "kernel": fakes.record("kernel", passed, facts={"gpus": gpus, "module_version": module}),
        }
