"""Compile the simulated libraries and programs: with cc, with the ziglang package, or not at all (SimulationError).

Results are kept in a private directory below the temporary directory, named by the hash of sources, flags and
compiler, so that a run builds only what it never built before. Readable by all (probes may run as another user),
writable by the owner alone; a directory there that belongs to somebody else is an error, never used.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pytest_gpudiscovery.simulate.errors import SimulationError
from pytest_gpudiscovery.simulate.libraries import LIBRARIES, RPATH

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-fno-sanitize=undefined", "-s")
KEEP = "-Wl,--no-gc-sections"  # zig drops what nothing refers to: the device code
LIMIT_S = 120.0  # for one compilation; zig's first run also builds its own C library stubs
LINES_SHOWN = 3


Wanted = tuple[str, frozenset[str]]  # name in LIBRARIES, functions that it must not export
PLAIN: frozenset[str] = frozenset()


@functools.cache
def compiler() -> tuple[str, ...]:
    """Return the command of a C compiler; raises SimulationError where there is none."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return (found,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    raise SimulationError(
        "a simulated host needs a C compiler, and none of cc, gcc, clang is on PATH: "
        "install one, or `pip install 'pytest-gpudiscovery[simulate]'` for ziglang"
    )


def built(
    wanted: Iterable[Wanted], *, strict: bool = False, command: tuple[str, ...] | None = None
) -> dict[Wanted, Path]:
    """Return the files of WANTED libraries, compiled if need be, two at a time; STRICT makes warnings errors.

    COMMAND is the compiler to use instead of the one that is found. Raises SimulationError.
    """
    tools = command or compiler()
    cache = private_directory()
    unique = list(dict.fromkeys(wanted))
    made: dict[Wanted, Path] = {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        for rank in _ranks(unique):
            try:
                paths = pool.map(lambda one: _library(one, tools, cache, strict, made), rank)
            except RuntimeError as error:  # a container's pids limit
                raise SimulationError(f"a simulated host cannot be built: {error}") from None
            made.update(zip(rank, paths, strict=True))
    return {one: made[one] for one in unique}


def _ranks(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Yield WANTED with all that they are linked with, in groups: each needs only what groups before it hold."""
    left = set(wanted)
    added = left
    while added:
        added = {(name, PLAIN) for one in added for name in LIBRARIES[one[0]].links} - left
        left |= added
    done: set[Wanted] = set()
    while left:
        rank = {one for one in left if all((name, PLAIN) in done for name in LIBRARIES[one[0]].links)}
        yield sorted(rank, key=lambda one: (one[0], sorted(one[1])))
        left -= rank
        done |= rank


def private_directory() -> Path:
    """Return this user's build directory; raises SimulationError when what is there cannot be trusted."""
    try:
        path = Path(tempfile.gettempdir()) / f"pytest-gpudiscovery-simulate-{os.geteuid()}"
    except OSError as error:  # a container's read-only root directory
        raise SimulationError(f"a simulated host has nowhere to be built: {error.strerror}; give it a /tmp") from None
    try:
        path.mkdir(mode=0o755)
        path.chmod(0o755)  # whatever the umask says
    except FileExistsError:
        pass
    except OSError as error:
        raise SimulationError(f"{path} cannot be made: {error.strerror}; set TMPDIR to a directory of yours") from None
    if os.statvfs(path).f_flag & os.ST_NOEXEC:  # as `docker run --tmpfs /tmp` mounts it
        raise SimulationError(f"{path} lies on a noexec mount: set TMPDIR to a directory that libraries load from")
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SimulationError(
            f"{path} is not a directory that only uid {os.geteuid()} can write to: remove it, or set TMPDIR"
        )
    return path


def _library(wanted: Wanted, command: tuple[str, ...], cache: Path, strict: bool, made: Mapping[Wanted, Path]) -> Path:
    name, hidden = wanted
    arguments = _arguments(name, strict)
    linked = [str(made[(other, PLAIN)]) for other in LIBRARIES[name].links]
    target = cache / f"{name}-{_digest(name, hidden, command, arguments)}.so"
    if target.is_file():  # only whole files get this name
        return target
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as folder:
        result = Path(folder) / "library.so"
        script = Path(folder) / "symbols.map"
        text = _version_script(name, hidden)
        if text:
            script.write_text(text, encoding="ascii")
            arguments = [*arguments, f"-Wl,--version-script={script}"]
        system = ["-ldl", "-lpthread"] if LIBRARIES[name].libc else ["-nostdlib"]
        _run([*command, *arguments, "-o", str(result), *linked, *system], folder, cache)
        result.chmod(0o755)
        os.replace(result, target)  # atomic: a run beside this one sees no half file
    return target


def _arguments(name: str, strict: bool) -> list[str]:
    library = LIBRARIES[name]
    arguments = [*FLAGS, KEEP, *(["-Werror"] if strict else [])]
    arguments += ["-pie"] if library.program else ["-shared"]
    arguments += [f"-D{key}={value}" for key, value in library.defines.items()]
    if library.soname:
        arguments.append(f"-Wl,-soname,{library.soname}")
    if library.run_path:
        tags = "disable" if library.run_path == RPATH else "enable"
        arguments += [f"-Wl,--{tags}-new-dtags", "-Wl,-rpath,$ORIGIN"]
    return [*arguments, *(str(SOURCES / source) for source in library.sources)]


def _version_script(name: str, hidden: frozenset[str]) -> str:
    version = LIBRARIES[name].version
    if not hidden and not version:
        return ""
    local = "".join(f" {symbol};" for symbol in sorted(hidden))
    # unknown names are harmless: a library does not have to contain what it must not export
    return f"{version} {{ global: *;{f' local:{local}' if local else ''} }};\n"


def _digest(name: str, hidden: frozenset[str], command: tuple[str, ...], arguments: list[str]) -> str:
    found = hashlib.sha256(repr((name, sorted(hidden), command, arguments)).encode())
    found.update(str(Path(command[0]).stat().st_mtime_ns).encode())  # another compiler under the same name
    for source in sorted(SOURCES.iterdir()):
        found.update(source.name.encode() + b"\0" + source.read_bytes())
    return found.hexdigest()[:16]


def _run(command: list[str], folder: str, cache: Path) -> None:
    """Run COMMAND with a limit, its output in a file; raises SimulationError with its first lines."""
    # zig keeps its C library below HOME, which a container's user often does not have.
    env = {"ZIG_GLOBAL_CACHE_DIR": str(cache / "zig"), **os.environ}
    output = Path(folder) / f"output-{threading.get_ident()}"
    with output.open("wb") as sink:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=folder,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            raise SimulationError(f"{command[0]} cannot be run: {error.strerror}") from None
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SimulationError(f"{command[0]} did not finish within {LIMIT_S:g} s") from None
    with contextlib.suppress(ChildProcessError):  # pid 1 of a container inherits what zig leaves; each one is a task
        while os.waitpid(-process.pid, os.WNOHANG)[0]:
            pass
    if code:
        said = " / ".join(output.read_text(errors="replace").splitlines()[:LINES_SHOWN])
        raise SimulationError(f"{Path(command[0]).name} cannot build the simulated driver: {said or f'exit {code}'}")
