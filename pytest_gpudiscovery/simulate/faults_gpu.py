"""Faults in the GPUs themselves: views that disagree, another board, modes, health, the fabric."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_host as h
from pytest_gpudiscovery.simulate.fault import TWO_GPUS, Fault, answers


def faults() -> list[Fault]:
    """Return the faults of this table."""
    other = "GPU-00000000-0000-4000-8000-0000000000ee"
    return [
        answers("views.count", "CUDA sees one GPU less than NVML", c.one_gpu_less("cuda"), needs=TWO_GPUS),
        answers("views.count_nvml", "NVML sees one GPU less than CUDA", c.one_gpu_less("nvml"), needs=TWO_GPUS),
        answers("views.uuid", "CUDA and NVML tell different UUIDs", c.gpus("cuda", uuid=other)),
        answers("views.memory", "CUDA tells half of NVML's memory", c.gpus("cuda", memory__cuda=str(40 << 30))),
        answers(
            "views.pci",
            "CUDA tells PCI id 99fff950:99fff9, as a wrong struct layout does",
            c.gpus("cuda", pci="99fff950:99fff9:0.0", attr__33="-1", attr__50="2583689552"),
        ),
        answers(
            "views.pci_other",
            "CUDA tells the PCI address of another slot",
            c.gpus("cuda", pci="0000:65:00.0", attr__33="101", attr__34="0"),
        ),
        answers("views.cc", "CUDA tells compute capability 0.0", c.gpus("cuda", attr__75="0", attr__76="0")),
        answers("views.cc_nvml", "NVML tells compute capability 8.0, CUDA 9.0", c.gpus("nvml", attr__75="8")),
        answers("views.name", "CUDA and NVML tell different names", c.gpus("cuda", name="NVIDIA Graphics Device")),
        answers("gpu.name", "the GPU is called VALUE", c.named, value="NVIDIA Graphics Device"),
        answers(
            "gpu.a100",
            "the GPU is an A100 80GB",
            c.renamed("NVIDIA A100-SXM4-80GB", 8370, sms=108, memory_mib=81920, bus_bits=5120, cc=(8, 0)),
        ),
        answers("gpu.memory", "the GPU has VALUE GiB", c.memory, value="40"),
        answers("gpu.sms", "the GPU has VALUE multiprocessors", c.gpus(attr__16="{value}"), value="78"),
        answers(
            "gpu.busy",
            "process VALUE computes on the GPU",
            c.gpus(processes="{value}:21474836480", memory__used="21474836480"),
            value="4343",
        ),
        answers(
            "gpu.busy_ollama",
            "Ollama itself (pid 4243) holds a context on the GPU",
            c.gpus(processes="4243:21474836480", memory__used="21474836480"),
            h.process(4243, "ollama", exe="/usr/local/bin/ollama"),
        ),
        answers(
            "mig.no_instances",
            "MIG is on without a GPU instance",
            c.gpus(mig__current="1", mig__pending="1", mig__max="7", mig__count="0"),
        ),
        answers("mig.pending", "MIG will be on after the next reset", c.gpus(mig__pending="1")),
        answers(
            "compute.prohibited",
            "compute mode Prohibited: no context for anybody",
            c.gpus(compute_mode="2", attr__20="2"),
            c.act("cuDevicePrimaryCtxRetain", "return 46"),
            c.act("cuCtxCreate", "return 46"),
        ),
        answers("compute.exclusive", "compute mode Exclusive Process, free", c.gpus(compute_mode="3", attr__20="3")),
        answers(
            "compute.exclusive_held",
            "compute mode Exclusive Process, held by pid 4343",
            c.gpus(compute_mode="3", attr__20="3", processes="4343:21474836480"),
            c.act("cuDevicePrimaryCtxRetain", "return 46"),
            c.act("cuCtxCreate", "return 46"),
            h.process(4343, "python3"),
        ),
        answers(
            "compute.exclusive_ollama",
            "compute mode Exclusive Process, held by Ollama (pid 4243)",
            c.gpus(compute_mode="3", attr__20="3", processes="4243:21474836480"),
            c.act("cuDevicePrimaryCtxRetain", "return 46"),
            c.act("cuCtxCreate", "return 46"),
            h.process(4243, "ollama", exe="/usr/local/bin/ollama"),
        ),
        answers("persistence.off", "persistence mode off", c.gpus(persistence="0")),
        answers(
            "persistence.off_slow",
            "persistence mode off: every first call takes VALUE seconds",
            c.gpus(persistence="0"),
            c.act("nvmlInit", "sleep {value}"),
            c.act("cuInit", "sleep {value}"),
            value="4",
        ),
        answers(
            "fabric.not_started",
            "the fabric manager has not begun (802 from cuInit)",
            c.gpus(fabric__state="1"),
            c.act("cuInit", "return 802"),
        ),
        answers(
            "fabric.in_progress",
            "the fabric manager is at work (802 from cuInit)",
            c.gpus(fabric__state="2"),
            c.act("cuInit", "return 802"),
        ),
        answers(
            "fabric.failed",
            "the fabric manager failed (status 999; 802 from cuInit)",
            c.gpus(fabric__state="3", fabric__status="999"),
            c.act("cuInit", "return 802"),
        ),
        answers("fabric.unsupported", "NVML knows no fabric state", c.gpus(fabric__state="unsupported")),
        answers("fabric.degraded", "the fabric's bandwidth is degraded", c.gpus(fabric__state="3", fabric__health="1")),
        answers(
            "ecc.uncorrected",
            "VALUE uncorrectable ECC errors since the driver was loaded",
            c.gpus(ecc__uncorrected__volatile="{value}", ecc__uncorrected__aggregate="{value}"),
            value="3",
        ),
        answers("ecc.off", "ECC is off", c.gpus(ecc__current="0", ecc__pending="0", attr__32="0")),
        answers("rows.pending", "a row remapping waits for a reset", c.gpus(rows__uncorrected="1", rows__pending="1")),
        answers("rows.failed", "a row remapping failed", c.gpus(rows__uncorrected="1", rows__failed="1")),
        answers(
            "gpu.recovery",
            "NVML's recovery action is VALUE (1 reset, 2 reboot)",
            c.gpus(field__274="{value}"),
            value="1",
        ),
        answers(
            "confcompute.not_ready",
            "confidential computing is on and no work is accepted (802)",
            c.conf(confcompute__environment="2", confcompute__feature="1", confcompute__ready="0"),
            c.act("cuInit", "return 802"),
        ),
    ]
