"""Takes what names a machine, a board or a person, and what opens a door, out of a text. Equal things get equal names.

Pseudonyms are `host-1`, `user-2`, `gpu-1`, `mig-1`, `uuid-1`, `serial-1`, `mac-1`, `ipv4-1`, `ipv6-1`; a secret becomes
`<secret>`, `<token>`, `<credentials>`, `<email>` or `<private-key>`. None of these is taken for something to redact,
so redacting twice changes nothing. PCI addresses, versions, loopback addresses and the null UUID stay: they name nobody
and are what a diagnosis needs. A user or host whose real name has a pseudonym's form keeps it.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pytest_gpudiscovery.reports import bundle_patterns as known

SECRET, TOKEN, CREDENTIALS, EMAIL, KEY = "<secret>", "<token>", "<credentials>", "<email>", "<private-key>"
NULL_UUID = "0" * 32
PASSES = 8  # no text needs more than three
Replace = Callable[[re.Match[str]], str]


class Redactor:
    """Remembers which pseudonym stands for what. `counts` says how often each kind was replaced."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._names: dict[str, dict[str, str]] = {}
        self._digits: dict[str, str] = {}  # of UUIDs -> pseudonym
        self._words: dict[str, tuple[str, str]] = {}  # lower case -> (kind, pseudonym)
        self._pattern: re.Pattern[str] | None = None

    def know(self, kind: str, *names: str) -> None:
        """Take NAMES as a `host`, `user` or `kernel` wherever they stand alone as a word."""
        for name in names:
            if (
                len(name) > 2
                and not name.isdigit()
                and name.lower() not in known.COMMON
                and not known.PSEUDONYM.fullmatch(name)
            ):
                self._word(kind, name)

    def learn(self, text: str) -> None:
        """Find in TEXT the hosts, users and GPUs whose names may stand elsewhere without anything that says so."""
        for found in known.UUID.finditer(text):
            if found["kind"]:
                self._uuid(found)
        for kind, patterns in (("host", known.HOSTS), ("user", known.USERS)):
            for pattern in patterns:
                self.know(kind, *(found["name"] for found in pattern.finditer(text)))

    def key(self, key: str, value: object) -> None:
        """Take VALUE as a user or a host where KEY says that it is one."""
        if isinstance(value, str) and key in known.NAME_KEYS:
            self.know(known.NAME_KEYS[key], value)

    def text(self, text: str) -> str:
        """Return TEXT without what must not leave the host.

        Until nothing changes: what a pseudonym leaves beside it can look like something else (`UUID¹password=x`).
        """
        for _ in range(PASSES):
            before, text = text, self._once(text)
            if text == before:
                break
        return text

    def _once(self, text: str) -> str:
        self.learn(text)
        text = self._count("private key", known.PRIVATE_KEY, text, lambda _: KEY)
        text = self._count("credentials in URL", known.USER_INFO, text, lambda found: f"{found[1]}{CREDENTIALS}@")
        for pattern in (known.ENV_LINE, known.ASSIGNED, known.OPTION):
            text = pattern.sub(self._assigned, text)
        text = known.BEARER.sub(self._bearer, text)
        text = self._count("token", known.TOKEN, text, lambda _: TOKEN)
        text = self._count("e-mail address", known.EMAIL, text, lambda _: EMAIL)
        for pattern, replace in self._steps():
            text = pattern.sub(replace, text)
        return self._known(text)

    def value(self, value: Any, key: str = "") -> Any:
        """Return VALUE (as JSON has it) with every text in it redacted; what stands under a secret KEY is dropped."""
        if known.SERIAL_KEY.search(key) and isinstance(value, (str, int)) and not isinstance(value, bool) and value:
            return self._name("serial", str(value), keep=_not_a_serial)
        if isinstance(value, str):
            self.key(key, value)
            if key and value and _is_secret(key) and not known.PSEUDONYM.fullmatch(value):
                self.counts["secret"] += 1
                return SECRET
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.value(item, str(name)) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item, key) for item in value]
        return value

    def told(self) -> Iterable[tuple[str, int, int]]:
        """Yield (kind, how often, how many different ones; 0: not told apart), by kind."""
        for kind, count in sorted(self.counts.items()):
            yield kind, count, len(set(self._names.get(kind, {}).values()))

    def _steps(self) -> tuple[tuple[re.Pattern[str], Replace], ...]:
        return (
            (known.UUID, self._uuid),
            (known.SPELLED_UUID, self._spelled_uuid),
            (known.SHORT_UUID, self._short_uuid),
            (known.SERIAL, lambda found: found["name"] + self._name("serial", found["value"], keep=_not_a_serial)),
            (known.MAC, lambda found: self._name("mac", found[0].lower())),
            (known.IPV6, self._address),
            (known.IPV4, self._address),
            # Before hosts: a user's pseudonym has letters, and "/home/0://x" is a URL only then.
            (known.HOME, lambda found: f"{found['place']}/{self._name('user', found['name'])}"),
            (known.URL_HOST, lambda found: found["begin"] + self._host(found["host"])),
            (known.PRIVATE_HOST, lambda found: self._host(found[0])),
        )

    def _count(self, kind: str, pattern: re.Pattern[str], text: str, replace: Replace) -> str:
        text, count = pattern.subn(replace, text)
        if count:
            self.counts[kind] += count
        return text

    def _name(self, kind: str, original: str, keep: Callable[[str], bool] = lambda _: False) -> str:
        if known.PSEUDONYM.fullmatch(original) or keep(original):
            return original
        self.counts[kind] += 1
        names = self._names.setdefault(kind, {})
        key = original.lower() if kind == "host" else original
        if key not in names:
            names[key] = f"{kind}-{len(set(names.values())) + 1}"
        return names[key]

    def _word(self, kind: str, name: str) -> None:
        if name.lower() in self._words:
            return
        before = self.counts[kind]
        pseudonym = self._name(kind, name)
        self.counts[kind] = before
        self._words[name.lower()] = (kind, pseudonym)
        self._pattern = None
        short = name.partition(".")[0]
        if kind == "host" and short != name and len(short) > 2 and not short.isdigit():
            self._names[kind].setdefault(short.lower(), pseudonym)
            self.know(kind, short)

    def _known(self, text: str) -> str:
        if not self._words:
            return text
        if self._pattern is None:
            longest_first = sorted(self._words, key=lambda word: (-len(word), word))
            self._pattern = re.compile(
                rf"(?<![A-Za-z0-9_])(?:{'|'.join(map(re.escape, longest_first))})(?![A-Za-z0-9_])", re.IGNORECASE
            )
        return self._pattern.sub(self._known_word, text)

    def _known_word(self, found: re.Match[str]) -> str:
        kind, pseudonym = self._words.get(found[0].lower(), ("", found[0]))
        if kind:
            self.counts[kind] += 1
        return pseudonym

    def _assigned(self, found: re.Match[str]) -> str:
        name, sign, value = found["name"], found["sign"], found["value"]
        bare = value.strip("\\\"'")
        if not bare or not _is_secret(name) or known.PSEUDONYM.fullmatch(bare):
            return found[0]
        self.counts["secret"] += 1
        begin = next((quote for quote in ('\\"', '"', "'") if value.startswith(quote) and value.endswith(quote)), "")
        return f"{name}{sign}{begin}{SECRET}{begin}"

    def _bearer(self, found: re.Match[str]) -> str:
        self.counts["token"] += 1
        return f"{found['name']} {TOKEN}"

    def _uuid(self, found: re.Match[str]) -> str:
        digits = found["digits"].replace("-", "").lower()
        if digits == NULL_UUID:
            return found[0]
        kind = {"GPU-": "gpu", "MIG-GPU-": "gpu", "MIG-": "mig"}.get(found["kind"] or "", "")
        if digits not in self._digits:
            kind = kind or ("uuid" if "-" in found["digits"] else "id")
            self._digits[digits] = self._name(kind, digits)
        else:
            self.counts[self._digits[digits].partition("-")[0]] += 1
        return self._digits[digits]

    def _spelled_uuid(self, found: re.Match[str]) -> str:
        digits = found["digits"].replace("-", "").lower()[:32]
        if len(digits) == 32 and digits not in self._digits and digits != NULL_UUID:
            self._digits[digits] = self._name("mig" if found["kind"].upper() == "MIG-" else "gpu", digits)
            return self._digits[digits]
        return self._short_uuid(found)

    def _short_uuid(self, found: re.Match[str]) -> str:
        digits = found["digits"].replace("-", "").lower()[:32]
        if not digits.strip("0"):
            return found[0]
        known = next((name for full, name in self._digits.items() if full.startswith(digits)), None)
        if known is not None:
            self.counts[known.partition("-")[0]] += 1
            return known
        return self._name("mig" if found["kind"].upper() == "MIG-" else "gpu", digits)

    def _address(self, found: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(found[0])
        except ValueError:
            return found[0]
        if address.is_loopback or address.is_unspecified:
            return found[0]
        return self._name(f"ipv{address.version}", str(address))

    def _host(self, name: str) -> str:
        if known.PUBLIC.fullmatch(name.lower()) or _is_address(name):
            return name
        return self._name("host", name.rstrip(".")) + ("." if name.endswith(".") else "")


def kernel_suffix(release: str) -> tuple[str, ...]:
    """Return the words of a kernel RELEASE ("6.18.5-generic-mycluster7") that somebody made up: ("mycluster7",)."""
    words = re.split(r"[.+~_-]", release)
    return tuple(word for word in words if word and not known.RELEASE_WORDS.fullmatch(word))


def _is_secret(name: str) -> bool:
    return name.upper() not in known.NOT_SECRET and known.SECRET_NAME.search(name) is not None


def _not_a_serial(value: str) -> bool:
    return value.upper() in ("N-A", "NONE", "NULL", "UNKNOWN") or not any(letter.isdigit() for letter in value)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
