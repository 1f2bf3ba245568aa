"""What a supervised child does to itself before its probe runs: /dev, limits, privileges, identity, directory.

What could not be done is observed as `setup` = {uid, gid, groups, interpreter, dev: host|private, no_new_privs,
mknod: kept|dropped, not_done: [{what, why}]}; only an identity or a directory that cannot be had stops the probe.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `import signal` costs 7 ms (enum)
import ctypes
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38  # linux/prctl.h
PR_SET_PTRACER = 0x59616D61  # "Yama"
PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000  # linux/sched.h
RLIMIT_NOFILE = 7  # asm-generic/resource.h; `import resource` needs a descriptor where it is an extension module
SIGKILL = 9
CHILDREN_S = 0.2  # for children to die
SPAWNED = 3  # length of sys.argv in the process that the supervisor started; one more after an exec (boot.execute)

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: Any) -> None:
    """Call prctl(2); raises OSError."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def apply(payload: dict[str, Any], journal: Journal) -> str | None:
    """Apply PAYLOAD's setup. Returns None when the probe may run, else why it must not; may exec and not return."""
    # Who ignores SIGCHLD hands that down through exec, and no child can be waited for then; Go undoes it likewise.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    if len(sys.argv) == SPAWNED:
        if not payload["transient"]:
            if not os.read(payload["go_fd"], 1):
                os._exit(1)  # the supervisor was interrupted before it learnt our pid: nobody could ever end us
            os.close(payload["go_fd"])
        _tie(payload)
        refusal = _change(payload, journal)
        if refusal is not None:
            return refusal
    else:
        _tie(payload)
    os.close(int(sys.argv[1]))
    if payload["transient"]:
        reading, writing = os.pipe()  # that was our stdin: an end of file takes its place
        os.close(writing)
        os.set_inheritable(reading, True)
    os.set_inheritable(payload["journal_fd"], False)  # what a probe starts must not speak for it
    return None


def end_children(journal: Journal) -> None:
    """Kill what the probe started and left: once we have ended, nobody can find a daemon that closed our pipes.

    Whoever loses a parent by it becomes our child too, so it takes as many rounds as there are generations.
    """
    killed: set[int] = set()
    end = time.monotonic() + CHILDREN_S
    while (pids := _children()) and time.monotonic() < end:
        for pid in pids:
            try:
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    os.kill(pid, SIGKILL)
                    killed.add(pid)
            except OSError:
                pass  # a setuid program, or reaped by a library meanwhile
        time.sleep(0.001)
    if killed:
        journal.observe("left_behind", sorted(killed))


def descriptors() -> int:
    """Return how many descriptors this process may open (the soft RLIMIT_NOFILE)."""
    limit = (ctypes.c_ulong * 2)()
    return int(limit[0]) if _libc.getrlimit(RLIMIT_NOFILE, limit) == 0 else 0


def say_lowered(before: int, journal: Journal) -> None:
    """Say that a library took descriptors from this process, which had BEFORE: what failed then is its doing."""
    limit = (ctypes.c_ulong * 2)()
    if _libc.getrlimit(RLIMIT_NOFILE, limit) == 0 and limit[0] < before:
        journal.observe("lowered", {"RLIMIT_NOFILE": [before, int(limit[0])]})
        limit[0] = min(before, limit[1])
        _libc.setrlimit(RLIMIT_NOFILE, limit)  # as far as it lets us: what went wrong has to be said


def _children() -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return []  # no descriptor is left to look with: the supervisor finds them
    for tid in threads:
        try:
            with open(f"/proc/self/task/{tid}/children", "rb") as file:
                found += [int(pid) for pid in file.read().split()]
        except OSError:
            continue  # the thread ended, or the kernel has no CONFIG_PROC_CHILDREN
    return found


def _tie(payload: dict[str, Any]) -> None:
    """Tie this process to its supervisor. Again after each change of identity: that clears PR_SET_PDEATHSIG."""
    if not payload["transient"]:
        prctl(PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != payload["parent_pid"]:
            os._exit(1)  # the supervisor died before the line above took effect
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # daemons that a library forks stay our children: the supervisor finds them
    try:
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)  # Yama allows only ancestors; forensics is a sibling
    except OSError:
        pass  # a kernel without Yama needs no permission


def _change(payload: dict[str, Any], journal: Journal) -> str | None:
    setup, not_done = payload["setup"], []
    dev, mknod, no_new_privs = "host", "kept", False

    def missed(what: str, why: object) -> None:
        not_done.append({"what": what, "why": str(why)})

    for name, kind in (("netns", CLONE_NEWNET), ("mntns", CLONE_NEWNS)):
        if setup[name] is not None:
            try:
                with journal.step("enter " + setup[name]):
                    _enter(setup[name], kind)
            except OSError as error:
                return f"namespace {setup[name]}: {error.strerror}"
    drop_mknod = setup["drop_mknod"]
    if setup["private_dev"]:
        from pytest_gpudiscovery.probes import private_dev  # noqa: PLC0415

        try:
            with journal.step("private /dev"):
                private_dev.enter()
            dev = "private"
        except OSError as error:
            missed("private_dev", error)
            drop_mknod = True  # the next best way to change nothing on the host
    if setup["limits"]:
        _limit(setup["limits"], missed)
    if setup["no_new_privs"]:
        try:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            no_new_privs = True
        except OSError as error:
            missed("no_new_privs", error)
    if drop_mknod:
        from pytest_gpudiscovery.probes import capabilities  # noqa: PLC0415

        try:
            said = capabilities.drop(capabilities.CAP_MKNOD)
            mknod = "dropped"
            if said is not None:
                missed("drop_mknod from the bounding set", said)
        except OSError as error:
            missed("drop_mknod", error)
    if setup["identity"] is not None:
        refusal = _become(setup["identity"])
        if refusal is not None:
            return refusal
        _tie(payload)
    try:
        if payload["cwd"] == "/":
            os.chdir("/")
        else:
            with journal.step("chdir " + payload["cwd"]):
                os.chdir(payload["cwd"])
    except OSError as error:
        return f"working directory {payload['cwd']}: {error.strerror}"
    facts = {
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "groups": os.getgroups(),
        "dev": dev,
        "no_new_privs": no_new_privs,
        "mknod": mknod,
        "not_done": not_done,
    }
    failures = []
    for index, interpreter in enumerate(payload["interpreters"]):
        from pytest_gpudiscovery.probes.boot import execute  # noqa: PLC0415

        journal.observe("setup", {**facts, "interpreter": interpreter})
        try:
            with journal.step("exec " + interpreter):  # `begin` ends it
                execute(payload, index)
        except OSError as error:
            failures.append(f"{interpreter}: {error.strerror}")
    if failures:
        return "no interpreter could be started: " + "; ".join(failures)
    journal.observe("setup", {**facts, "interpreter": sys.executable})
    return None


def _enter(path: str, kind: int) -> None:
    """Enter the namespace of KIND at PATH; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, kind) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(fd)


def _become(identity: dict[str, Any]) -> str | None:
    """Become IDENTITY for good; returns why that is impossible, and then the probe must not run."""
    uid, gid, groups = identity["uid"], identity["gid"], identity["groups"]
    wanted = f"uid {uid}, gid {gid}, groups {','.join(map(str, groups)) or '-'}"
    if (uid,) * 3 == os.getresuid() and (gid,) * 3 == os.getresgid() and set(groups) | {gid} == {*os.getgroups(), gid}:
        return None
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except (OSError, OverflowError) as error:
        return f"cannot become {wanted}: {getattr(error, 'strerror', error)}"
    if (os.getresuid(), os.getresgid(), set(os.getgroups())) != ((uid,) * 3, (gid,) * 3, set(groups)):
        return f"did not become {wanted}: uids {os.getresuid()}, gids {os.getresgid()}, groups {os.getgroups()}"
    return None


def _limit(limits: dict[str, list[int]], missed: Any) -> None:
    import resource  # noqa: PLC0415 - few probes set limits

    for name, (soft, hard) in limits.items():
        full = name if name.startswith("RLIMIT_") else "RLIMIT_" + name
        number = getattr(resource, full, None)
        if number is None:
            missed(full, "this system has no such limit")
            continue
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError, OverflowError) as error:
            missed(full, f"{error}; it stays {resource.getrlimit(number)}")
