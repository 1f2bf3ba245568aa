"""Record a real GPU host: `python3 record.py OUT.json`, as root, standard library only, no network.

The recording holds `entries` (the host view, format of probes/host.py), `answers` (what NVML, the driver API and
libcudart reply, error codes included) and `libraries` (where they are and which symbols they export). It is the raw
material of hosts/*.json. Serial numbers, UUIDs, host names, addresses and container ids are replaced.

Files are read before anything native runs, because the driver's user space creates missing device nodes when it is
run as root. Each group runs in a forked child with a limit: a host that hangs still gives a partial recording, and
what failed stands in `problems`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import glob
import json
import os
import re
import select
import signal
import socket
import stat
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

Entries = dict[str, dict[str, Any]]

TEXT_LIMIT = 64 * 1024  # bytes of one file; sysfs and procfs files that matter are far smaller
GROUP_LIMIT_S = 60.0
LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1", "libcudart.so.12", "libcudart.so.13", "libnvidia-ptxjitcompiler.so.1")
PCI_FILES = (
    "vendor device class revision subsystem_vendor subsystem_device resource irq numa_node enable current_link_speed "
    "current_link_width max_link_speed max_link_width power/runtime_status power/control power_state uevent "
    "reset_method d3cold_allowed"
)
PLAIN_FILES = (
    "/proc/devices /proc/meminfo /proc/uptime /proc/loadavg /proc/self/status /proc/self/limits "
    "/proc/sys/kernel/osrelease /proc/sys/kernel/ostype /proc/sys/kernel/dmesg_restrict /proc/sys/kernel/threads-max "
    "/proc/sys/kernel/pid_max /proc/sys/kernel/yama/ptrace_scope /proc/sys/fs/file-max "
    "/proc/sys/net/ipv4/ip_local_port_range /proc/self/uid_map /etc/os-release /etc/nsswitch.conf /etc/host.conf "
    "/etc/gai.conf /etc/ld.so.conf /etc/ld.so.preload /etc/ld.so.conf.d/* /sys/class/net/lo/operstate "
    "/sys/class/net/lo/flags /sys/class/net/lo/carrier /sys/class/net/lo/mtu /sys/class/net/lo/ifindex "
    "/sys/class/net/lo/type /sys/module/nouveau/version /sys/module/nvidia*/* "
    "/sys/module/nvidia*/parameters/* /sys/module/nvidia*/drivers/* /proc/driver/nvidia*"
)
STAT_ONLY = (
    "/dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/shm /dev/fuse /dev/nvidia* /dev/nvidia-caps/* /tmp "
    "/run /run/nvidia-persistenced/socket /run/nvidia-fabricmanager/socket /tmp/nvidia-mps /usr/bin/nvidia-modprobe "
    "/usr/bin/nvidia-smi /usr/bin/nvidia-persistenced /usr/bin/nv-fabricmanager /usr/local/nvidia/bin/*"
)
CGROUP_FILES = (
    "cgroup.controllers cgroup.type cgroup.freeze cgroup.events memory.max memory.high memory.current memory.events "
    "pids.max pids.current cpu.max cpu.stat cpuset.cpus.effective"
)


# --- the host view ---------------------------------------------------------------------------------------------------


class ViewRecorder:
    """Collects entries; a path that cannot be read becomes an entry that says with which errno."""

    def __init__(self) -> None:
        self.entries: Entries = {}

    def add(self, path: str, *, content: bool = True, keep: Callable[[str], bool] | None = None) -> None:
        """Record PATH (and the symlinks on the way to it); KEEP filters its lines; CONTENT False records no text."""
        done = ""
        parts = [part for part in path.split("/") if part]
        for index, part in enumerate(parts):
            done = f"{done}/{part}"
            if done != "/proc/self" and os.path.islink(done):  # /proc/self is replayed under its own name
                target = os.readlink(done)
                self.entries[done] = {"type": "link", "target": target}
                onward = os.path.join(os.path.dirname(done), target, *parts[index + 1 :])
                self.add(os.path.normpath(onward), content=content, keep=keep)
                return
        try:
            self.entries[done or "/"] = self._entry(done or "/", content, keep)
        except FileNotFoundError:
            return  # absent stays absent: the replay answers ENOENT
        except OSError as error:
            self.entries[done] = {"type": "error", "errno": errno.errorcode.get(error.errno or errno.EIO, "EIO")}

    def _entry(self, path: str, content: bool, keep: Callable[[str], bool] | None) -> dict[str, Any]:
        found = os.lstat(path)
        owner = {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
        if stat.S_ISDIR(found.st_mode):
            return {"type": "dir", **owner}
        if stat.S_ISCHR(found.st_mode):
            entry = {"type": "char", **owner, "major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev)}
            try:
                os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as error:
                entry["open"] = errno.errorcode.get(error.errno or errno.EIO, "EIO")
            return entry
        if not stat.S_ISREG(found.st_mode) or not content:
            return {"type": "file", **owner, "size": found.st_size, "text": ""}
        data = read(path)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return {"type": "file", **owner, "size": found.st_size, "text": ""}
        if keep is not None:
            text = "".join(line for line in text.splitlines(keepends=True) if keep(line))
        return {"type": "file", **owner, "text": text}

    def tree(self, top: str) -> None:
        """Record everything below TOP (a procfs or sysfs directory of a few dozen small files)."""
        self.add(top)
        for folder, folders, files in os.walk(top):
            for name in [*folders, *files]:
                self.add(f"{folder}/{name}")


def read(path: str, limit: int = TEXT_LIMIT) -> bytes:
    """Return at most LIMIT bytes of PATH without ever blocking on a FIFO; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < limit and (part := os.read(fd, limit - len(data))):
            data += part
        return data
    finally:
        os.close(fd)


def record_view() -> Entries:
    """Return the entries of every path that the stages read."""
    view = ViewRecorder()
    for pattern in PLAIN_FILES.split():
        for path in sorted(glob.glob(pattern)):
            if os.path.isdir(path) and path.startswith("/proc/driver/"):
                view.tree(path)
            else:
                view.add(path)
    for pattern in STAT_ONLY.split():
        for path in sorted(glob.glob(pattern)):
            view.add(path, content=False)
    view.add("/proc/version")
    view.add("/proc/stat", keep=lambda line: line.startswith("btime"))
    view.add("/proc/modules", keep=lambda line: bool(re.match(r"nvidia|nouveau|nova|vfio|drm|fuse|mlx5", line)))
    view.add("/etc/hosts", keep=lambda line: bool(re.match(r"\s*(127\.|::1|#)", line)))
    view.add("/etc/passwd", keep=lambda line: line.split(":")[0] in ("root", "nobody", "ollama"))
    view.add("/etc/group", keep=lambda line: line.split(":")[0] in ("root", "nogroup", "video", "render", "ollama"))
    for path in sorted(glob.glob("/etc/modprobe.d/*")):
        view.add(path, keep=lambda line: "nvidia" in line or "nouveau" in line)
    for path in ("/proc/self/mountinfo", "/proc/mounts"):
        view.add(path, keep=needed_mount)
    view.add("/proc/self/cgroup")
    view.entries["/proc/sys/kernel/hostname"] = {"type": "file", "mode": 0o644, "uid": 0, "gid": 0, "text": "host\n"}
    record_cgroup(view)
    for device in sorted(glob.glob("/sys/bus/pci/devices/*")):
        try:
            wanted = read(f"{device}/class").startswith(b"0x03") or read(f"{device}/vendor").strip() == b"0x10de"
        except OSError:
            continue
        if wanted:
            view.add(device)
            for name in [*PCI_FILES.split(), "driver", "iommu_group"]:
                view.add(f"{device}/{name}")
    record_kernel_log(view)
    return view.entries


def needed_mount(line: str) -> bool:
    """Return whether LINE of mountinfo or mounts tells something about the GPU, /dev, /tmp or the kernel's trees."""
    fields = line.split()
    point = fields[4] if len(fields) > 9 else fields[1] if len(fields) > 1 else ""
    return point in ("/", "/proc", "/sys", "/run", "/usr") or point.startswith(
        ("/dev", "/proc/driver", "/sys/fs/cgroup", "/usr/local/nvidia", "/tmp")  # noqa: S108
    )


def record_cgroup(view: ViewRecorder) -> None:
    """Record the limits at the root of the cgroup tree and in this process's own group."""
    folders = ["/sys/fs/cgroup"]
    for line in read("/proc/self/cgroup").decode().splitlines():
        if line.startswith("0::"):
            folders.append("/sys/fs/cgroup" + line.split(":", 2)[2].rstrip("/"))
    for folder in folders:
        own = ViewRecorder()
        for name in CGROUP_FILES.split():
            own.add(f"{folder}/{name}")
        # redact() makes "/" of the group's path, so its limits stand at the top
        view.entries.update({path.replace(folder, "/sys/fs/cgroup", 1): entry for path, entry in own.entries.items()})


def record_kernel_log(view: ViewRecorder) -> None:
    """Record the kernel log's lines about the driver, in the format of /dev/kmsg, as the text of that node."""
    lines: list[str] = []
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        view.entries["/dev/kmsg"] = {"type": "error", "errno": errno.errorcode.get(error.errno or errno.EIO, "EIO")}
        return
    found = os.fstat(fd)
    try:
        for _ in range(200_000):  # records; a flood must not keep this loop alive for ever
            try:
                line = os.read(fd, 8192).decode(errors="replace")
            except BrokenPipeError:
                continue  # records were overwritten while we read
            if re.search(r"NVRM|nvidia|Xid|oom|out of memory", line, re.IGNORECASE):
                lines.append(line.splitlines()[0] + "\n")
    except OSError:
        pass  # EAGAIN: the end of the log
    finally:
        os.close(fd)
    view.entries["/dev/kmsg"] = {
        "type": "file",
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "text": "".join(lines[-400:]),
    }


# --- the libraries ---------------------------------------------------------------------------------------------------


def cache_paths() -> dict[str, list[str]]:
    """Return soname → paths of the driver's libraries in /etc/ld.so.cache (format glibc-ld.so.cache1.1)."""
    with open("/etc/ld.so.cache", "rb") as file:
        data = file.read()
    start = data.find(b"glibc-ld.so.cache1.1")
    if start < 0:
        return {}
    base = data[start:]
    (count,) = struct.unpack_from("<I", base, 20)
    found: dict[str, list[str]] = {}
    for index in range(count):
        _, key, value = struct.unpack_from("<iII", base, 48 + 24 * index)
        name, path = (base[at : base.index(b"\0", at)].decode() for at in (key, value))
        if re.match(r"lib(cuda|nvidia|cudart)", name):
            found.setdefault(name, []).append(path)
    return found


def library_paths() -> dict[str, list[str]]:
    """Return library name → the files that provide it, in the order in which ld.so would find them."""
    cached = cache_paths()
    folders = [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    folders += sorted(glob.glob("/usr/local/cuda*/targets/*/lib")) + sorted(glob.glob("/usr/local/cuda*/lib64"))
    folders += sorted(glob.glob("/usr/*/python3*/*-packages/nvidia/*/lib")) + sorted(
        glob.glob("/usr/local/lib/python3*/*-packages/nvidia/*/lib")
    )
    folders += sorted(glob.glob("/opt/*/lib/python3*/site-packages/nvidia/*/lib"))
    found: dict[str, list[str]] = {}
    for name in LIBRARIES:
        paths = [*(f"{folder}/{name}" for folder in folders), *cached.get(name, [])]
        found[name] = list(dict.fromkeys(path for path in paths if os.path.exists(path)))
    return found


def record_libraries() -> dict[str, Any]:
    """Return where the libraries are, what lies beside them (names, links, sizes) and which symbols they export."""
    paths = library_paths()
    view = ViewRecorder()
    symbols: dict[str, Any] = {}
    for name, files in paths.items():
        for file in files:
            for beside in sorted(glob.glob(f"{os.path.dirname(file)}/lib*")):
                if re.match(r"lib(cuda|nvidia|nvcuvid|cudart)", os.path.basename(beside)):
                    view.add(beside, content=False)
        if files:
            symbols[name] = sorted(exported(files[0]))
    sizes = {path: entry.get("size") for path, entry in view.entries.items() if entry["type"] == "file"}
    return {
        "paths": paths,
        "cache": cache_paths(),
        "entries": view.entries,
        "sizes": sizes,
        "symbols": symbols,
        "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH"),
    }


def exported(path: str) -> Iterable[str]:
    """Yield the defined dynamic symbols of the 64-bit little-endian ELF file PATH."""
    with open(path, "rb") as file:

        def at(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        header = at(0, 64)
        if header[:6] != b"\x7fELF\x02\x01":
            return
        (table,) = struct.unpack_from("<Q", header, 40)
        size, count = struct.unpack_from("<HH", header, 58)
        sections = [struct.unpack_from("<IIQQQQIIQQ", at(table + size * index, 64)) for index in range(count)]
        for section in sections:
            if section[1] == 11:  # SHT_DYNSYM
                strings = at(sections[section[6]][4], sections[section[6]][5])
                symbols = at(section[4], section[5])
                for offset in range(0, len(symbols) - 23, 24):
                    name, info, _, index, _, _ = struct.unpack_from("<IBBHQQ", symbols, offset)
                    if index and info & 15 in (1, 2, 10):
                        yield strings[name : strings.index(b"\0", name)].decode(errors="replace")


# --- the answers -----------------------------------------------------------------------------------------------------


class Caller:
    """Calls functions of one library and streams every code, time and result to the parent."""

    stream = -1  # the pipe to the parent; set in the child

    def __init__(self, path: str, label: str) -> None:
        started = time.monotonic()
        self.library = ctypes.CDLL(path)
        self._note(f"dlopen {label}", 0, started, None)

    def _note(self, name: str, code: int | None, started: float, result: Any) -> None:
        self.note(name, code, result, round((time.monotonic() - started) * 1000, 3))

    def note(self, name: str, code: int | None, result: Any, ms: float = 0) -> None:
        """Send one answer to the parent."""
        send(self.stream, {"call": {"call": name, "rc": code, "ms": ms, "result": result}})

    def __call__(
        self, name: str, *arguments: Any, out: Callable[[], Any] = lambda: None, label: str = ""
    ) -> int | None:
        """Call NAME and note its code; OUT reads the results when the code is 0. Return the code, None if absent."""
        function = getattr(self.library, name, None)
        started = time.monotonic()
        if function is None:
            self._note(name + label, None, started, "absent")
            return None
        function.restype = ctypes.c_int
        code = int(function(*arguments))
        self._note(name + label, code, started, out() if code == 0 else None)
        return code

    def numbers(
        self, name: str, *before: Any, count: int = 1, kind: Any = ctypes.c_uint, label: str = ""
    ) -> list[int] | None:
        """Call NAME(*BEFORE, &out1, ... &outCOUNT) and return the outs, None when it failed."""
        outs = [kind() for _ in range(count)]
        code = self(
            name, *before, *(ctypes.byref(one) for one in outs), out=lambda: [one.value for one in outs], label=label
        )
        return [one.value for one in outs] if code == 0 else None

    def text(self, name: str, *before: Any, label: str = "") -> str | None:
        """Call NAME(*BEFORE, buffer, 256) and return the string, None when it failed."""
        buffer = ctypes.create_string_buffer(256)
        code = self(name, *before, buffer, 256, out=lambda: buffer.value.decode(errors="replace"), label=label)
        return buffer.value.decode(errors="replace") if code == 0 else None

    def record(self, name: str, *before: Any, layout: str, version: int = 0, label: str = "") -> None:
        """Call NAME(*BEFORE, &struct) and note the fields of LAYOUT; VERSION goes into its first word, NVML's way."""
        buffer = ctypes.create_string_buffer(4096)
        if version:
            struct.pack_into("<I", buffer, 0, struct.calcsize(layout) | version << 24)
        self(
            name,
            *before,
            buffer,
            out=lambda: [
                field.split(b"\0")[0].decode(errors="replace") if isinstance(field, bytes) else field
                for field in struct.unpack_from(layout, buffer)
            ],
            label=label,
        )


def ask_nvml() -> None:
    """Return every NVML call that the nvml and enumeration stages may make, for each GPU and MIG instance."""
    ask = Caller("libnvidia-ml.so.1", "libnvidia-ml.so.1")
    ask.library.nvmlErrorString.restype = ctypes.c_char_p
    strings = {code: (ask.library.nvmlErrorString(code) or b"").decode() for code in [*range(31), 999]}
    ask.note("nvmlErrorString", 0, strings)
    if ask("nvmlInit_v2") != 0:
        return
    ask.text("nvmlSystemGetDriverVersion")
    ask.text("nvmlSystemGetNVMLVersion")
    ask.numbers("nvmlSystemGetCudaDriverVersion", kind=ctypes.c_int)
    ask.numbers("nvmlSystemGetCudaDriverVersion_v2", kind=ctypes.c_int)
    ask.record("nvmlSystemGetConfComputeState", layout="<3I")
    ask.numbers("nvmlSystemGetConfComputeGpusReadyState")
    count = (ask.numbers("nvmlDeviceGetCount_v2") or [0])[0]
    for index in range(count):
        handle = ctypes.c_void_p()
        if ask("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle), label=f" {index}") == 0:
            ask_nvml_device(ask, handle, f" {index}")
            for instance in range((ask.numbers("nvmlDeviceGetMaxMigDeviceCount", handle, label=f" {index}") or [0])[0]):
                mig = ctypes.c_void_p()
                where = f" {index}/{instance}"
                if ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, instance, ctypes.byref(mig), label=where) == 0:
                    ask_nvml_device(ask, mig, where)
                    ask.numbers("nvmlDeviceGetGpuInstanceId", mig, label=where)
                    ask.numbers("nvmlDeviceGetComputeInstanceId", mig, label=where)
    handle = ctypes.c_void_p()
    ask("nvmlDeviceGetHandleByIndex_v2", count, ctypes.byref(handle), label=" out of range")
    ask(
        "nvmlDeviceGetHandleByUUID", b"GPU-00000000-0000-0000-0000-0000000000ff", ctypes.byref(handle), label=" unknown"
    )
    ask("nvmlDeviceGetHandleByPciBusId_v2", b"0000:ff:1f.0", ctypes.byref(handle), label=" unknown")
    ask("nvmlShutdown")
    return


def ask_nvml_device(ask: Caller, handle: ctypes.c_void_p, label: str) -> None:
    """Ask HANDLE (a GPU or a MIG instance) everything that needs no change of state."""
    ask.text("nvmlDeviceGetName", handle, label=label)
    uuid = ask.text("nvmlDeviceGetUUID", handle, label=label)
    if uuid:
        ask("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(ctypes.c_void_p()), label=label)
    single = (
        "MinorNumber PersistenceMode ComputeMode VirtualizationMode Brand Architecture NumGpuCores Index MultiGpuBoard"
    )
    for name in [*single.split(), "DisplayActive", "CurrPcieLinkGeneration", "CurrPcieLinkWidth", "PowerState"]:
        ask.numbers(f"nvmlDeviceGet{name}", handle, label=label)
    for name in ("CudaComputeCapability", "MigMode", "EccMode", "GspFirmwareMode"):
        ask.numbers(f"nvmlDeviceGet{name}", handle, count=2, label=label)
    ask.text("nvmlDeviceGetGspFirmwareVersion", handle, label=label)
    ask.record("nvmlDeviceGetPciInfo_v3", handle, layout="<16s5I32s", label=label)
    ask.record("nvmlDeviceGetMemoryInfo", handle, layout="<3Q", label=label)
    ask.record("nvmlDeviceGetMemoryInfo_v2", handle, layout="<I4x4Q", version=2, label=label)
    ask.record("nvmlDeviceGetBAR1MemoryInfo", handle, layout="<3Q", label=label)
    for kind in (0, 1):
        for counter in (0, 1):
            ask.numbers(
                "nvmlDeviceGetTotalEccErrors",
                handle,
                kind,
                counter,
                kind=ctypes.c_ulonglong,
                label=f"{label} type {kind} counter {counter}",
            )
    ask.numbers("nvmlDeviceGetRemappedRows", handle, count=4, label=label)
    ask.record("nvmlDeviceGetGpuFabricInfo", handle, layout="<16xIIB3x", label=label)
    ask.record("nvmlDeviceGetGpuFabricInfoV", handle, layout="<I16xIIB3xI", version=2, label=label + " v2")
    ask.record("nvmlDeviceGetGpuFabricInfoV", handle, layout="<I16xIIB3xIB3x", version=3, label=label + " v3")
    ask.record("nvmlDeviceGetAttributes_v2", handle, layout="<8IQ", label=label)
    for name in (
        "ComputeRunningProcesses",
        "ComputeRunningProcesses_v2",
        "ComputeRunningProcesses_v3",
        "MPSComputeRunningProcesses_v3",
        "GraphicsRunningProcesses_v3",
    ):
        number, room = ctypes.c_uint(64), ctypes.create_string_buffer(64 * 24)
        ask(
            f"nvmlDeviceGet{name}",
            handle,
            ctypes.byref(number),
            room,
            out=functools.partial(value_of, number),
            label=label,
        )


def ask_driver() -> None:
    """Return what the driver API answers: identity, every attribute, the primary context, memory, error names."""
    ask = Caller("libcuda.so.1", "libcuda.so.1")
    names: dict[int, list[str]] = {}
    for code in range(1000):
        name, meaning = ctypes.c_char_p(), ctypes.c_char_p()
        if ask.library.cuGetErrorName(code, ctypes.byref(name)) == 0:
            ask.library.cuGetErrorString(code, ctypes.byref(meaning))
            names[code] = [(name.value or b"").decode(), (meaning.value or b"").decode()]
    ask.note("cuGetErrorName", 0, names)
    ask.numbers("cuDriverGetVersion", kind=ctypes.c_int, label=" before cuInit")
    ask.numbers("cuDeviceGetCount", kind=ctypes.c_int, label=" before cuInit")
    if ask("cuInit", 0) != 0:
        return
    ask.numbers("cuDriverGetVersion", kind=ctypes.c_int)
    count = (ask.numbers("cuDeviceGetCount", kind=ctypes.c_int) or [0])[0]
    for index in range(count):
        label = f" {index}"
        device = ctypes.c_int(index)
        ask("cuDeviceGet", ctypes.byref(device), index, out=functools.partial(value_of, device), label=label)
        buffer = ctypes.create_string_buffer(256)
        text = functools.partial(decoded, buffer)
        ask("cuDeviceGetName", buffer, 256, device, out=text, label=label)
        ask("cuDeviceGetPCIBusId", buffer, 256, device, out=text, label=label)
        for function in ("cuDeviceGetUuid", "cuDeviceGetUuid_v2"):
            raw = ctypes.create_string_buffer(16)
            ask(function, raw, device, out=functools.partial(uuid_of, raw), label=label)
        total = ctypes.c_size_t()
        ask("cuDeviceTotalMem_v2", ctypes.byref(total), device, out=functools.partial(value_of, total), label=label)
        attributes: dict[int, Any] = {}
        for attribute in range(1, 151):
            value = ctypes.c_int()
            code = ask.library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            attributes[attribute] = value.value if code == 0 else {"rc": code}
        ask.note(f"cuDeviceGetAttribute{label}", 0, attributes)
        ask_driver_context(ask, device, label)
    return


def ask_driver_context(ask: Caller, device: ctypes.c_int, label: str) -> None:
    """Make DEVICE's primary context, ask about memory in it, and release it."""
    flags, active = ctypes.c_uint(), ctypes.c_int()
    ask(
        "cuDevicePrimaryCtxGetState",
        device,
        ctypes.byref(flags),
        ctypes.byref(active),
        out=lambda: [flags.value, active.value],
        label=label,
    )
    prop = ctypes.create_string_buffer(struct.pack("<4I", 1, 0, 1, device.value), 64)
    for option in (0, 1):
        size = ctypes.c_size_t()
        ask(
            "cuMemGetAllocationGranularity",
            ctypes.byref(size),
            prop,
            option,
            out=functools.partial(value_of, size),
            label=f"{label} option {option}",
        )
    context = ctypes.c_void_p()
    if ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), device, label=label) != 0:
        return
    ask("cuCtxSetCurrent", context, label=label)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ask("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total), out=lambda: [free.value, total.value], label=label)
    pointer = ctypes.c_uint64()
    if ask("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(1 << 20), label=label) == 0:
        ask("cuMemsetD32_v2", pointer, 7, ctypes.c_size_t(1024), label=label)
        ask("cuMemFree_v2", pointer, label=label)
    if ask("cuMemAllocManaged", ctypes.byref(pointer), ctypes.c_size_t(1 << 20), 1, label=label) == 0:
        ask("cuMemFree_v2", pointer, label=label)
    ask("cuCtxSynchronize", label=label)
    ask("cuDevicePrimaryCtxRelease_v2", device, label=label)


def ask_runtime(path: str) -> None:
    """Return what libcudart at PATH answers, with the raw bytes of its device properties (UUID blanked)."""
    ask = Caller(path, path)
    ask.numbers("cudaRuntimeGetVersion", kind=ctypes.c_int)
    ask.numbers("cudaDriverGetVersion", kind=ctypes.c_int)
    count = (ask.numbers("cudaGetDeviceCount", kind=ctypes.c_int) or [0])[0]
    for index in range(count):
        for name in ("cudaGetDeviceProperties", "cudaGetDeviceProperties_v2"):
            raw = ctypes.create_string_buffer(b"\xee" * 4096, 4096)

            ask(name, raw, index, out=functools.partial(properties_of, raw), label=f" {index}")
        buffer = ctypes.create_string_buffer(64)
        ask("cudaDeviceGetPCIBusId", buffer, 64, index, out=functools.partial(decoded, buffer), label=f" {index}")


def decoded(buffer: Any) -> str:
    """Return the C string in BUFFER."""
    return bytes(buffer.value).decode(errors="replace")


def value_of(number: Any) -> Any:
    """Return the value of a ctypes NUMBER."""
    return number.value


def uuid_of(buffer: Any) -> str:
    """Return the 16 bytes of BUFFER as NVML prints a GPU's UUID."""
    text = bytes(buffer.raw).hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def properties_of(buffer: Any) -> str:
    """Return what cudaGetDeviceProperties wrote into BUFFER (filled with 0xEE before), the UUID blanked, as hex."""
    data = bytearray(bytes(buffer.raw).rstrip(b"\xee"))
    data[256:272] = bytes(16)  # cudaDeviceProp: char name[256]; cudaUUID_t uuid
    return data.hex()


# --- isolation, redaction, output ------------------------------------------------------------------------------------


def isolated(work: Callable[[], Any], limit_s: float = GROUP_LIMIT_S) -> tuple[Any, list[Any], str]:
    """Run WORK() in a forked child; return (its value or None, the calls it noted, what went wrong or "").

    Calls arrive one by one, so that a library that hangs or crashes costs only what comes after.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reader)
        Caller.stream = writer
        try:
            send(writer, {"value": work()})
        except BaseException:
            send(writer, {"problem": traceback.format_exc(limit=4)})
        os._exit(0)  # no destructors of driver libraries
    os.close(writer)
    deadline, data = time.monotonic() + limit_s, b""
    while (left := deadline - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
        part = os.read(reader, 1 << 20)
        if not part:
            break
        data += part
    os.close(reader)
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    status = None
    for _ in range(40):  # a child in state D is abandoned, not waited for
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    lines = [json.loads(line) for line in data.split(b"\n")[:-1]]
    last = lines[-1] if lines else {}
    calls = [line["call"] for line in lines if "call" in line]
    if "value" in last or "problem" in last:
        return last.get("value"), calls, last.get("problem", "")
    return None, calls, f"no end within {limit_s:g} s, or the child died: wait status {status}"


def send(fd: int, line: dict[str, Any]) -> None:
    """Write LINE as JSON to FD."""
    data = (json.dumps(line, default=str) + "\n").encode()
    while data:
        data = data[os.write(fd, data) :]


def redact(text: str) -> str:
    """Return TEXT (the recording as JSON) without UUIDs, host names, hardware addresses and container ids."""
    known: dict[str, str] = {}

    def uuid(match: re.Match[str]) -> str:
        return known.setdefault(match[0], f"{match[1]}-00000000-0000-4000-8000-{len(known):012x}")

    text = re.sub(r"\b(GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", uuid, text)
    text = re.sub(r"(?<![0-9a-fA-F:])(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}(?![0-9a-fA-F:])", "00:00:00:00:00:00", text)
    text = re.sub(r"(?<!GPU-)(?<!MIG-)\b[0-9a-f]{8}[-_](?:[0-9a-f]{4}[-_]){3}[0-9a-f]{12}\b", "ID", text)
    text = re.sub(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", "ID", text)
    text = re.sub(r"\((?:\w|[.-])+@(?:\w|[.-])+\)", "(build@host)", text)
    name = socket.gethostname()
    if len(name) > 3:
        text = text.replace(name, "host")
    return text


def redact_entries(entries: Entries) -> None:
    """Keep mount points, types and flags, no sources and group paths: those name images, containers and hosts."""
    for path, entry in entries.items():
        lines = str(entry.get("text", "")).splitlines()
        if path in ("/proc/self/mountinfo", "/proc/self/mounts"):
            lines = [mount_line(line) for line in lines]
        elif path == "/proc/self/cgroup":
            lines = [f"{line.rsplit(':', 1)[0]}:/" for line in lines]
        elif path == "/etc/hosts":
            lines = [re.sub(r"(?<=\s)(?!localhost|ip6-|#)\S+", "host", line) for line in lines]
        else:
            continue
        entry["text"] = "".join(f"{line}\n" for line in lines)


def mount_line(line: str) -> str:
    """Return LINE of mountinfo (a ` - ` in it) or mounts without source and super-block options."""
    if " - " in line:
        left, right = line.split(" - ", 1)
        fields = left.split()
        fields[3] = "/"
        return f"{' '.join(fields)} - {right.split()[0]} none rw"
    fields = line.split()
    return " ".join(["none", *fields[1:3], ",".join(o for o in fields[3].split(",") if "=" not in o), "0 0"])


def main(arguments: list[str]) -> int:
    """Record this host into ARGUMENTS[0] and print a summary; 0 when the file was written."""
    if len(arguments) != 1:
        print("usage: python3 record.py OUT.json", file=sys.stderr)
        return 4
    problems: dict[str, str] = {}

    def attempt(name: str, work: Callable[[], Any]) -> tuple[Any, list[Any]]:
        value, calls, problem = isolated(work)
        if problem:
            problems[name] = problem
        return value, calls

    entries: Entries = attempt("view", record_view)[0] or {}
    redact_entries(entries)
    libraries = attempt("libraries", record_libraries)[0] or {"paths": {}, "entries": {}, "symbols": {}}
    answers = {"nvml": attempt("nvml", ask_nvml)[1], "driver": attempt("driver", ask_driver)[1]}
    for name in ("libcudart.so.12", "libcudart.so.13"):
        for path in libraries["paths"].get(name, [])[:1]:
            answers[name] = attempt(name, functools.partial(ask_runtime, path))[1]
    recording = {
        "format": 1,
        "recorded": time.strftime("%Y-%m-%d"),
        "uid": os.geteuid(),
        "entries": {**libraries.pop("entries"), **entries},
        "libraries": libraries,
        "answers": answers,
        "problems": problems,
    }
    with open(arguments[0], "w", encoding="utf-8") as file:
        file.write(redact(json.dumps(recording, indent=1, sort_keys=True)) + "\n")
    for line in summary(recording):
        print(line)
    return 0


def summary(recording: dict[str, Any]) -> list[str]:
    """Return about ten lines that say what was recorded and what was not."""
    answers = recording["answers"]
    lines = [f"entries    : {len(recording['entries'])} paths"]
    lines.append(f"nodes      : {' '.join(sorted(p for p in recording['entries'] if p.startswith('/dev/nvidia')))}")
    for name, paths in recording["libraries"]["paths"].items():
        count = len(recording["libraries"]["symbols"].get(name, ()))
        lines.append(f"{name:<11}: {', '.join(paths) or 'not found'} ({count} symbols)")
    for name, calls in answers.items():
        bad = [f"{call['call']}={call['rc']}" for call in calls if call["rc"]]
        lines.append(f"{name:<11}: {len(calls)} calls, {len(bad)} with an error: {' '.join(bad)[:300]}")
    lines += [f"PROBLEM    : {name}: {text.strip().splitlines()[-1]}" for name, text in recording["problems"].items()]
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
