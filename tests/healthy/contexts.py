"""The process contexts of variants.tsv: words that say in what the gate is really started.

NAME=VALUE -NAME          an environment variable that is set, or not
bare_environment          none but PATH and those that the table sets
crowd                     a thousand of them, half a megabyte, one of them no UTF-8
nobody                    uid 65534 with no groups, no capabilities and an interpreter that it may run
group:N                   N is a supplementary group
caps:none caps:docker     root without capabilities, or with those that Docker leaves
limit:nofile=N            an rlimit, as prlimit(1) spells it
umask:MODE one_cpu nice closed_stdin
read_only_root            nothing but TMPDIR can be written
user_namespace            root of a user namespace
container_namespaces      user, pid, mount, IPC and UTS namespaces with a /proc of their own
network_namespace         a network that has only lo; no_ipv6: and that without IPv6
hosts:A,B                 localhost has these addresses in /etc/hosts
driver_by_cache           ld.so.cache names the driver in {folder}/driver, and LD_LIBRARY_PATH nothing of it
no_run                    nothing in /run: no systemd
hidden_pids               /proc shows no process of others (hidepid=2)
seccomp                   ptrace, perf_event_open, mount, unshare, bpf and keyctl are refused (EPERM)
deleted_directory         the current directory is gone
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from pytest_gpudiscovery import simulate

NOBODY = 65534
DOCKER = "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,sys_chroot,mknod,setfcap"
SECCOMP = Path(__file__).with_name("filtered.py")
PACKAGE = [sys.executable, "-m", "pytest_gpudiscovery"]
UNSHARE = ["unshare", "--mount", "--propagation", "private"]
SCRIPTS = {  # run in a mount namespace of their own, before the gate
    "read_only_root": 'mount --bind "$TMPDIR" "$TMPDIR" && mount -o remount,ro,bind /',
    "no_run": "mount -t tmpfs none /run",
    "hidden_pids": "mount -t proc -o hidepid=2 proc /proc",
}
NETWORK = {
    "network_namespace": "ip link set lo up",
    "no_ipv6": "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && ip link set lo up",
}


@dataclass
class Context:
    """How one gate is started: `prefix` comes before its command."""

    prefix: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    python: list[str] = field(default_factory=lambda: list(PACKAGE))  # what runs our package
    uid: int = 0
    cwd: str | None = None


def needs_root(words: str) -> bool:
    """Whether only root can make this context."""
    plain = ("bare_environment", "crowd", "umask:", "one_cpu", "nice", "closed_stdin", "limit:", "seccomp", "-")
    return not all(_is_variable(word) or word.startswith(plain) for word in shlex.split(words))


def make(words: str, folder: Path) -> Context:
    """Return the context that WORDS ask for; FOLDER is this run's own directory, with TMPDIR below it."""
    asked = shlex.split(words)
    context = Context(env=dict(os.environ), cwd=str(folder))
    for name in [name for name in context.env if name.startswith(("PYTEST_", "GPU_DISCOVERY_", "COV"))]:
        del context.env[name]
    if "bare_environment" in asked:
        context.env = {"PATH": os.environ["PATH"]}
    context.env["TMPDIR"] = str(folder / "tmp")
    inner: list[str] = []  # what is nearest to the gate
    for word in asked:
        _apply(word, context, inner, folder)
    context.prefix += inner
    return context


def _is_variable(word: str) -> bool:
    name = word.partition("=")[0]
    return "=" in word and name.replace("_", "").isalnum() and name.upper() == name


def _apply(word: str, context: Context, inner: list[str], folder: Path) -> None:
    kind, _, value = word.partition(":")
    if _is_variable(word):
        name, _, text = word.partition("=")
        context.env[name] = text.replace("{folder}", str(folder))
    elif word.startswith("-"):
        context.env.pop(word[1:], None)
    elif word == "bare_environment":
        pass  # made so at the beginning
    elif word == "crowd":
        context.env |= {f"VARIABLE_{number}": "x" * 500 for number in range(1000)}
        context.env |= {"NOT_UTF8": os.fsdecode(b"\xff\xfe"), "LINES_": "one\ntwo", "EMPTY": ""}
    elif word == "nobody":
        context.uid = NOBODY
        context.python = interpreter()
        context.env["HOME"] = "/nonexistent"
        inner[:0] = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"]
    elif kind == "group":
        inner[inner.index("--clear-groups")] = f"--groups={value}"
    elif kind == "caps":
        kept = "".join(f",+{name}" for name in DOCKER.split(",")) if value == "docker" else ""
        inner[:0] = ["setpriv", f"--bounding-set=-all{kept}", f"--inh-caps=-all{kept}"]
    elif kind == "limit":
        inner[:0] = ["prlimit", f"--{value}"]
    elif kind == "umask":
        inner[:0] = ["sh", "-c", f'umask {value} && exec "$@"', "sh"]
    elif word == "one_cpu":
        inner[:0] = ["taskset", "-c", "0"]
    elif word == "nice":
        inner[:0] = ["nice", "-n", "19"]
    elif word == "closed_stdin":
        inner[:0] = ["sh", "-c", 'exec "$@" <&-', "sh"]
    elif word == "seccomp":
        inner[:0] = [sys.executable, str(SECCOMP)]
    elif word in SCRIPTS:
        context.prefix += [*UNSHARE, "sh", "-c", f'{SCRIPTS[word]} && exec "$@"', "sh"]
    elif kind == "hosts":
        (folder / "hosts").write_text("".join(f"{address} localhost\n" for address in value.split(",")))
        context.prefix += [*UNSHARE, "sh", "-c", f'mount --bind {folder}/hosts /etc/hosts && exec "$@"', "sh"]
    elif word == "driver_by_cache":
        driver = folder / "driver"
        simulate.prepare(simulate.parse("h100"), str(driver))
        (driver / "ld.so.conf").write_text(f"{driver}/lib\ninclude /etc/ld.so.conf\n")
        files = ["-f", str(driver / "ld.so.conf"), "-C", str(driver / "ld.so.cache")]
        subprocess.run([shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin") or "ldconfig", "-X", *files], check=True)
        script = f'mount --bind {driver}/ld.so.cache /etc/ld.so.cache && exec "$@"'
        context.prefix += [*UNSHARE, "sh", "-c", script, "sh"]
    elif word in NETWORK:
        context.prefix += ["unshare", "--net", "sh", "-c", f'{NETWORK[word]} && exec "$@"', "sh"]
    elif word == "user_namespace":
        context.prefix += ["unshare", "--user", "--map-root-user"]
    elif word == "container_namespaces":
        context.prefix += ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--ipc", "--uts"]
    elif word == "deleted_directory":
        inner[:0] = ["sh", "-c", 'mkdir "$TMPDIR/gone" && cd "$TMPDIR/gone" && rmdir ../gone && exec "$@"', "sh"]
    else:
        raise ValueError(f"unknown word of a context: {word!r}")


def interpreter() -> list[str]:
    """Return the beginning of a command that runs our package as uid 65534, who may not reach sys.executable."""
    if all(parent.stat().st_mode & 0o001 for parent in Path(os.path.realpath(sys.executable)).parents):
        return PACKAGE
    system = next(path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if shutil.which(path))
    code = f"import runpy, site; site.addsitedir({sysconfig.get_path('purelib')!r})"
    return [system, "-B", "-c", f"{code}; runpy.run_module('pytest_gpudiscovery', run_name='__main__', alter_sys=True)"]
