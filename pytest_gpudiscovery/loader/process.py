"""The process in which dlopen is called: its executable, what is loaded already and under which names, its scopes.

Mapping is breadth first (elf/dl-deps.c): all dependencies of an object are mapped before their own, and the first
requester of a name decides. Where ld.so would stop at the first failure, mapping goes on here and every failure is
kept in order: the first is ld.so's answer, the others are what would come next.
"""

from __future__ import annotations

import errno
import os
import stat

from pytest_gpudiscovery.loader import problems
from pytest_gpudiscovery.loader.elf import DF_1_NOOPEN, DT_AUXILIARY, DT_NEEDED, PAGE, PF_X, Elf
from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.hostld import INTERPRETER, HostLoader, host_loader
from pytest_gpudiscovery.loader.linkmap import Edge, Failure, LinkMap, ProcessModel
from pytest_gpudiscovery.loader.mounts import Mounts
from pytest_gpudiscovery.loader.problems import UNSUPPORTED, Refused, Skipped
from pytest_gpudiscovery.loader.rules import NEWEST, rules_for
from pytest_gpudiscovery.loader.search import Search, Tried, expand
from pytest_gpudiscovery.loader.staticblock import StaticTls

OBJECTS = 4096  # in one process; more is a hostile chain of files
ALREADY, SAME_FILE = "already loaded", "same file as one loaded"


class Process:
    """Link maps, scopes and edges of one simulated process. Raises Refused (kind "unsupported") when it cannot
    exist.
    """

    def __init__(self, root: Root, env: dict[str, str], model: ProcessModel, loader: HostLoader | None = None) -> None:
        self.root = root
        self.model = model
        self.maps: list[LinkMap] = []
        self.globals: list[LinkMap] = []
        self.edges: list[Edge] = []
        self.failures: list[Failure] = []
        self.mounts = Mounts()
        self.address_space = 0
        executable = self._executable(model.exe) if model.exe else None
        interpreter = executable.interpreter if executable is not None else INTERPRETER
        if interpreter is None:
            raise Refused("a static executable has no dlopen that this could predict", str(model.exe), UNSUPPORTED)
        self.secure = model.secure if model.secure is not None else _is_secure(root, model.exe)
        tunables = "" if self.secure else env.get("GLIBC_TUNABLES", "")
        self.loader = loader or host_loader(interpreter, root, tunables)
        self.tunables = dict(item.partition("=")[::2] for item in tunables.split(":") if "=" in item)
        self.search = Search(root, self.loader, env.get("LD_LIBRARY_PATH"), self.secure)
        self.stack_executable = executable is not None and executable.executable_stack
        if self.tunables.get("glibc.rtld.execstack") == "2" and not self.loader.rules.dlopen_makes_stack_executable:
            self.stack_executable = True
        self.main = self._start(executable, interpreter, env)
        self.tls = StaticTls(
            [loaded.elf.tls for loaded in self.maps if loaded.elf.tls is not None],
            self.tunables,
            self.loader.rules.surplus_tunables,
            self.loader.rules.rseq_in_static_tls,
        )

    def close(self) -> None:
        """Close every file."""
        self.search.cache.close()
        for loaded in self.maps:
            loaded.elf.close()

    # -- start-up

    def _executable(self, path: str) -> Elf:
        try:
            elf = Elf(self.root, self.root.real(path))
        except Skipped as skipped:
            raise Refused(f"the executable cannot be used: {skipped.reason}", path, UNSUPPORTED) from None
        elf.load(rules_for(NEWEST), executable=True)
        if elf.segments:
            self.address_space += _span(elf)
        return elf

    def _start(self, executable: Elf | None, interpreter: str, env: dict[str, str]) -> LinkMap:
        path = self.root.real(interpreter)
        try:
            rtld = Elf(self.root, path).load(self.loader.rules, interpreter=True)
        except Skipped as skipped:  # the kernel's exec fails
            text = f"the program does not start: its loader cannot be used ({skipped.reason})"
            raise Refused(text, interpreter, problems.NO_START) from None
        self.address_space += _span(rtld)
        elf = executable or rtld
        main = LinkMap(elf, "", "", os.path.dirname(elf.name), None, "executable")
        self.search.main = main
        self.maps.append(main)
        interp = LinkMap(rtld, interpreter, interpreter, os.path.dirname(interpreter), None, "PT_INTERP")
        interp.names.add(rtld.soname or interpreter)
        self.maps.append(interp)
        main.by_kernel = interp.by_kernel = True
        preloaded = [found for name, where in self._preloads(env) if (found := self._preload(name, where, main))]
        wanted = None if executable is not None else [(DT_NEEDED, "libc.so.6")]
        self.globals = main.scope = self._breadth_first([main, *preloaded], dlopen=False, instead={id(main): wanted})
        for loaded in self.maps:
            loaded.relocated = loaded.checked = loaded.at_startup = True
        return main

    def _preloads(self, env: dict[str, str]) -> list[tuple[str, str]]:
        """Return (name, where it is asked for): LD_PRELOAD, the model's, then ld.so.preload."""
        names = env.get("LD_PRELOAD", "").replace(":", " ").split(" ")
        found = [(name, "LD_PRELOAD") for name in (*names, *self.model.preload) if name]
        if self.secure:
            found = [(name, where) for name, where in found if "/" not in name]
        configured = f"{self.loader.configuration}/ld.so.preload"
        try:
            text = self.root.read(configured, 1 << 16).decode("utf-8", "surrogateescape")
        except OSError:
            return found
        lines = (line.partition("#")[0] for line in text.split("\n"))
        return found + [(name, configured) for line in lines for name in line.replace(":", " ").split()]

    def _preload(self, name: str, where: str, main: LinkMap) -> LinkMap | None:
        try:
            found = self._map(name, main, dlopen=False)
            if self.secure and "/" not in name and not _set_uid(self.root, found.path):
                self.maps.remove(found)
                return None
            return found
        except Refused as refused:
            ignored = Refused(f"object '{name}' from {where} cannot be preloaded ({refused.text}): ignored.", "")
            self.failures.append(Failure("preload", ignored, main, ends=refused.kind != problems.ERROR))
            return None

    # -- mapping

    def by_name(self, name: str) -> LinkMap | None:
        """Return the object that has NAME, or whose DT_SONAME it is (which then becomes one of its names)."""
        for loaded in self.maps:
            if name in loaded.names:
                return loaded
            if loaded.elf.soname == name:
                loaded.names.add(name)
                return loaded
        return None

    def _map(self, name: str, requester: LinkMap, dlopen: bool, called: bool = False) -> LinkMap:
        """_dl_map_object: return the object for NAME, mapped now or before; raises Refused. `called`: by dlopen
        itself.
        """
        tried: list[Tried] = []
        edge = Edge(None if called else requester, name, None, "", tried)
        self.edges.append(edge)
        found = self.by_name(name)
        if found is not None:
            edge.found, edge.rule = found, ALREADY
            return found
        path, edge.rule, elf = self.search.open(name, requester, tried)
        for loaded in self.maps:
            if loaded.elf.file.identity == elf.file.identity and loaded and not loaded.by_kernel:
                elf.close()
                loaded.names.add(name)
                edge.found, edge.rule = loaded, SAME_FILE
                return loaded
        try:
            if len(self.maps) >= OBJECTS:
                raise Refused(f"more than {OBJECTS} objects", name, UNSUPPORTED)
            elf.load(self.loader.rules)
            self._check_mapping(elf, dlopen)
        except Refused as refused:
            tried[-1] = Tried(path, edge.rule, refused.text)
            elf.close()
            raise Refused(refused.text, name, refused.kind, refused.errno) from None
        origin = os.path.dirname(self.root.absolute(path)) or "/"
        found = LinkMap(elf, path, name, origin, None if called else requester, edge.rule)
        edge.found = found
        self.maps.append(found)
        return found

    def _check_mapping(self, elf: Elf, dlopen: bool) -> None:
        self.address_space += _span(elf)
        limit = self.model.address_space
        if limit is not None and self.address_space > limit:
            raise Refused(problems.CANNOT_MAP, elf.name)
        if any(segment.flags & PF_X for segment in elf.segments):
            options = self.mounts.of(self.root.real(elf.name))[1] if self.root.prefix is None else ()
            if "noexec" in options:
                raise Refused(problems.CANNOT_MAP, elf.name)
        if dlopen and elf.flags_1 & DF_1_NOOPEN:
            raise Refused(problems.NO_OPEN, elf.name)
        if elf.executable_stack and not self.stack_executable:
            if dlopen and not self.loader.rules.dlopen_makes_stack_executable:
                raise Refused(problems.EXECUTABLE_STACK, elf.name, errno=errno.EINVAL)
            self.stack_executable = True

    def _breadth_first(
        self, roots: list[LinkMap], dlopen: bool, instead: dict[int, list[tuple[int, str]] | None] | None = None
    ) -> list[LinkMap]:
        """_dl_map_object_deps: return the search list of ROOTS. Failures are kept and mapping goes on."""
        self.search.errno = 0
        queue = list(roots)
        listed = {id(loaded) for loaded in queue}
        done: set[int] = set()
        at = 0
        while at < len(queue):
            current = queue[at]
            if id(current) in done:
                at += 1
                continue
            done.add(id(current))
            position = at
            first_time = not current.dependencies
            wanted = (instead or {}).get(id(current)) or current.elf.needed
            for tag, text in wanted:
                dependency = self._dependency(tag, text, current, dlopen)
                if dependency is None:
                    continue
                if first_time:
                    current.dependencies.append(dependency)
                if tag == DT_NEEDED:
                    if id(dependency) not in listed:
                        listed.add(id(dependency))
                        queue.append(dependency)
                    continue
                if id(dependency) in listed:  # a filter already in the list moves before what it filters
                    where = queue.index(dependency)
                    if where < position:
                        continue
                    del queue[where]
                listed.add(id(dependency))
                queue.insert(position, dependency)
                self.maps.remove(dependency)
                self.maps.insert(self.maps.index(current), dependency)
                position += 1
        return queue

    def _dependency(self, tag: int, text: str, requester: LinkMap, dlopen: bool) -> LinkMap | None:
        name = expand(text, requester, self.loader, self.secure)
        try:
            if not name and text:
                raise Refused("empty dynamic string token substitution", requester.name)
            return self._map(name, requester, dlopen)
        except Refused as refused:
            if tag != DT_AUXILIARY or refused.kind != problems.ERROR:
                self.failures.append(Failure("file", refused, requester))
            return None

    def dlopen(self, name: str) -> LinkMap | None:
        """Map NAME and its dependencies as dlopen called by the executable does; failures are added to `failures`."""
        try:
            root = self._map(name, self.main, dlopen=True, called=True)
        except Refused as refused:
            self.failures.append(Failure("file", refused, None))
            return None
        if root.scope is None:
            root.scope = self._breadth_first([root], dlopen=True)
            if root.scope[0] is not root and self.loader.rules.filtered_root_aborts:
                text = "Inconsistency detected by ld.so: _dl_map_object_deps: assertion failed"
                self.failures.append(Failure("file", Refused(text, root.name, problems.ABORT), root))
        return root

    def promote(self, root: LinkMap) -> None:
        """Add ROOT and its dependencies to the global scope (RTLD_GLOBAL)."""
        self.globals.extend(loaded for loaded in root.scope or [] if loaded not in self.globals)

    def forget(self, kept: set[int]) -> None:
        """Unmap everything but the objects whose id is in KEPT: what ld.so does when a dlopen fails."""
        for loaded in self.maps:
            if id(loaded) not in kept:
                loaded.elf.close()
        self.maps = [loaded for loaded in self.maps if id(loaded) in kept]


def _span(elf: Elf) -> int:
    """Bytes of address space, in whole pages."""
    return elf.span + PAGE - 1 & -PAGE


def _set_uid(root: Root, path: str) -> bool:
    try:
        return bool(os.stat(root.host(path)).st_mode & stat.S_ISUID)
    except OSError:
        return False


def _is_secure(root: Root, exe: str | None) -> bool:
    """Whether the kernel would set AT_SECURE for this user: set-uid, set-gid, or capabilities of the file."""
    if exe is None:
        return False
    try:
        path = root.host(exe)
        found = os.stat(path)
    except OSError:
        return False
    if found.st_mode & stat.S_ISUID and found.st_uid != os.getuid():
        return True
    if found.st_mode & stat.S_ISGID and found.st_mode & stat.S_IXGRP and found.st_gid != os.getgid():
        return True
    try:
        return os.geteuid() != 0 and bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False
