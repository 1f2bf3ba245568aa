"""Healthy variants of the GPUs, of their driver and of the libraries' places: modes, neighbours, versions, layouts."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_host as h
from pytest_gpudiscovery.simulate import changes_layout as layout
from pytest_gpudiscovery.simulate.fault import Fault, answers, environment, library
from pytest_gpudiscovery.simulate.world import File, World

# Driver branch -> a release of it, the CUDA API version it speaks, its PTX ISA (release notes of CUDA 12.4 to 13.1)
BRANCHES = {
    "r550": ("550.163.01", 12040, 84),
    "r570": ("570.195.03", 12080, 87),
    "r575": ("575.57.08", 12090, 88),
    "r590": ("590.48.01", 13010, 91),
}
GIB = 1 << 30


def faults() -> list[Fault]:
    """Return the variants of this table."""
    return [*_drivers(), *_modes(), *_mps(), *_paths()]


def _drivers() -> list[Fault]:
    found = [
        library(
            f"variant.driver.{name}",
            f"the whole driver is of version VALUE, CUDA {cuda // 1000}.{cuda % 1000 // 10} (healthy)",
            c.driver_of(cuda, ptx),
            value=version,
        )
        for name, (version, cuda, ptx) in BRANCHES.items()
    ]
    return [
        *found,
        library(
            "variant.driver.alternatives", "libcuda.so.1 leads through nvidia/current, as on Debian (healthy)",
            layout.alternatives,
        ),
        library(
            "variant.driver.second_copy",
            "LD_LIBRARY_PATH begins with a second directory that holds the same driver (healthy)",
            layout.second_copy,
        ),
        library("variant.cache.old", "ld.so.cache is of glibc 2.31 (healthy)", layout.cache(old=True)),
        library("variant.cache.new", "ld.so.cache is of glibc 2.41 (healthy)", layout.cache(old=False)),
        library(
            "variant.driver.by_cache",
            "the loader finds the driver of directory VALUE by ld.so.cache alone (healthy)",
            layout.by_cache,
            value="",
            needs=("value",),
        ),
        library(
            "variant.driver.compatibility",
            "NVIDIA's forward-compatibility libcuda VALUE stands before an older driver (healthy)",
            layout.compatibility,
            value="575.57.08",
        ),
        library(
            "variant.driver.no_development_links",
            "no libcuda.so and libnvidia-ml.so without a version (healthy)",
            layout.without("lib/libcuda.so", "lib/libnvidia-ml.so", "lib/libnvidia-ptxjitcompiler.so"),
        ),
    ]  # fmt: skip


def _modes() -> list[Fault]:
    busy = {"processes": "4343:{value}", "memory__used": "{value}"}
    return [
        answers(
            "variant.gpu.full",
            "a job of VALUE bytes leaves a few hundred MiB of the memory (healthy)",
            c.gpus(**busy),
            h.process(4343, "python3"),
            value=str(79 * GIB - (400 << 20)),
        ),
        answers(
            "variant.gpu.no_ecc", "a board without ECC and without row remapping (healthy)", _no_ecc,
        ),
        answers(
            "variant.gpu.instances_hidden",
            "MIG is on, and this user may not list the instances (healthy)",
            c.act("nvmlDeviceGetMigDeviceHandleByIndex", "return 4"),
        ),
        answers(
            "variant.gpu.one_mig",
            "of two GPUs one is cut into a MIG instance that is chosen by its UUID (healthy)",
            _one_mig,
        ),
        answers("variant.gpu.fabric", "the GPU is in a fabric that is complete and healthy (healthy)", _fabric),
    ]  # fmt: skip


def _no_ecc(world: World, _: str) -> None:
    for key in [key for key in world.conf if ".ecc." in key or ".rows." in key]:
        del world.conf[key]
    world.set_gpus("attr.32", 0)


def _one_mig(world: World, _: str) -> None:
    uuid = "MIG-00000000-0000-4000-9000-0000000000aa"
    name, mine = world.conf["gpu.0.name"], "gpu.0.mig.0"
    world.conf |= {"gpu.0.mig.current": "1", "gpu.0.mig.pending": "1", "gpu.0.mig.max": "7", "gpu.0.mig.count": "1"}
    world.conf |= {f"{mine}.uuid": uuid, f"{mine}.name": f"{name} MIG 3g.40gb", f"{mine}.attr.16": "60"}
    world.conf |= {f"{mine}.memory.total": str(40448 << 20), f"{mine}.memory.cuda": str(40320 << 20)}
    world.conf |= {f"{mine}.memory.reserved": str(128 << 20), f"{mine}.gpu_instance": "1"}
    world.conf |= {f"{mine}.compute_instance": "0", f"{mine}.slices": "3", f"{mine}.cores": str(60 * 128)}
    world.text(
        "/proc/driver/nvidia/capabilities/gpu0/mig/gi1/access",
        "DeviceFileMinor: 12\nDeviceFileMode: 292\nDeviceFileModify: 1\n",
    )
    world.env["CUDA_VISIBLE_DEVICES"] = uuid


def _fabric(world: World, _: str) -> None:
    world.set_gpus("fabric.state", 3)
    world.set_gpus("fabric.health", 0x1AA)  # every field FALSE (2), configuration NONE (1): all well (nvml.h)


def _mps() -> list[Fault]:
    server = h.process(4300, "nvidia-cuda-mps", exe="/usr/bin/nvidia-cuda-mps-server")
    held = {"processes": "4300:31457280"}
    return [
        environment(
            "variant.mps",
            "an MPS server runs and can be reached; compute mode Default (healthy)",
            c.gpus(**held),
            server,
            _pipes,
            c.env(CUDA_MPS_PIPE_DIRECTORY="{dir}/tmp"),
        ),
        environment(
            "variant.mps.exclusive",
            "an MPS server holds the GPU in compute mode Exclusive Process, as NVIDIA advises (healthy)",
            c.gpus(compute_mode="3", attr__20="3", **held),
            server,
            _pipes,
            c.env(CUDA_MPS_PIPE_DIRECTORY="{dir}/tmp"),
        ),
    ]


def _pipes(world: World, _: str) -> None:
    world.files["tmp"] = File("dir", mode=0o777)
    world.files["tmp/control"] = File("fifo")


def _paths() -> list[Fault]:
    return [
        environment(
            "variant.path.unrelated",
            "LD_LIBRARY_PATH begins with directories that have nothing of the driver (healthy)",
            layout.libraries_at("/opt/intel/oneapi/lib", "/usr/local/lib", "/no/such/directory"),
        ),
        environment(
            "variant.path.empty_elements",
            "LD_LIBRARY_PATH ends with a colon: the current directory is in it (healthy)",
            layout.libraries_at("", first=False),
        ),
        environment(
            "variant.path.toolkit",
            "LD_LIBRARY_PATH begins with a toolkit that has the same libcudart (healthy)",
            _toolkit,
        ),
        environment(
            "variant.env.several",
            "CUDA_VISIBLE_DEVICES names both GPUs by their UUIDs (healthy)",
            _by_uuids,
        ),
        environment(
            "variant.env.order",
            "CUDA_VISIBLE_DEVICES names both GPUs in the other order, CUDA_DEVICE_ORDER is PCI_BUS_ID (healthy)",
            c.env(CUDA_VISIBLE_DEVICES="1,0", CUDA_DEVICE_ORDER="PCI_BUS_ID"),
        ),
    ]


def _toolkit(world: World, _: str) -> None:
    for path in [path for path in world.files if path.startswith("lib/libcudart.")]:
        world.files["foreign" + path[3:]] = world.files[path]
    world.library_path.insert(0, "{dir}/foreign")


def _by_uuids(world: World, _: str) -> None:
    world.env["CUDA_VISIBLE_DEVICES"] = ",".join(world.conf[f"gpu.{gpu}.uuid"] for gpu in range(world.gpus))
