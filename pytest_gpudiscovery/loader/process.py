"""The process in which dlopen is called: its executable, what is loaded already and under which names, its scopes.

Mapping is breadth first (elf/dl-deps.c): all dependencies of an object are mapped before their own, and the first requester
of a name decides. Where ld.so would stop at the first failure, mapping goes on here and every failure is kept in order: the
first is ld.so's answer, the others are what would come next.
"""

from __future__ import annotations

import errno
import os

from pytest_gpudiscovery.loader import problems
from pytest_gpudiscovery.loader.elf import DF_1_NOOPEN, DT_AUXILIARY, DT_NEEDED, PAGE, PF_X, Elf
from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.hostld import INTERPRETER, HostLoader, host_loader
from pytest_gpudiscovery.loader.mounts import Mounts
from pytest_gpudiscovery.loader.problems import UNSUPPORTED, Refused, Skipped
from pytest_gpudiscovery.loader.record import dataclass
from pytest_gpudiscovery.loader.search import Requester, Search, Tried, expand
from pytest_gpudiscovery.loader.staticblock import StaticTls
from pytest_gpudiscovery.loader.symbols import Relocations, Symbols

OBJECTS = 4096  # in one process; more is a hostile chain of files
ALREADY, SAME_FILE = "already loaded", "same file as one loaded"


@dataclass(frozen=True)
class ProcessModel:
    """The state of the process before the dlopen that is asked about.

    `exe`: path of the executable, or None for a program that needs libc.so.6 only and has no paths of its own.
    `preload`: what LD_PRELOAD would name, beside the environment's own. `opened`: (path, RTLD_GLOBAL?) dlopened before, in
    order. `secure`: AT_SECURE; None asks the file's mode and capabilities. `address_space`: RLIMIT_AS in bytes.
    """

    exe: str | None = None
    preload: tuple[str, ...] = ()
    opened: tuple[tuple[str, bool], ...] = ()
    secure: bool | None = None
    address_space: int | None = None


class LinkMap(Requester):
    """One loaded object: ld.so's struct link_map, as far as a prediction needs it."""

    def __init__(self, elf: Elf, name: str, want: str, origin: str, loader: Requester | None, rule: str) -> None:
        super().__init__(elf, name, origin, loader, executable=not name)
        self.want = want
        self.rule = rule
        self.names = {want, name}
        self.dependencies: list[LinkMap] = []
        self.scope: list[LinkMap] | None = None
        self.relocated = False
        self.checked = False
        self.relr_ref = False
        self.static_offset: int | None = None
        self.relocations: Relocations | None = None
        self._symbols: Symbols | None = None

    @property
    def symbols(self) -> Symbols:
        """Symbol tables, read when first asked for; raises Refused, OSError."""
        if self._symbols is None:
            self._symbols = Symbols(self.elf)
        return self._symbols

    @property
    def path(self) -> str:
        """The path used to open it (the executable's own path for the executable)."""
        return self.elf.name


class Edge:
    """One name that an object asked for, and what came of it."""

    __slots__ = ("found", "name", "requester", "rule", "tried")

    def __init__(self, requester: LinkMap | None, name: str, found: LinkMap | None, rule: str, tried: list[Tried]) -> None:
        self.requester = requester
        self.name = name
        self.found = found
        self.rule = rule
        self.tried = tried


class Failure:
    """A Refused with the object on whose behalf it happened; `ends` is false for what ld.so only complains about."""

    __slots__ = ("ends", "kind", "refused", "requester")

    def __init__(self, kind: str, refused: Refused, requester: LinkMap | None, ends: bool = True) -> None:
        self.kind = kind
        self.refused = refused
        self.requester = requester
        self.ends = ends


class Process:
    """Link maps, scopes and edges of one simulated process. Raises Refused (kind "unsupported") when it cannot exist."""

    def __init__(self, root: Root, env: dict[str, str], model: ProcessModel, loader: HostLoader | None = None) -> None:
        self.root = root
        self.model = model
        self.maps: list[LinkMap] = []
        self.globals: list[LinkMap] = []
        self.edges: list[Edge] = []
        self.failures: list[Failure] = []
        self.mounts = Mounts()
        self.address_space = 0
        executable = Elf(root, root.real(model.exe)) if model.exe else None
        if executable is not None:
            self._kernel_maps(executable)
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

    def close(self) -> None:
        """Close every file."""
        self.search.cache.close()
        for loaded in self.maps:
            loaded.elf.close()

    # -- start-up

    def _kernel_maps(self, elf: Elf) -> None:
        self.loader_rules_needed = True
        from pytest_gpudiscovery.loader.rules import Rules  # noqa: PLC0415

        elf.load(Rules(), executable=True)
        if elf.segments:
            self.address_space += _span(elf)

    def _start(self, executable: Elf | None, interpreter: str, env: dict[str, str]) -> LinkMap:
        raise NotImplementedError
