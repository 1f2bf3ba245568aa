"""Records of a simulated process: its model, its link maps, who asked for what, and what went wrong."""

from __future__ import annotations

from pytest_gpudiscovery.loader.elf import Elf
from pytest_gpudiscovery.loader.problems import Refused
from pytest_gpudiscovery.loader.record import dataclass
from pytest_gpudiscovery.loader.search import Requester, Tried
from pytest_gpudiscovery.loader.symbols import Relocations, Symbols


@dataclass(frozen=True)
class ProcessModel:
    """The state of the process before the dlopen that is asked about.

    `exe`: path of the executable, or None for a program that needs libc.so.6 only and has no paths of its own.
    `preload`: what LD_PRELOAD would name, beside the environment's own. `opened`: (path, RTLD_GLOBAL?) dlopened
    before, in order. `secure`: AT_SECURE; None asks the file's mode and capabilities. `address_space`: RLIMIT_AS in
    bytes.
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
        self.at_startup = False
        self.by_kernel = False  # ld.so does not know the file of what the kernel mapped
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
        """The name that ld.so has for it (for the executable, which has none, its path)."""
        return self.name or self.elf.name


class Edge:
    """One name that an object asked for, and what came of it."""

    __slots__ = ("found", "name", "requester", "rule", "tried")

    def __init__(
        self, requester: LinkMap | None, name: str, found: LinkMap | None, rule: str, tried: list[Tried]
    ) -> None:
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
        refused.__traceback__ = refused.__context__ = None  # they would keep every frame on the way alive
        self.requester = requester
        self.ends = ends
