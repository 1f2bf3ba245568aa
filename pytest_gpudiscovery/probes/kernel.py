"""Looks at the kernel's side of the driver: PCI devices, modules, what the driver says in /proc, the kernel log.

Reads files only and opens no device node, so that it also answers when the driver hangs. What depends on who asks
(nodes, libraries) is seen by the probe `nodes`; where the caller is the service's user that one runs here as well, at
the end, which saves a process.
"""

from __future__ import annotations

from pytest_gpudiscovery.probes import facts, nodes, procdriver
from pytest_gpudiscovery.probes.host import HostView, open_view
from pytest_gpudiscovery.probes.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PCI = "/sys/bus/pci/devices"
NVIDIA = "0x10de"
DISPLAY = ("0x0300", "0x0302")  # VGA controller and 3D controller: GPUs; an NVSwitch is a bridge (0x0680)
# Whether the driver's user space may make nodes; whether the state of the GPU's memory outlives a suspend.
PARAMS = ("ModifyDeviceFiles", "PreserveVideoMemoryAllocations")
MODULES = ("nvidia", "nvidia_uvm")
# Words of kernel log lines that are kept; the judgement reads them (diagnosis/xid.py).
WORDS = (b"NVRM", b"nvidia", b"nouveau", b"PM: suspend", b"PM: hibernation", b"blocked for more than")
# What Docker, Podman and CRI-O, a pod's service account, a container's systemd (LXC, nspawn), and Apptainer leave
CONTAINER = (
    "/.dockerenv",
    "/run/.containerenv",
    "/run/secrets/kubernetes.io",
    "/run/systemd/container",
    "/.singularity.d",
)
KEPT = 2000  # log lines; the last ones, because they are the present


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return the facts of the host that do not depend on who asks.

    REQUEST: {"view", "env": None | {"LD_LIBRARY_PATH"}}; with an environment the answer of the probe `nodes` is added.
    """
    view = open_view(request["view"])
    answer: dict[str, Any] = {}

    def keep(key: str, value: Any) -> None:
        answer[key] = value
        journal.observe(key, value)

    with journal.step(f"read {PCI}"):
        keep("pci", pci_devices(view))
    with journal.step("read /sys/module"):
        keep("modules", modules(view))
        keep("devices", devices(view))
        keep("platform", platform(view))
        keep("dev", [name for name in facts.names(view, "/dev") if name.startswith("nvidia")])
    with journal.step("read /proc/driver/nvidia/version"):
        keep("version", module_version(view))
    with journal.step("read /proc/driver/nvidia/params"):
        keep("params", params(view))
    with journal.step("read /dev/kmsg"):
        keep("log", kernel_log(view))
    with journal.step("read /proc/driver/nvidia/gpus"):
        keep("proc_gpus", procdriver.gpus(view))
        keep("mig", procdriver.has_mig(view))
    if request["env"] is not None and loaded(answer):
        answer |= nodes.probe({"view": request["view"], "env": request["env"], **expected(answer)}, journal)
    return answer


def loaded(answer: Mapping[str, Any]) -> bool:
    """Return whether anything in ANSWER shows that NVIDIA's module is loaded: /proc/driver, /sys/module, /proc/devices.

    Several, because each of them can be hidden on a host where CUDA works (measured: /proc/driver and /sys hidden).
    Without any of them the nodes in /dev stand for it.
    """
    registered = (answer.get("devices") or {}).get("nvidia")
    return bool(
        (answer.get("version") or {}).get("version")
        or "nvidia" in (answer.get("modules") or {})
        or registered
        or (answer.get("proc_gpus") or {}).get("gpus")
        or (registered is None and answer.get("dev"))
    )


def expected(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"minors", "uvm_major"}: which nodes the module of ANSWER needs."""
    minors = (gpu["minor"] for gpu in answer["proc_gpus"]["gpus"])
    return {"minors": sorted(minor for minor in minors if minor is not None), "uvm_major": answer["devices"]["uvm"]}


def pci_devices(view: HostView) -> dict[str, Any]:
    """Return {"gpus": [...], "devices", "errno"}: NVIDIA display devices, one entry per function, of DEVICES listed.

    {"pci", "class", "device_id": "2330", "subsystem": "10de:16c1", "driver": name | None, "vf": bool, "numa", "width"}
    """
    try:
        names = view.listdir(PCI)
    except OSError as error:
        return {"gpus": [], "devices": 0, "errno": facts.errno_name(error)}
    found = []
    for name in names:
        where = f"{PCI}/{name}"
        kind = facts.text(view, f"{where}/class") or ""
        if facts.text(view, f"{where}/vendor") != NVIDIA or not kind.startswith(DISPLAY):
            continue
        found.append(
            {
                "pci": name,
                "class": kind[:6],
                "device_id": _hex(facts.text(view, f"{where}/device")),
                "subsystem": ":".join(
                    _hex(facts.text(view, f"{where}/subsystem_{part}")) or "?" for part in ("vendor", "device")
                ),
                "driver": facts.link(view, f"{where}/driver"),
                "vf": facts.link(view, f"{where}/physfn") is not None,
                "numa": facts.text(view, f"{where}/numa_node"),
                # 63 lanes is a register that reads as all ones: the device does not answer on the bus any more
                "width": facts.text(view, f"{where}/current_link_width"),
            }
        )
    return {"gpus": found, "devices": len(names), "errno": None}


def modules(view: HostView) -> dict[str, Any]:
    """Return name -> {"version": text | None} of those of MODULES that are loaded (/sys/module, /proc/modules)."""
    loaded = {line.partition(" ")[0] for line in (facts.text(view, "/proc/modules") or "").splitlines()}
    found = {}
    for name in MODULES:
        # A module that is not loaded can have a directory as well (parameters given at boot); initstate tells.
        if facts.kind(view, f"/sys/module/{name}/initstate") is not None:
            loaded.add(name)
        if name in loaded:
            found[name] = {"version": facts.text(view, f"/sys/module/{name}/version")}
    return found


def module_version(view: HostView) -> dict[str, Any]:
    """Return {"version", "open", "errno"} of /proc/driver/nvidia/version."""
    try:
        text = view.read(f"{procdriver.PROC}/version", 65536).decode("utf-8", "replace")
    except OSError as error:
        return {"version": None, "open": None, "errno": facts.errno_name(error)}
    return {**procdriver.parse_version(text), "errno": None}


def devices(view: HostView) -> dict[str, Any]:
    """Return {"nvidia": bool | None, "uvm": major | None}: what /proc/devices registers; None when it is hidden."""
    text = facts.text(view, "/proc/devices")
    if text is None:
        return {"nvidia": None, "uvm": None}
    found = procdriver.parse_devices(text)
    return {"nvidia": procdriver.MAJOR in found, "uvm": procdriver.uvm_major(found)}


def params(view: HostView) -> dict[str, int]:
    """Return those of PARAMS that the module says; {} where /proc/driver/nvidia/params is hidden."""
    pairs = facts.pairs(facts.text(view, f"{procdriver.PROC}/params") or "")
    found = {name: facts.number(pairs.get(name)) for name in PARAMS}
    return {name: value for name, value in found.items() if value is not None}


def platform(view: HostView) -> dict[str, bool]:
    """Return what kind of place this is: container, WSL, Tegra."""
    return {
        "container": any(facts.kind(view, path) is not None for path in CONTAINER),
        "wsl": facts.kind(view, "/dev/dxg") is not None,
        "tegra": any(facts.kind(view, path) for path in ("/etc/nv_tegra_release", "/dev/nvhost-gpu")),
    }


def kernel_log(view: HostView) -> dict[str, Any]:
    """Return {"lines", "errno", "uptime"}: the kernel log's lines about the driver, as /dev/kmsg has them.

    `lines` are the last KEPT that match; `uptime` in seconds is the clock that their time stamps count on.
    """
    uptime = (facts.text(view, "/proc/uptime") or "").partition(" ")[0]
    answer: dict[str, Any] = {"lines": [], "errno": None, "uptime": _float(uptime)}
    try:
        for record in view.kernel_log():
            if any(word in record for word in WORDS):
                answer["lines"].append(record.partition(b"\n")[0][:1000].decode("utf-8", "replace"))
    except OSError as error:
        answer["errno"] = facts.errno_name(error)
    answer["lines"] = answer["lines"][-KEPT:]
    return answer


def _exists(view: HostView, path: str) -> bool:
    try:
        view.stat(path)
    except OSError:
        return False
    return True


def _hex(text: str | None) -> str | None:
    return text[2:].lower() if text and text.startswith("0x") else None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
