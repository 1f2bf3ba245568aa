"""What dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL) would do in a process: the public answer of this package."""

from __future__ import annotations

import os

from pytest_gpudiscovery.loader import elf as e
from pytest_gpudiscovery.loader.elf import PAGE, PF_W
from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.hostld import HostLoader
from pytest_gpudiscovery.loader.linkmap import Edge, Failure, LinkMap, ProcessModel
from pytest_gpudiscovery.loader.mounts import may_block
from pytest_gpudiscovery.loader.problems import ERROR, LOADS, NO_START, UNSUPPORTED, Refused
from pytest_gpudiscovery.loader.process import ALREADY, Process
from pytest_gpudiscovery.loader.record import dataclass
from pytest_gpudiscovery.loader.relocate import Bindings, check, check_versions
from pytest_gpudiscovery.loader.search import Tried


@dataclass(frozen=True)
class Problem:
    """One objection, in ld.so's words; of symbols that are missing the first 4,096 are kept.

    `kind`: file, version, isa, symbol, relocation, preload or process. `text` is what dlerror() would print if this
    one came first; `subject` the object or name it is about; `requester` the path of the object on whose behalf, ""
    for the program. `follows`: a consequence of an earlier missing file (its symbols, for instance).
    """

    kind: str
    outcome: str
    text: str
    subject: str
    requester: str
    follows: bool = False


@dataclass(frozen=True)
class Dependency:
    """One name that a new object asked for.

    `path` is None when nothing was found. `rule` names what led to the file (search.py), or that it was loaded already.
    `tried` are the candidates in order, the last one used or refused; `shadows` the (file, rule) that would come next.
    """

    requester: str
    name: str
    path: str | None
    rule: str
    tried: tuple[Tried, ...]
    shadows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class LoadedObject:
    """A file that this dlopen maps. Sizes are bytes.

    `path` as ld.so spells it, `real_path` with links resolved. `needed` in order. `constructors` counts DT_INIT and
    DT_INIT_ARRAY entries, `ifuncs` IRELATIVE relocations. `cold_bytes` is a lower bound of what dlopen reads from a
    cold disk: tables and writable segments. `file_system` is the mount's type, `may_block` whether it waits for a
    server. `truncated`: the file is shorter than its segments.
    """

    path: str
    real_path: str
    soname: str | None
    requester: str
    rule: str
    needed: tuple[str, ...]
    rpath: str | None
    runpath: str | None
    size: int
    span: int
    cold_bytes: int
    constructors: int
    ifuncs: int
    undefined_symbols: int
    tls_size: int
    static_tls: bool
    executable_stack: bool
    text_relocations: bool
    truncated: bool
    file_system: str
    may_block: bool


@dataclass(frozen=True)
class Closure:
    """The predicted end of one dlopen.

    `outcome` is one of problems.py (loads, error, abort, sigbus, sigsegv, hangs, unsupported); `message` what
    dlerror() or stderr would say, "" when it loads. `objects` are the new ones in link map order, `process` the paths
    loaded before. `problems`: the first that is no consequence decides the outcome. `duplicates`: (path, path) of one
    library under two names. `bindings`: (requester, symbol, version, defining path) if asked for.
    """

    library: str
    outcome: str
    message: str
    objects: tuple[LoadedObject, ...]
    dependencies: tuple[Dependency, ...]
    problems: tuple[Problem, ...]
    process: tuple[str, ...]
    duplicates: tuple[tuple[str, str], ...]
    symbols_checked: int
    loader: HostLoader | None
    bindings: tuple[tuple[str, str, str, str], ...] = ()

    @property
    def loads(self) -> bool:
        """The loader has no objection."""
        return self.outcome == LOADS

    @property
    def missing(self) -> tuple[str, ...]:
        """The names for which no usable file was found."""
        return tuple(dict.fromkeys(item.name for item in self.dependencies if item.path is None))

    @property
    def address_space(self) -> int:
        """Bytes of address space that the new objects take."""
        return sum(item.span + PAGE - 1 & -PAGE for item in self.objects)

    def outside(self, directories: tuple[str, ...]) -> tuple[LoadedObject, ...]:
        """Return the new objects whose files are in none of DIRECTORIES."""
        inside = tuple(os.path.realpath(directory).rstrip("/") + "/" for directory in directories)
        return tuple(item for item in self.objects if not item.real_path.startswith(inside))

    def of(self, name: str) -> Dependency | None:
        """Return the request that decided about NAME (a DT_NEEDED, a path, or libcuda for libcuda.so.1), or None."""
        by_name = [
            item for item in self.dependencies if name in (item.name, item.path, os.path.basename(item.path or ""))
        ]
        by_stem = [item for item in self.dependencies if item.name.partition(".so")[0] == name]
        found = by_name or by_stem
        return next((item for item in found if item.rule != ALREADY), found[0] if found else None)


def predict(
    library: str,
    *,
    env: dict[str, str],
    cwd: str = "/",
    exe: str | None = None,
    process: ProcessModel | None = None,
    root: str | None = None,
    loader: HostLoader | None = None,
    bindings: bool = False,
    shadows: bool = True,
) -> Closure:
    """Predict dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL); executes nothing but the dynamic loader's --list-diagnostics.

    `env` is the environment of the process, `cwd` its working directory, `exe` its executable (or `process` for its
    whole state), `root` another root directory. `loader`: facts to use instead of asking. Never raises for what files
    contain; a file system that does not answer can block it.
    """
    where = Root(root, cwd)
    model = process or ProcessModel(exe=exe)
    made: Process | None = None
    try:
        made = Process(where, env, model, loader)
        return _not_started(made, library) or _predict(made, library, bindings, shadows)
    except Refused as refused:
        return _impossible(library, refused)
    finally:
        if made is not None:
            made.close()


def _impossible(library: str, refused: Refused) -> Closure:
    problem = Problem("process", refused.kind, refused.message, refused.subject, "")
    outcome = refused.kind if refused.kind != "error" else UNSUPPORTED
    return Closure(library, outcome, refused.message, (), (), (problem,), (), (), 0, None)


def _not_started(process: Process, library: str) -> Closure | None:
    """Return the answer when the program itself lacks a file or a version; its symbols are bound lazily and not
    checked.
    """
    check_versions(process)
    fatal = next((item for item in process.failures if item.kind != "preload" or item.ends), None)
    if fatal is None:
        return None
    kind = NO_START if fatal.refused.kind == ERROR else fatal.refused.kind
    refused = Refused(f"the program does not start: {fatal.refused.message}", "", kind)
    return _impossible(library, refused)


def _predict(process: Process, library: str, want_bindings: bool, shadows: bool) -> Closure:
    for path, into_global in process.model.opened:
        _open_before(process, path, into_global)
    before = {id(item) for item in process.maps}
    edges = len(process.edges)
    earlier = list(process.failures)
    process.failures.clear()
    bindings: Bindings = {}
    root = process.dlopen(library)
    looked_up = check(process, root, bindings if want_bindings else None) if root is not None else 0
    found = _problems(process, earlier)
    decisive = next((item for item in found if item.kind not in ("preload", "process") and not item.follows), None)
    new = [item for item in process.maps if id(item) not in before]
    return Closure(
        library=library,
        outcome=decisive.outcome if decisive else LOADS,
        message=decisive.text if decisive else "",
        objects=tuple(_describe(process, item) for item in new),
        dependencies=tuple(_dependency(process, edge, shadows) for edge in process.edges[edges:]),
        problems=tuple(found),
        process=tuple(item.path for item in process.maps if id(item) in before),
        duplicates=_duplicates(process.maps, new),
        symbols_checked=looked_up,
        loader=process.loader,
        bindings=tuple((*key, value) for key, value in bindings.items()),
    )


def _open_before(process: Process, path: str, into_global: bool) -> None:
    """One dlopen of the process's past: it takes effect, or leaves nothing behind."""
    known, failed = {id(item) for item in process.maps}, len(process.failures)
    opened = process.dlopen(path)
    if opened is not None:
        check(process, opened)
    if len(process.failures) > failed:
        process.forget(known)
    elif opened is not None and into_global:
        process.promote(opened)


def _problems(process: Process, earlier: list[Failure]) -> list[Problem]:
    found = [
        Problem(
            "preload" if item.kind == "preload" else "process",
            item.refused.kind,
            item.refused.message,
            item.refused.subject,
            "",
        )
        for item in earlier
    ]
    missing = any(item.kind == "file" for item in process.failures)
    for item in process.failures:
        refused = item.refused
        requester = item.requester.path if item.requester is not None else ""
        follows = missing and item.kind in ("symbol", "version")
        found.append(Problem(item.kind, refused.kind, refused.message, refused.subject, requester, follows))
    return found


def _dependency(process: Process, edge: Edge, shadows: bool) -> Dependency:
    path = edge.found.path if edge.found is not None else None
    behind: tuple[tuple[str, str], ...] = ()
    if shadows and path is not None and edge.tried and "/" not in edge.name:
        behind = tuple(process.search.shadowed(edge.name, edge.tried[-1].path, edge.requester or process.main))
    requester = edge.requester.path if edge.requester is not None else ""
    return Dependency(requester, edge.name, path, edge.rule, tuple(edge.tried), behind)


def _describe(process: Process, item: LinkMap) -> LoadedObject:
    elf = item.elf
    tables = elf.dynamic
    real = process.root.real(item.path)
    kind, _ = process.mounts.of(real) if process.root.prefix is None else ("", None)
    tables_size = tables.get(e.DT_RELASZ, 0) + tables.get(e.DT_PLTRELSZ, 0) + tables.get(e.DT_RELRSZ, 0)
    tables_size += tables.get(e.DT_STRSZ, 0)
    writable = sum(segment.file_size for segment in elf.segments if segment.flags & PF_W)
    requester = item.loader
    return LoadedObject(
        path=item.path,
        real_path=real,
        soname=elf.soname,
        requester=requester.elf.name if requester is not None else "",
        rule=item.rule,
        needed=tuple(text for tag, text in elf.needed if tag == e.DT_NEEDED),
        rpath=elf.rpath,
        runpath=elf.runpath,
        size=elf.file.size,
        span=elf.span,
        cold_bytes=min(elf.file.size, tables_size + writable),
        constructors=(e.DT_INIT in tables) + tables.get(e.DT_INIT_ARRAYSZ, 0) // 8,
        ifuncs=item.relocations.ifuncs if item.relocations is not None else 0,
        undefined_symbols=len(item.relocations.undefined) if item.relocations is not None else 0,
        tls_size=elf.tls.size if elf.tls is not None else 0,
        static_tls=item.static_offset is not None,
        executable_stack=elf.executable_stack,
        text_relocations=e.DT_TEXTREL in tables or bool(elf.flags & e.DF_TEXTREL),
        truncated=any(segment.offset + segment.file_size > elf.file.size for segment in elf.segments),
        file_system=kind,
        may_block=may_block(kind),
    )


def _stem(item: LinkMap) -> str:
    """The name of a library without its version: libcudart for libcudart.so.12."""
    return (item.elf.soname or os.path.basename(item.path)).partition(".so")[0]


def _duplicates(maps: list[LinkMap], new: list[LinkMap]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of objects that are one library under two names, at least one of them new."""
    first: dict[str, LinkMap] = {}
    found = []
    for item in maps[1:]:
        other = first.setdefault(_stem(item), item)
        if other is not item and (item in new or other in new):
            found.append((other.path, item.path))
    return tuple(found)
