"""What CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER leave of the GPUs, by what the CUDA driver does with them.

Measured on driver 580.159.04 with one and with two H100s (tests/stages/data/visible.json); the CUDA C++ Programming
Guide, section "CUDA Environment Variables", documents a part of it:

* The first of the entries between commas decides how all are read: as UUIDs where it begins with exactly `GPU-` or
  `MIG-`, as numbers else. The list ends, without a word, at the first entry that is of the other kind, malformed or
  names no GPU; nothing left: cuInit answers 100.
* A number is what strtoul(entry, .., 10) reads, cut to 32 bits; what stands behind it is ignored.
* A UUID may be cut short as long as it is unique; dashes and case of its digits do not matter, nor what follows the
  32nd digit. Without MIG, `MIG-` is as good as `GPU-`.
* A GPU that is named twice, in whatever spelling: cuInit answers 101, and there is no GPU at all. The same for a
  CUDA_DEVICE_ORDER that is none of its two words.
* A value that is too long counts as not set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_gpudiscovery.stages.identity import mapping, objects, string

NAME = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
PCI_ORDER = "PCI_BUS_ID"
ORDERS = (PCI_ORDER, "FASTEST_FIRST")
LONGEST = 2624  # bytes of a value that is still read, whatever it consists of; one with 2,625 is not
MOST = 1 << 16  # a number from here on is that of no GPU on any host; -1 is 4294967295
DIGITS = 32  # of a UUID
_PREFIXES = ("GPU-", "MIG-")
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)([0-9]+)")
_MAXIMUM = (1 << 64) - 1  # of unsigned long, where strtoul saturates
_BLANKS = " \t\n\v\f\r"


@dataclass(frozen=True)
class Entry:
    """One entry as CUDA reads it: a number, or the hex digits (lower case) that a UUID begins with."""

    text: str
    number: int | None = None
    digits: str = ""
    mig: bool = False
    cut: bool = False  # the number is what 64 and then 32 bits left of a longer one
    rest: str = ""  # what stands behind, and is ignored

    @property
    def odd(self) -> str:
        """How CUDA reads the entry otherwise than it looks; empty where it does not."""
        if self.rest.strip(_BLANKS):
            means = "" if self.number is None else f" is read as {self.number}"
            return f"{clip(self.text)!r}{means or ' is a UUID'}, what follows is ignored"
        if self.cut:
            return f"{clip(self.text)!r} is cut to 32 bits and read as {self.number}"
        return ""


@dataclass(frozen=True)
class Visible:
    """A parsed CUDA_VISIBLE_DEVICES. `value` is None when the variable is not set: nothing is hidden."""

    value: str | None
    entries: tuple[Entry, ...] = ()
    ended_at: str | None = None  # the entry that ended the list whatever GPUs there are
    too_long: bool = False

    @property
    def hides_nothing(self) -> bool:
        """Whether every GPU is visible."""
        return self.value is None or self.too_long

    @property
    def hides_everything(self) -> bool:
        """Whether no GPU can be visible."""
        return not self.hides_nothing and not self.entries


@dataclass(frozen=True)
class Left:
    """What a list leaves of the host's GPUs.

    `gpus` holds their positions in the order of the list; None: only the driver can tell. `twice` is the entry that
    names a GPU again, for which cuInit answers 101: then nothing is left.
    """

    gpus: tuple[int, ...] | None
    reason: str
    read: tuple[Entry, ...] = ()  # the entries up to the one that ended the list
    twice: str | None = None


def clip(text: str, limit: int = 40) -> str:
    """Return TEXT cut to LIMIT characters, for messages."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def order_is_bad(env: Mapping[str, str]) -> bool:
    """Whether CUDA_DEVICE_ORDER in ENV is set and none of the two words that the driver takes: cuInit answers 101."""
    return env.get(ORDER) is not None and env[ORDER] not in ORDERS


def parse(env: Mapping[str, str]) -> Visible:
    """Return what CUDA_VISIBLE_DEVICES in ENV says; never raises."""
    value = env.get(NAME)
    if value is None:
        return Visible(None)
    if len(value.encode(errors="surrogatepass")) > LONGEST:
        return Visible(value, too_long=True)
    by_uuid = value.startswith(_PREFIXES)
    entries: list[Entry] = []
    for text in value.split(","):
        entry = _uuid(text) if by_uuid else _number(text)
        if entry is None:
            return Visible(value, tuple(entries), text)
        entries.append(entry)
    return Visible(value, tuple(entries))


def _number(text: str) -> Entry | None:
    match = _NUMBER.match(text)
    if match is None:
        return None
    written = int(match[2].lstrip("0")[:24] or "0")  # more digits are beyond 64 bits all the same
    number = min(written, _MAXIMUM)
    if match[1] == "-":
        written = -written
        number = number if written < -_MAXIMUM else -number
    number &= 0xFFFFFFFF
    return Entry(text, number, cut=number != written, rest=text[match.end() :]) if number < MOST else None


def _uuid(text: str) -> Entry | None:
    if not text.startswith(_PREFIXES):
        return None
    mig = text.startswith("MIG-")
    digits = ""
    for place, character in enumerate(text[4:], start=4):
        if len(digits) == DIGITS:
            return Entry(text, digits=digits, mig=mig, rest=text[place:])
        if character in "0123456789abcdefABCDEF":
            digits += character.lower()
        elif character != "-":
            return Entry(text, mig=True) if mig else None  # MIG-GPU-<uuid>/<gi>/<ci>, the spelling before R470
    return Entry(text, digits=digits, mig=mig) if digits or mig else None


def left(visible: Visible, gpus: Sequence[Sequence[str | None]], mig: bool | None) -> Left:
    """Return what VISIBLE leaves of GPUS, and why not more.

    GPUS holds the UUIDs by which each GPU of the host is known, in the order in which CUDA counts: its own, those of
    its MIG instances, None for one that does not say; empty when the GPUs are not known. MIG says whether the host has
    MIG instances, None when that is hidden: numbers then count instances.
    """
    if visible.hides_nothing:
        return Left(tuple(range(len(gpus))), f"{NAME} is too long and ignored" if visible.too_long else "not set")
    if visible.hides_everything:
        return Left((), _ended(visible))
    if mig and not any(len(names) > 1 for names in gpus):
        return Left(None, "MIG instances are counted, which only the driver knows", visible.entries)
    if mig and visible.entries[0].number is not None:
        return Left(None, "numbers count MIG instances in an order that only the driver knows", visible.entries)
    if not gpus:
        return Left(None, "the GPUs of this host are not known yet", visible.entries)
    known = [{_digits(uuid) for uuid in names if uuid} for names in gpus]
    whole = all(None not in names for names in gpus)
    found: list[int] = []
    for count, entry in enumerate(visible.entries):
        read = visible.entries[:count]
        if entry.number is not None:
            places = [entry.number] if entry.number < len(gpus) else []
            why = f"is beyond the {len(gpus)} GPU(s) of this host"
            why = f"is read as {entry.number}, which {why}" if entry.odd else why
        else:
            places = [i for i, own in enumerate(known) if any(name.startswith(entry.digits) for name in own)]
            why = "is the beginning of no GPU's UUID, or of several"
            if entry.mig and mig is None:
                return Left(None, "what a MIG entry names is known to the driver alone", visible.entries)
            if entry.mig and not mig and not (entry.digits and places):
                places, why = [], "is a MIG instance, of which this host has none"
            elif not whole and (not places or len(entry.digits) < DIGITS):
                return Left(None, "the UUIDs of this host's GPUs are not known yet", visible.entries)
        if len(places) != 1:
            return Left(tuple(found), f"entry {clip(entry.text)!r} {why}", read)
        if places[0] in found and not mig:  # two instances of one GPU are two
            why = f"entry {clip(entry.text)!r} names a GPU that an entry before it names"
            return Left((), why, visible.entries[: count + 1], entry.text)
        found.append(places[0])
    return Left(tuple(found), _ended(visible), visible.entries)


def _ended(visible: Visible) -> str:
    """Return why a list that VISIBLE's text alone ended is not longer."""
    text, value = visible.ended_at, visible.value or ""
    if text is None:
        return "every entry names a GPU"
    if not value:
        return "the variable is set and empty"
    if value.startswith(_PREFIXES):
        why = "is no UUID" if text.startswith(_PREFIXES) else "does not begin with GPU- or MIG-, as the first one does"
    elif text.startswith(_PREFIXES):
        why = "is a UUID in a list that begins with a number"
    elif text.strip(_BLANKS).upper().startswith(_PREFIXES):
        why = "does not begin with exactly GPU- or MIG-: nothing before it, capital letters"
    else:
        why = "is no GPU"
    return f"entry {clip(text)!r} {why}"


def addresses(visible: Visible, gpus: Sequence[Mapping[str, Any]], env: Mapping[str, str]) -> set[str] | None:
    """Return the PCI addresses of GPUS (NVML facts) that VISIBLE leaves in ENV, None when it cannot be told.

    A number counts in CUDA's order, which is known when CUDA_DEVICE_ORDER is PCI_BUS_ID or all GPUs are of one model.
    """
    if order_is_bad(env):
        return set()
    placed = sorted((gpu for gpu in gpus if gpu.get("pci")), key=lambda gpu: str(gpu["pci"]))
    if visible.hides_everything or not placed:
        return set()
    names = {string(gpu.get("name")) for gpu in gpus}
    by_number = not visible.hides_nothing and visible.entries[0].number is not None
    if by_number and env.get(ORDER) != PCI_ORDER and len(names) > 1:
        return None
    instances = [[string(mapping(part).get("uuid")) for part in objects(gpu.get("instances"))] for gpu in placed]
    own = [[string(gpu.get("uuid")), *parts] for gpu, parts in zip(placed, instances, strict=True)]
    found = left(visible, own, any(gpu.get("mig") or gpu.get("instances") for gpu in placed)).gpus
    return None if found is None else {str(placed[place]["pci"]) for place in found}


def _digits(uuid: str) -> str:
    """Return the hex digits of UUID (GPU-xxxxxxxx-... or MIG-...), in lower case."""
    return (uuid[4:] if uuid.startswith(_PREFIXES) else uuid).replace("-", "").lower()
