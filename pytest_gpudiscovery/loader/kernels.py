"""Whether a GPU runs the device code of a library, and whether an Ollama keeps the device: two different answers.

Rules confirmed on an H100 (compute capability 9.0, driver CUDA 13.0): SASS of the same major and at most the minor
runs; sm_90a only on 9.0; PTX of at most the capability runs by JIT unless it is architecture-specific for another
one; nothing of that means cudaErrorNoKernelImageForDevice (209) at the first kernel, while discovery is clean. JIT
needs a driver whose CUDA version is at least that of the PTX ISA, else cudaErrorUnsupportedPtxVersion (222).
"""

from __future__ import annotations

from pytest_gpudiscovery.loader.fatbin import ELF, PTX, Image, Images
from pytest_gpudiscovery.loader.record import dataclass

Capability = tuple[int, int]
CudaVersion = tuple[int, int]

NATIVE, JIT, NO_IMAGE, PTX_TOO_NEW, NO_CODE = "native", "jit", "no image", "ptx too new", "no device code"

# The CUDA release whose driver first accepts a PTX ISA version: NVIDIA, "PTX ISA", section "Release Notes", table
# "PTX Release History". 9.0 was measured; later ones are extrapolated by the same step (9.1 is CUDA 13.1).
PTX_CUDA: dict[tuple[int, int], CudaVersion] = {
    (6, 0): (9, 0),
    (6, 1): (9, 1),
    (6, 2): (9, 2),
    (6, 3): (10, 0),
    (6, 4): (10, 1),
    (6, 5): (10, 2),
    (7, 0): (11, 0),
    (7, 1): (11, 1),
    (7, 2): (11, 2),
    (7, 3): (11, 3),
    (7, 4): (11, 4),
    (7, 5): (11, 5),
    (7, 6): (11, 6),
    (7, 7): (11, 7),
    (7, 8): (11, 8),
    (8, 0): (12, 0),
    (8, 1): (12, 1),
    (8, 2): (12, 2),
    (8, 3): (12, 3),
    (8, 4): (12, 4),
    (8, 5): (12, 5),
    (8, 6): (12, 7),
    (8, 7): (12, 8),
    (8, 8): (12, 9),
    (9, 0): (13, 0),
    (9, 1): (13, 1),
}


@dataclass(frozen=True)
class KernelVerdict:
    """What happens at the first kernel.

    `how` is native, jit, no image, ptx too new or no device code; `target` the image that is used ("" if none) and
    `reason` a sentence. `needs_cuda` is the driver CUDA version that the PTX wants. `jit_modules` counts the
    containers whose code must be compiled: with eager loading all of them before the first call returns. `uncovered`
    counts the containers from which nothing runs: 0 is expected of ggml (a container per source file), not of cuBLAS
    (a container per GPU). `eager_stall`: CUDA_MODULE_LOADING=EAGER or CUDA_FORCE_PTX_JIT in `env` with code that only
    JIT can run: ggml_backend_init was seen not to return within 200 s.
    """

    how: str
    target: str
    reason: str
    needs_cuda: CudaVersion | None
    jit_modules: int
    uncovered: int
    eager_stall: bool

    @property
    def runs(self) -> bool:
        """A kernel can be launched."""
        return self.how in (NATIVE, JIT)


def capability_of(sm: int) -> Capability:
    """Return (major, minor) of an SM number: 90 is (9, 0), 120 is (12, 0)."""
    return sm // 10, sm % 10


def runs_natively(image: Image, cc: Capability) -> bool:
    """Return whether SASS IMAGE runs on compute capability CC."""
    if image.kind != ELF:
        return False
    major, minor = capability_of(image.sm)
    if image.suffix == "a":
        return (major, minor) == cc
    # Family-specific code ("f") and plain code share the rule: the same major, built for at most this minor.
    return major == cc[0] and minor <= cc[1]


def compiles(image: Image, cc: Capability) -> bool:
    """Return whether PTX IMAGE can be compiled for compute capability CC, apart from the driver's version."""
    if image.kind != PTX:
        return False
    built = capability_of(image.sm)
    if image.suffix == "a":
        return built == cc
    if image.suffix == "f":
        return built[0] == cc[0] and built <= cc
    return built <= cc


def cuda_for_ptx(isa: tuple[int, int]) -> CudaVersion | None:
    """Return the driver CUDA version that ISA needs, None for one that the table does not know."""
    return PTX_CUDA.get(isa)


def _accepts(image: Image, driver_cuda: CudaVersion | None) -> bool:
    """Whether the driver takes this PTX; an unknown driver or ISA is taken for compatible unless it is newer than
    all.
    """
    if driver_cuda is None:
        return True
    needed = cuda_for_ptx(image.ptx_isa)
    if needed is None:
        return image.ptx_isa < max(PTX_CUDA)
    return needed <= driver_cuda


def will_run(
    images: Images, cc: Capability, driver_cuda: CudaVersion | None, env: dict[str, str] | None = None
) -> KernelVerdict:
    """Return what a GPU of compute capability CC does with IMAGES under a driver of DRIVER_CUDA (None: unknown).

    Each container is judged by itself; the verdict is that of the best, `uncovered` counts those that cannot run.
    """
    env = env or {}
    forced = env.get("CUDA_FORCE_PTX_JIT", "0") not in ("", "0")
    held = [([image for image in container if image.kind in (ELF, PTX)], count) for container, count in images.alike]
    verdicts = [(_container(container, cc, driver_cuda, forced), count) for container, count in held if container]
    if not verdicts:
        return KernelVerdict(NO_CODE, "", "the library holds no device code", None, 0, 0, False)
    order = (NO_IMAGE, PTX_TOO_NEW, JIT, NATIVE)
    how, target, needs = max((verdict for verdict, _ in verdicts), key=lambda item: order.index(item[0]))
    modules = sum(count for verdict, count in verdicts if verdict[0] == JIT)
    uncovered = sum(count for verdict, count in verdicts if verdict[0] in (NO_IMAGE, PTX_TOO_NEW))
    eager = env.get("CUDA_MODULE_LOADING", "").upper() == "EAGER" or forced
    stall = eager and modules > 0
    return KernelVerdict(how, target, _reason(how, target, cc, needs), needs, modules, uncovered, stall)


def _container(
    images: list[Image], cc: Capability, driver_cuda: CudaVersion | None, forced: bool
) -> tuple[str, str, CudaVersion | None]:
    native = [image for image in images if runs_natively(image, cc)]
    if native and not forced:
        best = max(native, key=lambda image: (image.sm, image.suffix))
        return NATIVE, best.target, None
    ptx = [image for image in images if compiles(image, cc)]
    usable = [image for image in ptx if _accepts(image, driver_cuda)]
    if usable:
        best = max(usable, key=lambda image: (image.sm, image.suffix))
        return JIT, best.target, cuda_for_ptx(best.ptx_isa)
    if ptx:
        best = min(ptx, key=lambda image: image.ptx_isa)
        return PTX_TOO_NEW, best.target, cuda_for_ptx(best.ptx_isa)
    return NO_IMAGE, "", None


def _reason(how: str, target: str, cc: Capability, needs: CudaVersion | None) -> str:
    name = f"compute capability {cc[0]}.{cc[1]}"
    wanted = f"a driver of CUDA {needs[0]}.{needs[1]}" if needs else "a newer driver than this table knows"
    return {
        NATIVE: f"{target} runs on {name}",
        JIT: f"{target} is compiled by the driver for {name}",
        PTX_TOO_NEW: f"{target} needs {wanted}: cudaErrorUnsupportedPtxVersion (222) at the first kernel",
        NO_IMAGE: f"no image for {name}: cudaErrorNoKernelImageForDevice (209) at the first kernel",
    }[how]


# Which Ollama drops a device by driver: discover/cuda_compat.go and RAPIDS' notes on compressed fatbins.
DRIVER_FLOORS: tuple[tuple[CudaVersion, tuple[int, int], Capability | None, str], ...] = (
    ((12, 4), (550, 0), None, "a CUDA 12.4 or later runtime with compressed device code needs driver 550"),
    ((12, 8), (570, 0), (7, 0), "a CUDA 12.8 or later runtime needs driver 570 below compute capability 7.0"),
    ((13, 0), (580, 0), None, "a CUDA 13 runtime needs driver 580"),
)


def driver_floor(
    images: Images, runtime: CudaVersion, driver: tuple[int, int], cc: Capability
) -> tuple[tuple[int, int], str] | None:
    """Return (lowest driver, reason) that DRIVER misses for a library built with RUNTIME, or None."""
    for since, floor, below, reason in DRIVER_FLOORS:
        applies = runtime >= since and (below is None or cc < below)
        if since == (12, 4) and "zstd" not in images.compressions:
            continue
        if applies and driver < floor and (runtime[0] == 12 or since[0] == runtime[0]):
            return floor, reason
    return None
