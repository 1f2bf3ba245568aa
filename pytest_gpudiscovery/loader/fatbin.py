"""Device code in a CUDA library: which images it holds, for which GPUs, compressed how.

The format, checked against nvcc 13.0, cuobjdump 13.5 and NVIDIA's own libraries: the section .nv_fatbin (a read-only
PT_LOAD) holds containers, aligned to 8 bytes: u32 0xBA55ED50, u16 version, u16 header size, u64 size of the entries.
An entry begins with its kind, header size and payload size, so a list needs 64 bytes of each. Without section
headers, containers are found by their magic in the read-only segments (cuobjdump then finds nothing). __nv_relfatbin
holds relocatable device code.
"""

from __future__ import annotations

from struct import Struct

from pytest_gpudiscovery.loader.elf import HEADER, PROGRAM_HEADER, PT_LOAD
from pytest_gpudiscovery.loader.files import File, Root
from pytest_gpudiscovery.loader.problems import Refused, Skipped
from pytest_gpudiscovery.loader.record import dataclass

MAGIC = b"\x50\xed\x55\xba\x01\x00\x10\x00"  # magic, version 1, header of 16 bytes
FATBIN = 0xBA55ED50
CONTAINER = Struct("<I2xHQ")  # magic, bytes of this header and of the entries
ENTRY = Struct("<H2xIQ8xQ8xQ16x")  # kind, bytes of this header and of the payload, version and SM, flags
SECTION = Struct("<IIQQQQIIQQ")
SHT_NOBITS = 8
REGIONS = 8  # sections or segments that are looked at: more may overlap
IMAGES = 1 << 18
IMAGES_KNOWN = 1 << 12
PADDING = 1 << 16  # bytes between containers that are searched for the next magic
BATCH = 1 << 20  # bytes per read while searching
# Most payloads in NVIDIA's own libraries take 2 KB and lie together, others take megabytes: after a short step the next
# AHEAD bytes are read at once, after a long one only what is needed.
NEAR, AHEAD = 1 << 12, 1 << 14
HEADERS = CONTAINER.size + ENTRY.size
PF_X = 1

PTX, ELF = "ptx", "elf"
KINDS = {1: PTX, 2: ELF}
FLAG_LZ4, FLAG_ZSTD, FLAG_ARCH, FLAG_FAMILY = 0x2000, 0x8000, 0x100000, 0x200000
LIBRARY_SECTIONS = {b".nv_fatbin": False, b"__nv_relfatbin": True}


@dataclass(frozen=True)
class Image:
    """One kind of image; equal ones are one object.

    `kind` "ptx", "elf" (SASS) or the number of another kind. `sm` is the number nvcc was given (90); `suffix` "a" for
    architecture-specific, "f" for family-specific code, else "". `ptx_isa` is (major, minor) of PTX, (0, 0) for SASS.
    `compression` "", "lz4" or "zstd". `relocatable` is -rdc code, which only a device linker uses.
    """

    kind: str
    sm: int
    suffix: str
    ptx_isa: tuple[int, int]
    compression: str
    relocatable: bool

    @property
    def target(self) -> str:
        """The name nvcc uses: sm_90a, compute_90."""
        return f"{'compute' if self.kind == PTX else 'sm'}_{self.sm}{self.suffix}"


@dataclass(frozen=True)
class Images:
    """All images of a library, by container (nvcc makes one per source file).

    `found_by` is "sections", "magic" or ""; `problem` says what stopped the reading, "" if nothing did: what was
    found before is still listed.
    """

    path: str
    containers: tuple[tuple[Image, ...], ...]
    found_by: str
    problem: str

    @property
    def images(self) -> tuple[Image, ...]:
        """Every image, in file order."""
        return tuple(image for container in self.containers for image in container)

    @property
    def alike(self) -> list[tuple[tuple[Image, ...], int]]:
        """The distinct containers in file order, each with how often it comes: some 20 of libcublasLt.so's 2800."""
        first: dict[tuple[int, ...], tuple[Image, ...]] = {}
        numbers: dict[tuple[int, ...], int] = {}
        for container in self.containers:
            key = tuple(map(id, container))  # equal images are one object, and hashing one costs more
            first.setdefault(key, container)
            numbers[key] = numbers.get(key, 0) + 1
        return [(container, numbers[key]) for key, container in first.items()]

    @property
    def distinct(self) -> dict[Image, int]:
        """The distinct images in file order, each with how often it comes."""
        counted: dict[Image, int] = {}
        for container, number in self.alike:
            for image in container:
                counted[image] = counted.get(image, 0) + number
        return counted

    @property
    def targets(self) -> tuple[str, ...]:
        """The distinct targets, SASS first, by number."""
        distinct = {(image.kind != ELF, image.sm, image.suffix, image.target) for image in self.distinct}
        return tuple(target for *_, target in sorted(distinct))

    @property
    def compressions(self) -> tuple[str, ...]:
        """The kinds of compression used."""
        return tuple(sorted({image.compression for image in self.distinct} - {""}))


def read_images(path: str, *, root: str | None = None) -> Images:
    """List the device code in PATH; never raises for what the file contains (see `Images.problem`)."""
    try:
        file = File(Root(root), path)
    except Skipped as skipped:
        return Images(path, (), "", skipped.reason)
    except Refused as refused:
        return Images(path, (), "", refused.text)
    reader = _Reader(file)
    try:
        problem = reader.read()
    except OSError as error:
        problem = f"reading fails: {error.strerror}"
    finally:
        file.close()
    return Images(path, tuple(reader.containers), reader.found_by, problem)


def read_header(file: File) -> tuple[int, ...] | str:
    """Return the fields after e_ident, or why this is no file with device code."""
    ident = file.read(0, 16)
    fields = file.unpack(HEADER, 0)
    if fields is None or ident[:4] != b"\x7fELF":
        return "not an ELF file"
    if ident[4:6] != b"\2\1":
        return "not a 64-bit little-endian ELF file"
    return fields


def find_sections(file: File, header: tuple[int, ...], wanted: dict[bytes, bool]) -> list[tuple[int, int, bool]]:
    """Return (offset, size, WANTED[name]) of sections; empty where section headers are gone or unusable."""
    start, size, count, names_index = header[6], header[11], header[12], header[13]
    if not start or size != SECTION.size or names_index >= count or start + size * count > file.size:
        return []
    table = list(SECTION.iter_unpack(file.read(start, size * count)))
    names = table[names_index][4]
    found = []
    for name, kind, _, _, offset, length, *_ in table:
        text = file.string(names + name, 32)
        if text in wanted and kind != SHT_NOBITS and offset < file.size:
            found.append((offset, min(length, file.size - offset), wanted[text]))
    return found


def _segments(file: File, header: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return (offset, size) of the segments that hold constants."""
    start, size, count = header[5], header[9], header[10]
    if size != PROGRAM_HEADER.size:
        return []
    data = file.read(start, size * count)
    found = []
    for kind, flags, offset, _, _, length, _, _ in PROGRAM_HEADER.iter_unpack(data[: len(data) - len(data) % size]):
        if kind == PT_LOAD and not flags & PF_X and offset < file.size:
            found.append((offset, min(length, file.size - offset)))
    return found


class _Reader:
    """Walks the containers of one file."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.containers: list[tuple[Image, ...]] = []
        self.found_by = ""
        self.left = IMAGES
        self._known: dict[tuple[int, int, int, bool], Image] = {}
        self._distinct: dict[Image, Image] = {}

    def read(self) -> str:
        """Fill `containers`; return what is wrong, "" if nothing."""
        header = read_header(self.file)
        if isinstance(header, str):
            return header
        regions = find_sections(self.file, header, LIBRARY_SECTIONS)
        self.found_by = "sections" if regions else ""
        for offset, size, relocatable in regions[:REGIONS]:
            problem = self._region(offset, offset + size, relocatable)
            if problem:
                return problem
        if regions:
            return ""
        for offset, size in _segments(self.file, header)[:REGIONS]:
            self._search(offset, offset + size)
        self.found_by = "magic" if self.containers else ""
        return "" if self.left > 0 else f"more than {IMAGES} images"

    def _region(self, at: int, end: int, relocatable: bool) -> str:
        while at + CONTAINER.size <= end:
            at = self._walk(at, end, relocatable)
            if self.left <= 0:
                return f"more than {IMAGES} images"
            rest = self.file.read(at, min(PADDING, end - at))
            place = rest.find(MAGIC, 1)
            if place < 0:
                return f"no container at offset {at:#x}" if len(rest) >= CONTAINER.size and rest.strip(b"\0") else ""
            at += place
        return ""

    def _search(self, at: int, end: int) -> None:
        while at < end and self.left > 0:
            data = self.file.read(at, min(BATCH, end - at))
            place = data.find(MAGIC)
            if place >= 0:
                at = max(self._walk(at + place, end, False), at + place + len(MAGIC))
            elif len(data) < BATCH:
                return
            else:
                at += BATCH - len(MAGIC)

    def _walk(self, at: int, end: int, relocatable: bool) -> int:
        """Read the containers that follow each other from AT on; return where there is none."""
        pread, containers, known = self.file.ahead, self.containers, self._known
        data, start, whole = b"", at, -1  # bytes read last, their offset, and where an entry in them can begin
        while at + CONTAINER.size <= end and self.left > 0:
            place = at - start
            if not 0 <= place <= whole:
                data = pread(at, AHEAD if place - whole < NEAR else HEADERS)
                start, place, whole = at, 0, len(data) - ENTRY.size
                if len(data) < CONTAINER.size:
                    break
            magic, head, size = CONTAINER.unpack_from(data, place)
            if magic != FATBIN or head < CONTAINER.size:
                break
            entry, at = at + head, at + head + size
            stop = min(at, end)
            last, held = stop - ENTRY.size, []
            for _ in range(self.left):  # CPython 3.11 specialises a function while a for loop runs, not a while
                if entry > last:
                    break
                place = entry - start
                if place > whole:
                    data = pread(entry, AHEAD if place - whole < NEAR else HEADERS)
                    start, place, whole = entry, 0, len(data) - ENTRY.size
                    if whole < 0:
                        break
                kind, head, size, target, flags = ENTRY.unpack_from(data, place)
                entry += head + size
                if head < ENTRY.size or entry > stop + 8:  # the last payload may lack its padding
                    break
                key = (kind, target, flags, relocatable)
                held.append(known.get(key) or self._image(*key))
            self.left -= len(held) or 1  # an empty container counts too: a file may hold millions
            containers.append(tuple(held))
        return at

    def _image(self, kind: int, target: int, flags: int, relocatable: bool) -> Image:
        """Return the image for these fields, the same object for all that are equal."""
        minor, major, sm = target & 0xFFFF, target >> 16 & 0xFFFF, target >> 32
        name = KINDS.get(kind, str(kind))
        suffix = "a" if flags & FLAG_ARCH else "f" if flags & FLAG_FAMILY else ""
        compression = "zstd" if flags & FLAG_ZSTD else "lz4" if flags & FLAG_LZ4 else ""
        image = Image(name, sm, suffix, (major, minor) if name == PTX else (0, 0), compression, relocatable)
        image = self._distinct.setdefault(image, image)
        if len(self._known) < IMAGES_KNOWN:
            self._known[kind, target, flags, relocatable] = image
        return image
