"""What a host must be, as data: the shipped profiles and a person's own TOML file.

Keys of a profile, all optional but `title`; what is not given is not checked:
    title       one line for people
    name        list of model names as CUDA tells them; shell patterns are allowed
    cc          list of compute capabilities, "9.0"
    memory_mib  [least, most] of the total memory in MiB as NVML (nvidia-smi) tells it
    sm_count    list of numbers of streaming multiprocessors
    count       a number of GPUs, or [least, most]
    mig, ecc    "on", "off" or "any"
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    # Only Python 3.10 needs it, so a type checker on a later one need not find it.
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

HERE = Path(__file__).parent
SIZE_LIMIT = 64 << 10  # bytes; a profile has a few lines


def load(name_or_path: str) -> dict[str, Any]:
    """Return profile NAME_OR_PATH: its keys, checked, with `profile` (its name) and `source` (file name or path).

    A name is that of a shipped profile; what has a slash or ends in .toml is a file. Raises ValueError with one line
    that says what is wrong.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        return {"profile": path.stem, "source": str(path), **_checked(_read(path))}
    if name_or_path not in names():
        near = difflib.get_close_matches(name_or_path.lower(), names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown profile, there are {', '.join(names())}, or give a TOML file{hint}")
    path = HERE / f"{name_or_path}.toml"
    return {"profile": name_or_path, "source": path.name, **_checked(_read(path))}


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of the shipped profiles, `any` first."""
    found = sorted(path.stem for path in HERE.glob("*.toml"))
    return tuple(sorted(found, key=lambda name: name != "any"))


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # also: no FIFO and no device, which would block
            raise ValueError("not a regular file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(data) > SIZE_LIMIT:
        raise ValueError(f"longer than {SIZE_LIMIT} bytes: not a profile")
    try:
        loaded: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("not TOML: nested too deeply") from None
    return loaded


def _checked(data: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(data.keys() - KEYS.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], KEYS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(KEYS)}"
        raise ValueError(f"unknown key {unknown[0]!r}{hint}")
    if "title" not in data:
        raise ValueError("the key 'title' is missing")
    return {key: KEYS[key](key, value) for key, value in data.items()}


def _line(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise ValueError(f"{key} must be one line of text, not {value!r}"[:200])
    return value


def _texts(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise ValueError(f"{key} must be a list of texts, not {value!r}"[:200])
    return list(value)


def _capabilities(key: str, value: Any) -> list[str]:
    found = _texts(key, value)
    wrong = next((item for item in found if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", item)), None)
    if wrong is not None:
        raise ValueError(f'{key} must hold compute capabilities such as "9.0", not {wrong!r}'[:200])
    return found


def _numbers(key: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not value or not all(_is_number(item) for item in value):
        raise ValueError(f"{key} must be a list of whole numbers above 0, not {value!r}"[:200])
    return list(value)


def _range(key: str, value: Any) -> list[int]:
    limits = [value, value] if _is_number(value) and key == "count" else value
    if not isinstance(limits, list) or len(limits) != 2 or not all(_is_number(item) for item in limits):
        raise ValueError(f"{key} must be [least, most], whole numbers above 0, not {value!r}"[:200])
    if limits[0] > limits[1]:
        raise ValueError(f"{key}: {limits[0]} is more than {limits[1]}")
    return list(limits)


def _switch(key: str, value: Any) -> str:
    if value not in ("on", "off", "any"):
        raise ValueError(f'{key} must be "on", "off" or "any", not {value!r}'[:200])
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


KEYS: dict[str, Callable[[str, Any], Any]] = {
    "title": _line,
    "name": _texts,
    "cc": _capabilities,
    "memory_mib": _range,
    "sm_count": _numbers,
    "count": _range,
    "mig": _switch,
    "ecc": _switch,
}
