"""Reading what a probe saw without trusting it, and one spelling for PCI addresses and UUIDs.

An observation comes from a library that may be a shim, broken or hostile: any value may have any type. These
functions answer None (or an empty container) for what is not of the wanted type and never raise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?")
_UUID = re.compile(r"(?:(GPU|MIG)-)?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})", re.I)


def integer(value: Any) -> int | None:
    """Return VALUE when it is an int (and no bool)."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def string(value: Any) -> str | None:
    """Return VALUE when it is a str that is not empty."""
    return value if isinstance(value, str) and value else None


def mapping(value: Any) -> Mapping[str, Any]:
    """Return VALUE when it is an object, else {}."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    """Return VALUE when it is a list or tuple, else ()."""
    return value if isinstance(value, (list, tuple)) else ()


def objects(value: Any) -> list[Mapping[str, Any]]:
    """Return the objects in the list VALUE; what is no object is left out."""
    return [item for item in sequence(value) if isinstance(item, Mapping)]


def code_of(answer: Any) -> int | None:
    """Return the return code in ANSWER ({"rc": int}), None when the call was missing or never made."""
    return integer(mapping(answer).get("rc"))


def pci(value: Any) -> str | None:
    """Return PCI address VALUE as sysfs writes it, `0000:00:06.0`; None when it is none.

    NVML writes a domain of 8 digits, CUDA one of 4, both with or without leading zeros beyond 4; the function is 0
    where it is left out.
    """
    match = _PCI.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function or '0'}"


def uuid(value: Any) -> str | None:
    """Return the 32 hex digits of a GPU or MIG UUID, so that every spelling of one compares equal; None for none."""
    match = _UUID.fullmatch(value.strip()) if isinstance(value, str) else None
    return None if match is None else "".join(match.groups()[1:]).lower()


def is_null_uuid(value: Any) -> bool:
    """Whether VALUE is the UUID of 32 zeros: what a shim leaves when it fills in nothing."""
    return uuid(value) == "0" * 32


def capability(value: Any) -> str | None:
    """Return a compute capability ([9, 0], (9, 0) or "9.0") as `9.0`; None for anything that no GPU has ever had."""
    if isinstance(value, str):
        parts: Any = value.split(".")
        value = [int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 4]
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    major, minor = integer(value[0]), integer(value[1])
    if major is None or minor is None or not 1 <= major <= 20 or not 0 <= minor <= 9:
        return None
    return f"{major}.{minor}"
