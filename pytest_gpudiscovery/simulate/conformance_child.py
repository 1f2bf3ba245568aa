"""One row for one identity: make the fault, become the identity, call NVML, the driver API and libcudart, say what they
answered. Started as `python -I -S -c SOURCE REQUEST`, with the environment already set; prints one JSON line.

Standard library only and one file: it runs on a host, and as a user, that cannot read this package.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import resource
import stat
import sys

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CAP_MKNOD, NOBODY, SIGKILL = 27, 65534, 9
NODES = ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
STUBS = ("/usr/local/cuda/lib64/stubs/libcuda.so", "/usr/local/cuda/targets/x86_64-linux/lib/stubs/libcuda.so")

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise OSError when RESULT is not 0."""
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Call mount(2); raises OSError."""
    words = [text.encode() for text in (source, target, kind, data)]
    check(libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def private_dev() -> None:
    """Enter a mount namespace with a tmpfs copy of /dev's device nodes and links; nothing of it reaches the host."""
    check(libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    copies: list[tuple[str, os.stat_result, str]] = []
    for folder in ("/dev", "/dev/nvidia-caps"):
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            path = f"{folder}/{name}"
            found = os.lstat(path)
            if stat.S_ISCHR(found.st_mode) or stat.S_ISLNK(found.st_mode):
                copies.append((path, found, os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""))
    os.umask(0)
    mount("gpu-discovery", "/dev", "tmpfs", MS_NOSUID, "mode=0755,size=4m")
    for folder in ("/dev/nvidia-caps", "/dev/shm"):  # noqa: S108
        os.mkdir(folder, 0o1777 if folder.endswith("shm") else 0o755)
    for path, found, target in copies:
        if target:
            os.symlink(target, path)
        else:
            os.mknod(path, found.st_mode, found.st_rdev)
            os.chown(path, found.st_uid, found.st_gid)
            os.chmod(path, stat.S_IMODE(found.st_mode))


def nodes(which: str) -> list[str]:
    """Return the paths of the nodes that WHICH names."""
    every = [path for path in (f"/dev/{name}" for name in NODES) if os.path.lexists(path)]
    return every if which == "all" else [f"/dev/{which}"]


def make(step: str) -> None:
    """Do one STEP of a row; raises OSError."""
    verb, *words = step.split()
    if verb == "remove":
        for path in nodes(words[0]):
            os.unlink(path)
    elif verb == "renumber":
        for path in nodes(words[0]):
            os.unlink(path)
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(int(words[1]), int(words[2])))
    elif verb == "file":
        for path in nodes(words[0]):
            os.unlink(path)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
    elif verb == "mode":
        for path in nodes(words[0]):
            os.chmod(path, int(words[1], 8))
    elif step == "nodev":
        mount("none", "/dev", "", MS_REMOUNT | MS_BIND | MS_NODEV | MS_NOSUID)
    elif verb == "hide":
        mount("gpu-discovery", words[0], "tmpfs", MS_RDONLY)
    elif verb == "read-only":
        mount(words[0], words[0], "", MS_BIND)
        mount("none", words[0], "", MS_REMOUNT | MS_BIND | MS_RDONLY)
    elif step == "network namespace":
        check(libc.unshare(CLONE_NEWNET), "unshare network")
    elif step == "user namespace":
        new_user()
    elif step == "user and pid namespace":
        new_user()
        new_pid()
    elif step == "pid namespace and its /proc":
        if os.geteuid() != 0:
            new_user()
        new_pid()
        own_proc()
    elif verb == "limit":
        kind = getattr(resource, f"RLIMIT_{words[0]}")
        resource.setrlimit(kind, (int(words[1]), int(words[1])))
    else:
        raise ValueError(f"unknown step {step!r}")


def new_user() -> None:
    """Enter a new user namespace, as its root."""
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(CLONE_NEWUSER), "unshare user")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)  # no text file: the codec may lie where we cannot read
        os.write(fd, text.encode())
        os.close(fd)


def new_pid() -> None:
    """Enter a new pid namespace; returns in the child that lives there."""
    check(libc.unshare(CLONE_NEWPID), "unshare pid")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)  # this process itself runs under its parent's deadline
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def own_proc() -> None:
    """Mount the /proc of this pid namespace, in a mount namespace of this process."""
    check(libc.unshare(CLONE_NEWNS), "unshare mounts")
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID)


def become(identity: str) -> None:
    """Become IDENTITY for good; `caller` stays what it is."""
    if identity == "root-mknod":
        libc.prctl(PR_CAPBSET_DROP, CAP_MKNOD, 0, 0, 0)
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        check(libc.capget(header, data), "capget")
        for index in range(3):
            data[index] &= ~(1 << CAP_MKNOD) & 0xFFFFFFFF
        check(libc.capset(header, data), "capset")
    elif identity == "nobody":
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)  # a change of identity clears it, and the next one:
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # without which /proc/self belongs to root, its uid_map too
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def call(library: ctypes.CDLL, name: str, *arguments: object) -> int:
    """Call NAME and return its code."""
    function = getattr(library, name)
    function.restype = ctypes.c_int
    return int(function(*arguments))


def ask_nvml(said: dict[str, object]) -> None:
    """Start NVML, count, and take the first GPU's handle."""
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    said["nvmlInit"] = call(nvml, "nvmlInit_v2")
    if said["nvmlInit"] != 0:
        return
    count, handle = ctypes.c_uint(), ctypes.c_void_p()
    call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    said["nvmlCount"] = count.value
    if count.value:
        said["nvmlHandle"] = call(nvml, "nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(handle))


def ask_driver(libcuda: str, said: dict[str, object]) -> None:
    """Initialise the driver API; make a context and a managed allocation when that went well."""
    cuda = ctypes.CDLL(libcuda)
    said["cuInit"] = call(cuda, "cuInit", 0)
    if said["cuInit"] != 0:
        return
    context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
    said["context"] = call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    if said["context"] == 0:
        call(cuda, "cuCtxSetCurrent", context)
        said["managed"] = call(cuda, "cuMemAllocManaged", ctypes.byref(pointer), ctypes.c_size_t(1 << 20), 1)
        call(cuda, "cuDevicePrimaryCtxRelease_v2", 0)


def ask_runtime(paths: list[str], said: dict[str, object]) -> None:
    """Count devices through the first libcudart that can be opened."""
    error = "no libcudart was found"
    for path in paths:
        try:
            runtime = ctypes.CDLL(path)
        except OSError as problem:
            error = str(problem)
            continue
        count = ctypes.c_int()
        said["cudaGetDeviceCount"] = call(runtime, "cudaGetDeviceCount", ctypes.byref(count))
        if count.value:
            said["cudaCount"] = count.value
        return
    said["cudartError"] = error


def main(request: dict[str, object]) -> None:
    """Run REQUEST: {"private", "steps", "identity", "libcuda", "cudart": [paths]}; print {"said"} or {"not_done"}."""
    said: dict[str, object] = {}
    steps = list(request["steps"])  # type: ignore[call-overload]
    libcuda = str(request["libcuda"])
    try:
        if request["private"]:
            private_dev()
        if "stub" in steps:
            steps.remove("stub")
            libcuda = next((path for path in STUBS if os.path.exists(path)), "")
            if not libcuda:
                raise OSError(2, "no toolkit stub on this host")
        late = [step for step in steps if step.startswith(("limit", "user", "pid"))]
        for step in steps:
            if step not in late:
                make(step)
        become(str(request["identity"]))
        for step in late:
            make(step)
    except OSError as problem:
        print(json.dumps({"not_done": str(problem)}), flush=True)
        os._exit(0)
    paths = list(request["cudart"])  # type: ignore[call-overload]
    for ask in (ask_nvml, functools.partial(ask_driver, libcuda), functools.partial(ask_runtime, paths)):
        try:
            ask(said)
        except (OSError, AttributeError) as problem:
            said.setdefault("error", str(problem))
    print(json.dumps({"said": said}), flush=True)
    os._exit(0)  # no destructors of driver libraries


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
