"""Where ld.so looks for a name without a slash, in which order, and what it makes of each candidate (elf/dl-load.c).

DT_RPATH of the requester and of those that loaded it, LD_LIBRARY_PATH, DT_RUNPATH of the requester, the cache, the
default directories; each directory with its capability subdirectories first. errno is followed as ld.so's own
variable, because one that is neither ENOENT nor EACCES ends the list that it came from.
"""

from __future__ import annotations

import errno

from pytest_gpudiscovery.loader import problems
from pytest_gpudiscovery.loader.elf import DF_1_NODEFLIB, Elf
from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.hostld import HostLoader
from pytest_gpudiscovery.loader.ldsocache import Cache
from pytest_gpudiscovery.loader.problems import Refused, Skipped
from pytest_gpudiscovery.loader.record import dataclass

TOKENS = ("ORIGIN", "PLATFORM", "LIB")
CACHE = "ld.so.cache"
DEFAULT = "default directories"
LIBRARY_PATH = "LD_LIBRARY_PATH"
PATH = "path"  # the name had a slash
DIRECTORIES = 4096  # in one list; more is a hostile file
CANDIDATES = 1 << 24  # bytes of the paths that one process looks at, each with CANDIDATE more for the record of it
CANDIDATE = 512


@dataclass(frozen=True)
class Tried:
    """A file (or, ending in "/", a directory) that the search came across, the rule that led there, and what it was."""

    path: str
    rule: str
    verdict: str


class Requester:
    """What the search needs to know of an object: its paths, flags, $ORIGIN, and who loaded it."""

    def __init__(self, elf: Elf, name: str, origin: str, loader: Requester | None, executable: bool = False) -> None:
        self.elf = elf
        self.name = name  # l_name: as the search built it, "" for the executable
        self.origin = origin
        self.loader = loader
        self.executable = executable


def _token(text: str, at: int) -> tuple[str, int]:
    """Return (token, characters after the "$" at AT - 1) or ("", 0); ${TOKEN} and the longest-name rule of the gABI."""
    curly = text.startswith("{", at)
    start = at + curly
    for name in TOKENS:
        after = text[start + len(name) : start + len(name) + 1]
        if not text.startswith(name, start) or (curly and after != "}"):
            continue
        if after.isascii() and (after.isalnum() or after == "_"):
            continue
        return name, len(name) + 2 * curly
    return "", 0


def expand(text: str, requester: Requester, loader: HostLoader, secure: bool) -> str:
    """Return TEXT with $ORIGIN, $PLATFORM and $LIB replaced; "" where ld.so drops the path."""
    if "$" not in text:
        return text
    parts: list[str] = []
    at = 0
    checked = False
    while at < len(text):
        if text[at] != "$":
            parts.append(text[at])
            at += 1
            continue
        name, length = _token(text, at + 1)
        if name == "ORIGIN":
            if secure and not (at == 0 and text[at + 1 + length : at + 2 + length] in ("", "/")):
                return ""
            checked = secure and requester.executable
            parts.append(requester.origin)
        elif name:
            parts.append(loader.platform if name == "PLATFORM" else loader.library)
        else:
            parts.append("$")
        at += 1 + length
    result = "".join(parts)
    return result if not checked or _trusted(result, loader) else ""


def _trusted(path: str, loader: HostLoader) -> bool:
    """Whether PATH, normalised, lies in a default directory: only then may a set-uid program use $ORIGIN."""
    done: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del done[-1:]
        elif part not in ("", "."):
            done.append(part)
    return ("/" + "/".join(done) + "/").startswith(loader.directories)


class Search:
    """The search of one process. `secure` is AT_SECURE; LD_LIBRARY_PATH is then ignored."""

    def __init__(self, root: Root, loader: HostLoader, library_path: str | None, secure: bool) -> None:
        self.root = root
        self.loader = loader
        self.secure = secure
        self.library_path = None if secure else library_path
        self.cache = Cache(root, f"{loader.configuration}/{CACHE}", loader.rules, loader.hwcaps, loader.legacy_mask)
        self.main: Requester | None = None
        self.errno = 0
        self._left = CANDIDATES
        self._exists: dict[str, bool] = {}
        self._lists: dict[tuple[str, str, str], list[str]] = {}

    # -- lists of directories

    def _split(self, text: str, requester: Requester, separators: str) -> list[str]:
        key = (text, requester.origin, separators)
        found = self._lists.get(key)
        if found is None:
            found = self._lists[key] = self._directories(text, requester, separators)
        return found

    def _directories(self, text: str, requester: Requester, separators: str) -> list[str]:
        for separator in separators[1:]:
            text = text.replace(separator, separators[0])
        found: dict[str, None] = {}
        for element in text.split(separators[0])[:DIRECTORIES] if text else ():
            directory = element
            if directory:
                directory = expand(directory, requester, self.loader, self.secure)
                if not directory:
                    continue
                directory = (directory.rstrip("/") or "") + "/"
            found[directory] = None  # "" is the current directory
        return list(found)

    def stages(self, requester: Requester | None) -> list[tuple[str, list[str]]]:
        """Return (rule, directories) in order, up to the cache."""
        found: list[tuple[str, list[str]]] = []
        if requester is None or requester.elf.runpath is None:
            seen_main = False
            ancestor = requester
            while ancestor is not None:
                found += self._rpath(ancestor)
                seen_main |= ancestor is self.main
                ancestor = ancestor.loader
            if not seen_main and self.main is not None:
                found += self._rpath(self.main)
        base = self.main or requester
        if self.library_path and base is not None:
            found.append((LIBRARY_PATH, self._split(self.library_path, base, ":;")))
        if requester is not None and requester.elf.runpath:
            directories = self._split(requester.elf.runpath, requester, ":")
            found.append((f"DT_RUNPATH of {requester.name or 'the executable'}", directories))
        return found

    def _rpath(self, requester: Requester) -> list[tuple[str, list[str]]]:
        if not requester.elf.rpath:
            return []
        rule = f"DT_RPATH of {requester.name or 'the executable'}"
        return [(rule, self._split(requester.elf.rpath, requester, ":"))]

    # -- candidates

    def _spend(self, path: str) -> None:
        """Count one more candidate; raises Refused when a hostile file asks for too many."""
        self._left -= len(path) + CANDIDATE
        if self._left < 0:
            raise Refused("too many places to search", path, problems.UNSUPPORTED)

    def _try(self, path: str, rule: str, tried: list[Tried], state: list[bool]) -> Elf | None:
        """open_verify: the Elf, or None to go on; raises Refused. `state[0]` remembers an ELF file of the other
        class.
        """
        self._spend(path)
        try:
            found = Elf(self.root, path)
        except Skipped as skipped:
            self.errno = skipped.errno
            state[0] = state[0] or skipped.other_class
            tried.append(Tried(path, rule, skipped.reason))
            return None
        except Refused as refused:
            tried.append(Tried(path, rule, refused.message.removeprefix(f"{path}: ")))
            raise
        self.errno = 0
        tried.append(Tried(path, rule, "used"))
        return found

    def _open_path(
        self, name: str, rule: str, directories: list[str], tried: list[Tried], state: list[bool]
    ) -> tuple[str, Elf] | None:
        going_on = {errno.ENOENT, errno.EACCES}
        if self.loader.rules.enotdir_goes_on:
            going_on.add(errno.ENOTDIR)
        for directory in directories:
            here = False
            for subdirectory in self.loader.subdirectories:
                place = directory + subdirectory
                exists = True if not directory.startswith("/") else self._exists.get(place)
                if exists is False:
                    if not subdirectory:
                        self._spend(place)
                        tried.append(Tried(place, rule, "no such directory"))
                    continue
                found = self._try(place + name, rule, tried, state)
                if found is not None:
                    self._exists[place] = True
                    return place + name, found
                if exists is None:
                    exists, problem = self.root.is_directory(place)
                    self.errno = problem or self.errno
                    self._exists[place] = exists
                    if not exists:
                        tried[-1] = Tried(place, rule, "no such directory")
                here = here or exists
            if here and self.errno not in going_on:
                return None
        return None

    def find(self, name: str, requester: Requester | None, tried: list[Tried]) -> tuple[str, str, Elf]:
        """Return (path, rule, Elf) for NAME, which has no slash; appends to TRIED; raises Refused."""
        state = [False]
        for rule, directories in self.stages(requester):
            found = self._open_path(name, rule, directories, tried, state)
            if found is not None:
                return found[0], rule, found[1]
        base = requester or self.main
        no_defaults = base is not None and bool(base.elf.flags_1 & DF_1_NODEFLIB)
        cached = self.cache.lookup(name)
        if cached is not None and not (no_defaults and cached.startswith(self.loader.directories)):
            elf = self._try(cached, CACHE, tried, state)
            if elf is not None:
                return cached, CACHE, elf
        if not no_defaults:
            found = self._open_path(name, DEFAULT, list(self.loader.directories), tried, state)
            if found is not None:
                return found[0], DEFAULT, found[1]
        if state[0]:
            raise Refused(problems.WRONG_CLASS, name)
        raise Refused(problems.NOT_FOUND, name, errno=self.errno)

    def open(self, name: str, requester: Requester | None, tried: list[Tried]) -> tuple[str, str, Elf]:
        """Return (path, rule, Elf) for NAME, with or without a slash; raises Refused."""
        if "/" not in name:
            return self.find(name, requester, tried)
        path = expand(name, requester, self.loader, self.secure) if requester is not None else name
        state = [False]
        found = self._try(path, PATH, tried, state)
        if found is not None:
            return path, PATH, found
        if state[0]:
            raise Refused(problems.WRONG_CLASS, name)
        raise Refused(problems.NOT_FOUND, name, errno=self.errno)

    def shadowed(self, name: str, used: str, requester: Requester | None) -> list[tuple[str, str]]:
        """Return (file, rule) of what would be looked at after USED if it were not there; nothing is opened."""
        if self._left <= 0:
            return []
        found: dict[str, str] = {}
        cached = self.cache.lookup(name)
        places = self.stages(requester)
        places += [(CACHE, [cached] if cached else []), (DEFAULT, list(self.loader.directories))]
        for rule, directories in places:
            for directory in directories:
                if rule == CACHE:
                    candidates = [directory]
                else:
                    known = (directory + subdirectory for subdirectory in self.loader.subdirectories)
                    candidates = [place + name for place in known if self._exists.get(place) is not False]
                for candidate in candidates:
                    self._left -= len(candidate)
                    if candidate not in found and self._left > 0 and self.root.exists(candidate):
                        found[candidate] = rule
        files = list(found)
        return [(path, found[path]) for path in files[files.index(used) + 1 :]] if used in found else []
