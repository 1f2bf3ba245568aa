"""The real dynamic loader as oracle: build files, dlopen them in a child, predict the same, compare."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path

from pytest_gpudiscovery.loader import predict
from pytest_gpudiscovery.loader.elf import PROGRAM_HEADER, Elf
from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.linkmap import ProcessModel
from pytest_gpudiscovery.loader.rules import NEWEST, rules_for

HERE = Path(__file__).resolve().parent
NEW, OLD = "-Wl,--enable-new-dtags", "-Wl,--disable-new-dtags"  # DT_RUNPATH, DT_RPATH
SECONDS = 4  # a dlopen that takes longer hangs
NOBODY = 65534


@dataclass(frozen=True)
class Loader:
    """A dynamic loader with its libc: the host's (`directory` None) or that of an unpacked package."""

    name: str
    interpreter: str
    directory: str | None = None


@dataclass(frozen=True)
class Case:
    """One dlopen: `mounts` is a shell command run first in a mount namespace of its own."""

    library: str
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = "/"
    exe: str | None = None
    opened: tuple[tuple[str, bool], ...] = ()
    uid: int | None = None
    mounts: str | None = None
    address_space: int | None = None
    loads: bool | None = None
    """What the case is meant to show on the host's loader; None where it depends on the version."""


@dataclass(frozen=True)
class Answer:
    """What happened, or was predicted: outcome, message, the new files in link map order."""

    outcome: str
    message: str
    files: tuple[str, ...]


class Builder:
    """Builds the files of one case below `directory` with the C compiler and by editing bytes."""

    def __init__(self, directory: Path, probe: str) -> None:
        self.directory = directory
        self.probe = probe

    def __truediv__(self, name: str) -> Path:
        return self.directory / name

    def cc(self, *words: str) -> None:
        """Run the compiler in the case's directory."""
        done = subprocess.run(
            ["cc", *words], cwd=self.directory, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

    def library(
        self,
        path: str,
        source: str = "",
        needs: tuple[str, ...] = (),
        flags: tuple[str, ...] = (),
        soname: str | None = None,
    ) -> str:
        """Build a shared library linked with NEEDS; soname "" leaves DT_SONAME out. Return its path."""
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        name = target.name if soname is None else soname
        code = target.with_suffix(".c")
        code.write_text(source or f"int id_{''.join(c if c.isalnum() else '_' for c in path)};\n")
        words = ["-shared", "-fPIC", "-O1", "-o", str(target), str(code), "-Wl,--no-as-needed"]
        words += [f"-Wl,-soname,{name}"] if name else []
        words += [str(self.directory / need) for need in needs]
        self.cc(*words, *flags, "-Wl,--allow-shlib-undefined")
        code.unlink()
        return str(target)

    def versioned(self, path: str, script: str, source: str) -> str:
        """Build a library with a version script."""
        text = self.directory / "versions.map"
        text.write_text(script)
        return self.library(path, source, flags=(f"-Wl,--version-script={text}",))

    def patch(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite bytes."""
        with open(self.directory / path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def ldconfig(self, configuration: str, cache: str) -> None:
        """Write a cache of the directories in CONFIGURATION."""
        words = ["-X", "-f", str(self.directory / configuration), "-C", str(self.directory / cache)]
        command = shutil.which("ldconfig", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert command is not None
        subprocess.run([command, *words], check=True, timeout=60, capture_output=True)

    def copy(self, source: str, target: str) -> str:
        """Copy a file, making directories."""
        (self.directory / target).parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(self.directory / source, self.directory / target))

    def executable(self, path: str, *flags: str, source: Path = HERE / "probe.c") -> str:
        """Build the probe with other flags."""
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        self.cc("-o", str(target), str(source), *flags, "-ldl")
        return str(target)

    def segment(self, path: str, kind: int, change: Callable[[list[int]], None]) -> None:
        """Edit the fields (type, flags, offset, vaddr, paddr, filesz, memsz, align) of the first segment of KIND."""
        data = bytearray((self.directory / path).read_bytes())
        start, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
        for number in range(count):
            at = start + PROGRAM_HEADER.size * number
            fields = list(PROGRAM_HEADER.unpack_from(data, at))
            if fields[0] == kind:
                change(fields)
                PROGRAM_HEADER.pack_into(data, at, *fields)
                (self.directory / path).write_bytes(data)
                return
        raise AssertionError(f"{path} has no segment {kind:#x}")

    def dynamic(self, path: str, tag: int, new_tag: int, value: int | None = None, nth: int = 0) -> None:
        """Rewrite the Nth dynamic entry with TAG."""
        elf = Elf(Root(), str(self.directory / path)).load(rules_for(NEWEST), executable=True)
        data = bytearray((self.directory / path).read_bytes())
        segment = next(f for f in PROGRAM_HEADER.iter_unpack(elf.program_headers) if f[0] == 2)
        entries = range(segment[2], segment[2] + segment[5], 16)
        found = [at for at in entries if struct.unpack_from("<q", data, at)[0] == tag]
        old = struct.unpack_from("<Q", data, found[nth] + 8)[0]
        struct.pack_into("<qQ", data, found[nth], new_tag, old if value is None else value)
        (self.directory / path).write_bytes(data)
        elf.close()


def build_probe(directory: Path, loader: Loader) -> str:
    """Build the probe that runs under LOADER."""
    target = directory / f"probe-{loader.name}"
    words = ["cc", "-o", str(target), str(HERE / "probe.c")]
    if loader.directory is not None:  # linked with that libc, or it would want versions that an older one lacks
        libraries = [f"{loader.directory}/{name}" for name in ("libdl.so.2", "libc.so.6", "ld-linux-x86-64.so.2")]
        words += [OLD, f"-Wl,-rpath,{loader.directory}", f"-Wl,--dynamic-linker={loader.interpreter}"]
        words += ["-nodefaultlibs", *libraries]
    else:
        words.append("-ldl")
    subprocess.run(words, check=True, timeout=60, capture_output=True)
    return str(target)


def _inside(case: Case, words: list[str]) -> list[str]:
    """WORDS in the mount namespace and under the limits of CASE."""
    before = [case.mounts] if case.mounts else []
    if case.address_space:
        before.append(f"ulimit -v {case.address_space // 1024}")
    if not before:
        return words
    pairs = [f"{name}={value}" for name, value in case.env.items()]
    namespace = ["unshare", "-m"] if case.mounts else []
    return [*namespace, "sh", "-ec", "; ".join([*before, 'exec env -i "$@"']), "sh", *pairs, *words]


def run_case(case: Case, words: list[str], seconds: float = SECONDS) -> tuple[int | None, str, str]:
    """Return (exit status or None when it hangs, stdout, stderr) of a child in the circumstances of CASE."""
    wrapped = _inside(case, words)
    child = subprocess.Popen(
        wrapped,
        env=case.env if wrapped is words else {"PATH": os.environ["PATH"]},
        cwd=case.cwd,
        user=case.uid,
        group=case.uid,
        extra_groups=[] if case.uid is not None else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # what a script started holds its pipes
        child.communicate()
        return None, "", ""
    return child.returncode, output, errors


def real(case: Case, probe: str) -> Answer:
    """Really dlopen the library of CASE."""
    words = [case.exe or probe]
    for path, into_global in case.opened:
        words += ["-g" if into_global else "-p", path]
    status, output, errors = run_case(case, [*words, case.library])
    old, new, message = [], [], ""
    outcome = {None: "hangs", -signal.SIGBUS: "sigbus", -signal.SIGSEGV: "sigsegv"}.get(
        status, f"exit {status}: {errors[-200:]}"
    )
    for line in output.splitlines():
        word, _, rest = line.partition(" ")
        if word == "ok":
            outcome = "loads"
        elif word == "error":
            outcome, message = "error", rest
        elif word == "old":
            old.append(rest)
        elif word == "map":
            new.append(rest)
    if status == 127 and "Inconsistency detected" in errors:
        outcome = "abort"
    return Answer(outcome, message, tuple(path for path in new if path not in old) if outcome == "loads" else ())


def predicted(case: Case, probe: str) -> Answer:
    """Predict the same dlopen: in a forked child where mounts or another user matter."""
    if case.mounts is None and case.uid is None:
        return _predict(case, probe)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if case.mounts:
                _enter_namespace(case.mounts)
            if case.uid is not None:
                os.setgroups([])
                os.setgid(case.uid)
                os.setuid(case.uid)
            os.write(writer, json.dumps(astuple(_predict(case, probe))).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as answers:
        answer = answers.read()
    assert os.waitpid(child, 0)[1] == 0
    outcome, message, files = json.loads(answer)
    return Answer(outcome, message, tuple(files))


def _predict(case: Case, probe: str) -> Answer:
    model = ProcessModel(exe=case.exe or probe, opened=case.opened, address_space=case.address_space)
    found = predict(case.library, env=case.env, cwd=case.cwd, process=model)
    message = found.message if found.outcome == "error" else ""  # a process that ends says nothing
    return Answer(found.outcome, message, tuple(item.path for item in found.objects) if found.loads else ())


def _enter_namespace(command: str) -> None:
    """unshare -m, then the mounts: they are gone with this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x20000, 0x44000  # CLONE_NEWNS; MS_REC | MS_PRIVATE
    assert libc.unshare(new_namespace) == 0
    assert libc.mount(b"none", b"/", None, private, None) == 0
    subprocess.run(["sh", "-ec", command], check=True, timeout=20)
