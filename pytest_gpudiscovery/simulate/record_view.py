"""Record what the stages read of a host: its files, device nodes and kernel log (format of probes/host.py)."""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections.abc import Callable
from typing import Any

Entries = dict[str, dict[str, Any]]

TEXT_LIMIT = 64 * 1024  # bytes of one file; sysfs and procfs files that matter are far smaller
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
