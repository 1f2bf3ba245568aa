"""Changes to what the kernel shows: device nodes, modules, the kernel log, other processes."""

from __future__ import annotations

from pytest_gpudiscovery.simulate.changes import Change, remove
from pytest_gpudiscovery.simulate.machines import install, unload
from pytest_gpudiscovery.simulate.world import PCI, PROC, ROOT, World

# --- device nodes ----------------------------------------------------------------------------------------------------


def node(which: str, **changes: object) -> Change:
    """Change fields of device nodes (`all` or a name): mode, uid, gid, major, minor, open."""

    def change(world: World, _: str) -> None:
        for path in world.nodes(which):
            world.entries[path] = {**world.entries[path], **changes}

    return change


def no_node(which: str) -> Change:
    """Remove device nodes."""
    return lambda world, _: world.drop(*world.nodes(which))


def file_for_node(which: str) -> Change:
    """Put an empty regular file in the place of device nodes."""

    def change(world: World, _: str) -> None:
        for path in world.nodes(which):
            world.entries[path] = {"type": "file", "mode": 0o644, **ROOT, "text": ""}

    return change


def nodev(world: World, _: str) -> None:
    """Mount /dev nodev: a device node there cannot be opened, whatever its mode."""
    node("all", open="EACCES")(world, "")
    for path in ("/proc/self/mountinfo", "/proc/self/mounts"):
        text = str(world.entries[path]["text"])
        world.text(path, text.replace(" /dev rw,", " /dev rw,nodev,"))


# --- the kernel ------------------------------------------------------------------------------------------------------


def remove_module(world: World, _: str) -> None:
    """Unload every NVIDIA kernel module; the user space stays installed."""
    unload(world)


def remove_uvm(world: World, _: str) -> None:
    """Unload nvidia_uvm alone."""
    world.drop("/sys/module/nvidia_uvm", "/proc/driver/nvidia-uvm", *world.nodes("nvidia-uvm"), "/dev/nvidia-uvm-tools")
    for path in ("/proc/devices", "/proc/modules"):
        lines = str(world.entries[path]["text"]).splitlines(keepends=True)
        world.text(path, "".join(line for line in lines if "nvidia-uvm" not in line and "nvidia_uvm" not in line))


def module_version(world: World, value: str) -> None:
    """Have the loaded kernel module be of another version than the user space (an upgrade without a reboot)."""
    old = str(world.version)
    for path in (f"{PROC}/version", "/sys/module/nvidia/version", "/sys/module/nvidia_uvm/version", "/dev/kmsg"):
        world.text(path, str(world.entries[path]["text"]).replace(old, value))


def reinstall(world: World, value: str) -> None:
    """Have the user space be of version VALUE while the old kernel module is still loaded."""
    for path in [path for path in world.files if path.startswith("lib/") and "cudart" not in path]:
        del world.files[path]
    install(world, value)


def other_module(name: str) -> Change:
    """Load kernel module NAME (nouveau, vfio_pci), which holds the GPU, instead of NVIDIA's."""

    def change(world: World, _: str) -> None:
        unload(world)
        driver = {"nouveau": "nouveau", "vfio_pci": "vfio-pci"}[name]
        world.text("/proc/modules", f"{name} 2310144 1 - Live 0x0000000000000000\n")
        world.text(f"/sys/module/{name}/initstate", "live\n")
        world.entries[f"/sys/bus/pci/drivers/{driver}"] = {"type": "dir", "mode": 0o755, **ROOT}
        for gpu in range(world.gpus):
            where = world.resolve(f"{PCI}/{world.pci(gpu)}")
            world.entries[f"{where}/driver"] = {"type": "link", "target": f"../../../bus/pci/drivers/{driver}"}

    return change


def log(text: str, *, age: float | None = 60.0, at: float | None = None) -> Change:
    """Add a kernel log record, AGE seconds old or AT seconds after boot; {pci} is the first GPU without function."""

    def change(world: World, value: str) -> None:
        moment = world.uptime - (age or 0.0) if at is None else at
        pci = world.pci(0).rpartition(".")[0]
        world.log(text.replace("{pci}", pci).replace("{value}", value), moment)

    return change


def log_restricted(world: World, _: str) -> None:
    """Keep the kernel log from everybody, root included (a container without CAP_SYSLOG)."""
    world.entries["/dev/kmsg"] = {"type": "error", "errno": "EPERM"}


def fallen(world: World, _: str) -> None:
    """Have the first GPU fall off the bus: its registers read as all ones."""
    where = f"{PCI}/{world.pci(0)}"
    world.text(f"{where}/current_link_width", "63\n")
    world.text(f"{where}/current_link_speed", "Unknown\n")
    node("nvidia0", open="EIO")(world, "")


def process(pid: int, comm: str, *, state: str = "S", wchan: str = "0", exe: str = "") -> Change:
    """Add a process that holds /dev/nvidia0."""

    def change(world: World, _: str) -> None:
        where = f"/proc/{pid}"
        flags = 0x400100
        stat = f"{pid} ({comm}) {state} 1 {pid} {pid} 0 -1 {flags} 0 0 0 0 7 3 0 0 20 0 1 0 12345 0 0 " + "0 " * 29
        for task in (where, f"{where}/task/{pid}"):
            world.text(f"{task}/stat", stat.rstrip() + "\n")
            world.text(f"{task}/wchan", wchan)
            world.text(f"{task}/comm", comm + "\n")
            world.text(f"{task}/status", f"Name:\t{comm}\nState:\t{state}\nPid:\t{pid}\nPPid:\t1\n")
        world.text(f"{where}/cmdline", f"{exe or comm}\0")
        world.entries[f"{where}/exe"] = {"type": "link", "target": exe or f"/usr/bin/{comm}"}
        world.entries[f"{where}/fd/7"] = {"type": "link", "target": "/dev/nvidia0"}

    return change


def container(world: World, _: str) -> None:
    """Make the host a container that was started without GPUs: the module's /proc, no node, no user space."""
    world.text("/.dockerenv", "")
    world.drop(*[path for path in world.entries if path.startswith("/dev/nvidia")])
    remove("libcuda.", "libnvidia")(world, "")
