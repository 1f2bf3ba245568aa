"""Which architectures ggml says that it was compiled for: a list in the constants of libggml-cuda.so."""

from __future__ import annotations

from pytest_gpudiscovery.loader.fatbin import BATCH, REGIONS, find_sections, read_header
from pytest_gpudiscovery.loader.files import File, Root
from pytest_gpudiscovery.loader.problems import Refused, Skipped

CONSTANTS = 1 << 26  # bytes of constants that are searched for the compiled list
OVERLAP = 512  # bytes; longer than any list of architectures
ARCHS = b"ARCHS = "


def read_architectures(path: str, *, root: str | None = None) -> tuple[int, ...]:
    """Return the SM numbers that ggml was compiled for, from the constants of libggml-cuda.so; () when there is no
    list.

    nvcc's __CUDA_ARCH_LIST__ is kept there as "500,610,700"; llama-server prints it as "CUDA : ARCHS = 500,610,700".
    Ollama's eras that compare it drop a device whose architecture it lacks, even where PTX would run. Never raises
    for content.
    """
    try:
        file = File(Root(root), path)
    except (Skipped, Refused):
        return ()
    try:
        header = read_header(file)
        if isinstance(header, str):
            return ()
        for offset, size, _ in find_sections(file, header, {b".rodata": False})[:REGIONS]:
            end = offset + min(size, CONSTANTS)
            for at in range(offset, end, BATCH):
                found = parse_architectures(file.read(at, min(BATCH + OVERLAP, end - at)))
                if found:
                    return found
    except OSError:
        return ()
    finally:
        file.close()
    return ()


def parse_architectures(data: bytes) -> tuple[int, ...]:
    """Return the SM numbers of the first list "500,610,700" in DATA: a constant of its own, or after "ARCHS = "."""
    # Every number ends in 0, so "0," is in each constant that is a list: to look for that takes a tenth of the time
    # that a regular expression takes over the whole of .rodata.
    places, at = [], data.find(b"0,")
    while at >= 0:
        places += [start for start in (at - 3, at - 2) if start > 0 and not data[start - 1]]
        at = data.find(b"0,", at + 1)
    at = data.find(ARCHS)
    while at >= 0:
        places.append(at + len(ARCHS))
        at = data.find(ARCHS, at + 1)
    if not places:
        return ()
    import re  # noqa: PLC0415 (costs more than a whole prediction, and few have a candidate)

    one = re.compile(rb"(?<=\0)((?:\d{3,4},){1,63}\d{3,4})\0|(?<=ARCHS = )((?:\d{3,4},){0,63}\d{3,4})")
    for found in filter(None, (one.match(data, place) for place in sorted(places))):
        numbers = [int(part) for part in (found[1] or found[2]).split(b",")]
        if numbers == sorted(numbers) and all(number % 10 == 0 and number >= 200 for number in numbers):
            return tuple(number // 10 for number in numbers)
    return ()
