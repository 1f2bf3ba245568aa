"""What the NVIDIA kernel module says of itself in /proc/driver/nvidia and /proc/devices.

The formats are those of open-gpu-kernel-modules, kernel-open/nvidia/nv-procfs.c; they have been the same since 2010.
"""

from __future__ import annotations

from pytest_gpudiscovery.probes import facts
from pytest_gpudiscovery.probes.host import HostView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROC = "/proc/driver/nvidia"
MAJOR = 195  # NV_MAJOR_DEVICE_NUMBER, assigned by the kernel's devices.txt; nvidia-uvm's major is dynamic
CONTROL_MINOR = 255


def parse_version(text: str) -> dict[str, Any]:
    """Return {"version": "580.159.04" | None, "open": bool | None} of /proc/driver/nvidia/version.

    `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build ...`
    """
    line = next((line for line in text.splitlines() if line.startswith("NVRM version:")), "")
    version = next((word for word in line.split() if _is_version(word)), None)
    return {"version": version, "open": ("Open Kernel Module" in line) if line else None}


def _is_version(word: str) -> bool:
    parts = word.split(".")
    return len(parts) in (2, 3) and all(part.isascii() and part.isdigit() for part in parts)


def parse_devices(text: str) -> dict[int, list[str]]:
    """Return major -> names of the character devices in /proc/devices."""
    found: dict[int, list[str]] = {}
    character = False
    for line in text.splitlines():
        if line.endswith(":"):
            character = line.startswith("Character")
        fields = line.split()
        major = facts.number(fields[0]) if character and len(fields) == 2 else None
        if major is not None:
            found.setdefault(major, []).append(fields[1])
    return found


def uvm_major(devices: dict[int, list[str]]) -> int | None:
    """Return the major number of nvidia-uvm, None while the module nvidia_uvm is not loaded."""
    return next((major for major, names in devices.items() if "nvidia-uvm" in names), None)


def gpus(view: HostView) -> dict[str, Any]:
    """Return {"gpus": [...], "errno": None | name}; one entry per GPU that the module has bound.

    {"pci", "minor", "uuid", "model", "firmware", "excluded"}; what the module does not say is None. A GPU that was
    never initialised has a UUID of question marks, which is None here.
    """
    try:
        names = view.listdir(f"{PROC}/gpus")
    except OSError as error:
        return {"gpus": [], "errno": facts.errno_name(error)}
    found = []
    for pci in names:
        pairs = facts.pairs(facts.text(view, f"{PROC}/gpus/{pci}/information") or "")
        uuid = pairs.get("GPU UUID", "")
        found.append(
            {
                "pci": pci,
                "minor": facts.number(pairs.get("Device Minor")),
                "uuid": uuid if uuid and "?" not in uuid else None,
                "model": pairs.get("Model") or None,
                "firmware": pairs.get("GPU Firmware") or None,
                "excluded": pairs.get("GPU Excluded") == "Yes" or pairs.get("Blacklisted") == "Yes",
            }
        )
    return {"gpus": found, "errno": None}


def has_mig(view: HostView) -> bool | None:
    """Return whether the module offers a MIG GPU instance (it has a directory each), None where that is hidden."""
    try:
        entries = view.listdir(f"{PROC}/capabilities")
    except OSError:
        return None
    places = [f"{PROC}/capabilities/{name}/mig" for name in entries if name.startswith("gpu")]
    return any(name.startswith("gi") for place in places for name in facts.names(view, place))
