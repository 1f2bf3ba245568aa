"""After mapping: version check, ISA level, symbols by scope, static TLS; in ld.so's order (elf/dl-open.c, dl-reloc.c).

Only RTLD_NOW is predicted: that is what ggml calls. IFUNC resolvers and constructors are code and beyond a prediction.
"""

from __future__ import annotations

from struct import iter_unpack

from pytest_gpudiscovery.loader import elf as e
from pytest_gpudiscovery.loader import problems
from pytest_gpudiscovery.loader.elf import PAGE, PF_W
from pytest_gpudiscovery.loader.linkmap import Failure, LinkMap
from pytest_gpudiscovery.loader.problems import ABORT, ERROR, SIGBUS, SIGSEGV, Refused
from pytest_gpudiscovery.loader.process import Process
from pytest_gpudiscovery.loader.symbols import RELOCATION, Reference, Relocations, Symbols, gnu_hash
from pytest_gpudiscovery.loader.versions import Version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES = 1 << 12  # kept: what is told after thousands of missing symbols helps nobody
MEMORY = 1 << 15  # results of lookups that are kept, for names that several objects ask for
RELR_VERSION = b"GLIBC_ABI_DT_RELR"
Bindings = dict[tuple[str, str, str], str]
"""(requester, symbol, version or "") -> path of the defining object, "" for a weak symbol that stays unbound."""


def check(process: Process, root: LinkMap, bindings: Bindings | None = None) -> int:
    """Check and relocate what ROOT's dlopen mapped; failures go to the process. Returns the symbols looked up."""
    scope = root.scope or []
    checker = Checker(process, scope, bindings)
    pending = [loaded for loaded in scope if not loaded.checked]
    for loaded in pending:
        loaded.checked = True
        checker.guard("version", checker.check_versions, loaded)
    for loaded in pending:
        if process.loader.rules.glibc_hwcaps and loaded.elf.isa_needed & ~process.loader.isa:
            checker.fail("isa", Refused(problems.ISA_LEVEL, loaded.name), loaded)
    for loaded in relocation_order(root):
        if not loaded.relocated:
            loaded.relocated = True
            checker.guard("symbol", checker.relocate, loaded)
    return checker.looked_up


def check_versions(process: Process) -> None:
    """Check the versions that the program and its start-up libraries need; failures go to the process."""
    checker = Checker(process, [], None)
    for loaded in process.globals:
        checker.guard("version", checker.check_versions, loaded)


def relocation_order(root: LinkMap) -> list[LinkMap]:
    """Return the objects of ROOT's list in the order of relocation: dependencies first, ROOT last
    (elf/dl-sort-maps.c).
    """
    visited: set[int] = {id(root)}
    order: list[LinkMap] = []
    for start in reversed(root.scope or []):
        if id(start) in visited:
            continue
        visited.add(id(start))
        stack = [(start, iter(start.dependencies))]
        while stack:
            current, rest = stack[-1]
            for dependency in rest:
                if id(dependency) not in visited:
                    visited.add(id(dependency))
                    stack.append((dependency, iter(dependency.dependencies)))
                    break
            else:
                stack.pop()
                order.append(current)
    libc = [loaded for loaded in order if loaded.elf.soname == "libc.so.6"]
    return libc + [loaded for loaded in order if loaded not in libc] + [root]


class Checker:
    """The checks of one dlopen. Scope of symbols: own definitions first if DT_SYMBOLIC, global scope, local scope."""

    def __init__(self, process: Process, scope: list[LinkMap], bindings: Bindings | None) -> None:
        self.process = process
        self.rules = process.loader.rules
        self.bindings = bindings
        self.looked_up = 0
        seen: set[int] = set()
        self.scope: list[LinkMap] = []
        for loaded in (*process.globals, *scope):
            if id(loaded) not in seen and loaded.elf.has_dynamic:
                seen.add(id(loaded))
                self.scope.append(loaded)
        self._found: dict[tuple[object, ...], LinkMap | None] = {}
        self._hashes: dict[bytes, int] = {}
        self._filters: list[tuple[memoryview[int], Symbols, LinkMap]] = []

    def fail(self, kind: str, refused: Refused, requester: LinkMap) -> None:
        """Keep one failure."""
        if len(self.process.failures) < FAILURES:
            self.process.failures.append(Failure(kind, refused, requester))

    def guard(self, kind: str, step: Callable[[LinkMap], None], loaded: LinkMap) -> None:
        """Run STEP on LOADED; what it raises is one failure of LOADED."""
        try:
            step(loaded)
        except Refused as refused:
            self.fail(kind, refused, loaded)
        except OSError as problem:
            self.fail(kind, Refused(f"reading fails: {problem.strerror}", loaded.name, SIGBUS), loaded)

    def check_versions(self, loaded: LinkMap) -> None:
        """Check that every version LOADED needs is defined; raises Refused for what ends the process or the dlopen."""
        needed = loaded.symbols.versions.needed
        for need in needed:
            provider = next((other for other in self.process.maps if need.file in other.names), None)
            if provider is None:
                if any(failure.kind == "file" for failure in self.process.failures):
                    continue  # ld.so never gets here: the file is what is missing
                text = "Inconsistency detected by ld.so: _dl_check_map_versions: Assertion `needed != NULL' failed!"
                raise Refused(text, loaded.name, ABORT)
            defined = provider.symbols.versions.defined
            if defined is not None and not need.weak and (need.hash, need.name) not in defined:
                text = problems.version_not_found(need.name.decode("utf-8", "replace"), loaded.name)
                self.fail("version", Refused(text, provider.name), loaded)
        if e.DT_RELR in loaded.elf.dynamic and all(need.name != RELR_VERSION for need in needed):
            if not self.rules.relr:
                text = "DT_RELR is unknown to this glibc: its relocations are not applied"
                raise Refused(text, loaded.name, SIGSEGV)
            if any(need.file == "libc.so.6" for need in needed):
                raise Refused(problems.RELR, loaded.name)

    def relocate(self, loaded: LinkMap) -> None:
        """Resolve every undefined symbol of LOADED; raises Refused for what ends the process or the whole dlopen."""
        if _truncated_at(loaded):
            raise Refused("the file ends before data that ld.so relocates or clears", loaded.name, SIGBUS)
        wanted = loaded.relocations = loaded.symbols.relocations()
        self.looked_up += len(wanted.undefined)
        providers: dict[int, LinkMap] = {}
        for index, reference in wanted.undefined.items():
            provider = self._resolve(loaded, reference)
            if provider is not None:
                providers[index] = provider
            if self.bindings is None and (provider is not None or reference.weak):
                continue
            text = reference.name.decode("utf-8", "replace")
            version = reference.version.name.decode("utf-8", "replace") if reference.version is not None else None
            if self.bindings is not None:
                self.bindings[loaded.path, text, version or ""] = provider.path if provider is not None else ""
            if provider is None and not reference.weak:
                self.fail("symbol", Refused(problems.undefined_symbol(text, version), loaded.name), loaded)
        if wanted.unknown is not None:
            self.fail("relocation", Refused(f"unexpected reloc type {wanted.unknown:#04x}", loaded.name), loaded)
        self._static_tls(loaded, wanted, providers)

    def _resolve(self, loaded: LinkMap, reference: Reference) -> LinkMap | None:
        name, version, plt = reference.name, reference.version, reference.plt
        hash_ = self._hashes.get(name)
        if hash_ is None:
            hash_ = gnu_hash(name)
            if len(self._hashes) < MEMORY:
                self._hashes[name] = hash_
        if loaded.elf.symbolic:
            own = loaded.symbols.lookup(name, version, hash_, plt, self.rules, loaded.names)
            if own >= 0:
                return loaded
        key = (name, plt, version and version.name, version and version.hidden, version and version.file)
        if key in self._found:
            return self._found[key]
        found = self._search(name, version, hash_, plt)
        if len(self._found) < MEMORY:
            self._found[key] = found
        return found

    def _search(self, name: bytes, version: Version | None, hash_: int, plt: bool) -> LinkMap | None:
        if not self._filters:
            self._filters = [(other.symbols.bloom, other.symbols, other) for other in self.scope]
        word_at, bit = hash_ >> 6, hash_ & 63
        for bloom, symbols, other in self._filters:
            if bloom:  # Symbols.may_have, written out: this is the inner loop of every prediction
                word = bloom[word_at & symbols.mask]
                if not word >> bit & word >> (hash_ >> symbols.shift & 63) & 1:
                    continue
            if symbols.lookup(name, version, hash_, plt, self.rules, other.names) >= 0:
                return other
        return None

    def _static_tls(self, loaded: LinkMap, wanted: Relocations, providers: dict[int, LinkMap]) -> None:
        for indices, optional in ((wanted.static_tls, False), (wanted.descriptors, True)):
            for index in indices:
                owner = providers.get(index)
                if owner is None:
                    if index in wanted.undefined:
                        continue  # weak and unbound
                    owner = loaded
                if owner.static_offset is not None or owner.at_startup:
                    continue
                if owner.elf.tls is not None and self.process.tls.take(owner.elf.tls, optional):
                    owner.static_offset = self.process.tls.used
                elif not optional:
                    raise Refused(problems.STATIC_TLS, owner.name, ERROR)


def _truncated_at(loaded: LinkMap) -> bool:
    """Whether ld.so touches a page of the mapping that the file no longer has."""
    elf = loaded.elf
    end = elf.file.size + PAGE - 1 & -PAGE
    missing = [s for s in elf.segments if s.offset + s.file_size > end]
    if not missing:
        return False
    for segment in missing:
        stop = segment.address + segment.file_size
        if segment.memory_size > segment.file_size and stop & (PAGE - 1):
            return True  # the rest of the last page is cleared
    holes = [(max(s.start, s.address - s.offset + end), s.mapped_end, s.flags) for s in missing]
    holes = [(first, last, flags) for first, last, flags in holes if flags & PF_W or e.DT_TEXTREL in elf.dynamic]
    for table, size in ((e.DT_RELA, e.DT_RELASZ), (e.DT_JMPREL, e.DT_PLTRELSZ)):
        length = elf.dynamic.get(size, 0)
        if not holes or not elf.dynamic.get(table) or not length:
            continue
        data = elf.file.read(elf.locate(elf.dynamic[table]), min(length, 1 << 26))
        for (target,) in iter_unpack("<Q16x", data[: len(data) - len(data) % RELOCATION]):
            if any(first <= target < last for first, last, _ in holes):
                return True
    return False
