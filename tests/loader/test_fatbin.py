"""Device code: what is read back from containers made here, and what a GPU does with it (rows seen on an H100)."""

from __future__ import annotations

import importlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.loader import Image, Images, read_images, will_run
from pytest_gpudiscovery.loader.kernels import capability_of, driver_floor

importlib.import_module("ci.loader.fuzz")  # a command, not a package
seeds = importlib.import_module("fuzz_seeds")
H100, CUDA_13 = (9, 0), (13, 0)
KINDS = {"elf": 2, "ptx": 1}
FLAGS = {"": 0, "a": 0x100000, "f": 0x200000, "lz4": 0x2000, "zstd": 0x8000}

IMAGES = st.builds(
    Image,
    kind=st.sampled_from(["elf", "ptx"]),
    sm=st.sampled_from([50, 75, 80, 86, 90, 100, 120]),
    suffix=st.sampled_from(["", "a", "f"]),
    ptx_isa=st.sampled_from([(8, 4), (9, 0)]),
    compression=st.sampled_from(["", "lz4", "zstd"]),
    relocatable=st.just(False),
).map(
    lambda image: (
        image if image.kind == "ptx" else Image(image.kind, image.sm, image.suffix, (0, 0), image.compression, False)
    )
)


def container(images: tuple[Image, ...]) -> bytes:
    """Return a fatbin with one 64-byte payload per image."""
    entries = b""
    for image in images:
        flags = FLAGS[image.suffix] | FLAGS[image.compression]
        major, minor = image.ptx_isa
        form = "<HHIQIIHHIIIQQQ"
        entries += struct.pack(
            form, KINDS[image.kind], 1, 64, 64, 0, 0, minor, major, image.sm, 0, 0, flags, 0, 0
        ) + bytes(64)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def library(containers: list[tuple[Image, ...]], sections: bool) -> bytes:
    """Return an ELF file that holds CONTAINERS in a segment, and in .nv_fatbin if it has section headers."""
    body = b"".join(container(images) + bytes(8) for images in containers)
    start = 64 + 56
    names = b"\0.nv_fatbin\0.shstrtab\0"
    at = start + len(body)
    table = at + len(names) + 7 & -8
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1" + bytes(9),
        3,
        62,
        1,
        0,
        64,
        table if sections else 0,
        0,
        64,
        56,
        1,
        64,
        3,
        2,
    )
    segment = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, at, at, 4096)
    rows = [(0, 0, 0, 0, 0, 0, 0, 0, 0, 0), (1, 1, 2, start, start, len(body), 0, 0, 8, 0)]
    rows.append((12, 3, 0, 0, at, len(names), 0, 0, 1, 0))
    headers = b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in rows) if sections else b""
    return (header + segment + body + names).ljust(table, b"\0") + headers


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(containers=st.lists(st.lists(IMAGES, max_size=4).map(tuple), min_size=1, max_size=4), sections=st.booleans())
def test_images_are_read_back(tmp_path: Path, containers: list[tuple[Image, ...]], sections: bool) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(library(containers, sections))
    found = read_images(str(path))
    assert found.containers == tuple(containers)
    assert found.found_by == ("sections" if sections else "magic")
    assert found.problem == ""


def test_without_section_headers(tmp_path: Path) -> None:
    (tmp_path / "library.so").write_bytes(seeds.fatbin())
    found = read_images(str(tmp_path / "library.so"))
    assert (len(found.containers), found.found_by) == (3, "magic")
    assert found.targets == ("sm_90", "sm_90a", "sm_120f", "compute_80")
    assert found.compressions == ("lz4", "zstd")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2000), data=st.data())
def test_a_cut_library_lists_what_is_left(tmp_path: Path, cut: int, data: st.DataObject) -> None:
    whole = library([(Image("elf", 90, "", (0, 0), "", False),) * 3] * 3, data.draw(st.booleans()))
    (tmp_path / "library.so").write_bytes(whole[:cut])
    found = read_images(str(tmp_path / "library.so"))
    assert len(found.images) <= 9
    assert found.problem if cut < 64 else True


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "not an ELF file"), (b"\x7fELF\1\1" + bytes(64), "not a 64-bit"), (b"text" * 40, "not an ELF file")],
)
def test_what_is_no_library_is_said(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "library.so").write_bytes(content)
    assert problem in read_images(str(tmp_path / "library.so")).problem


def test_absent_directory_and_fifo_are_answers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert read_images(str(tmp_path / "none")).problem == "No such file or directory"
    assert read_images(str(tmp_path)).problem == "cannot read file data"
    assert "blocks" in read_images(str(tmp_path / "fifo")).problem


def holds(*images: Image) -> Images:
    """Return a library of one container."""
    return Images("library.so", (images,), "sections", "")


def sass(sm: int, suffix: str = "") -> Image:
    return Image("elf", sm, suffix, (0, 0), "", False)


def ptx(sm: int, suffix: str = "", isa: tuple[int, int] = (9, 0)) -> Image:
    return Image("ptx", sm, suffix, isa, "zstd", False)


@pytest.mark.parametrize(
    ("image", "how"),
    [
        (sass(90), "native"),
        (sass(90, "a"), "native"),
        (ptx(90), "jit"),
        (ptx(90, "a"), "jit"),
        (ptx(80), "jit"),
        (ptx(75), "jit"),
        (sass(80), "no image"),
        (sass(86), "no image"),
        (sass(100), "no image"),
        (sass(100, "f"), "no image"),
        (ptx(100), "no image"),
        (ptx(120), "no image"),
        (ptx(90, isa=(9, 1)), "ptx too new"),
        (ptx(90, isa=(99, 0)), "ptx too new"),
    ],
)
def test_what_an_h100_does(image: Image, how: str) -> None:
    found = will_run(holds(image), H100, CUDA_13)
    assert found.how == how
    assert found.runs == (how in ("native", "jit"))
    assert found.reason


def test_sass_of_a_lower_minor_runs() -> None:
    assert will_run(holds(sass(80)), (8, 6), CUDA_13).how == "native"
    assert will_run(holds(sass(89)), (8, 6), CUDA_13).how == "no image"
    assert will_run(holds(sass(100, "f")), (10, 3), CUDA_13).how == "native"
    assert capability_of(120) == (12, 0)


def test_native_code_is_preferred_and_can_be_forced_away() -> None:
    both = holds(sass(90), ptx(80))
    assert will_run(both, H100, CUDA_13).target == "sm_90"
    forced = will_run(both, H100, CUDA_13, {"CUDA_FORCE_PTX_JIT": "1"})
    assert (forced.how, forced.target, forced.eager_stall) == ("jit", "compute_80", True)
    assert will_run(holds(sass(90)), H100, CUDA_13, {"CUDA_FORCE_PTX_JIT": "1"}).how == "no image"


def test_eager_loading_stalls_where_everything_is_compiled() -> None:
    eager = {"CUDA_MODULE_LOADING": "EAGER"}
    many = Images("library.so", ((ptx(90),),) * 125, "sections", "")
    found = will_run(many, H100, CUDA_13, eager)
    assert (found.eager_stall, found.jit_modules) == (True, 125)
    assert not will_run(many, H100, CUDA_13).eager_stall
    assert not will_run(many, H100, CUDA_13, {"CUDA_MODULE_LOADING": "LAZY"}).eager_stall
    assert not will_run(holds(sass(90), ptx(90)), H100, CUDA_13, eager).eager_stall


def test_containers_are_judged_apart() -> None:
    mixed = Images("library.so", ((sass(90),), (sass(80),), (ptx(80),)), "sections", "")
    found = will_run(mixed, H100, CUDA_13)
    assert (found.how, found.uncovered, found.jit_modules) == ("native", 1, 1)
    assert will_run(Images("library.so", ((),), "sections", ""), H100, CUDA_13).how == "no device code"


def test_an_unknown_driver_is_given_the_benefit() -> None:
    assert will_run(holds(ptx(90, isa=(9, 1))), H100, None).how == "jit"
    assert will_run(holds(ptx(90, isa=(8, 4))), H100, (12, 3)).needs_cuda == (12, 4)


@pytest.mark.parametrize(
    ("runtime", "driver", "cc", "floor"),
    [
        ((12, 4), (535, 0), H100, (550, 0)),
        ((12, 4), (550, 54), H100, None),
        ((12, 8), (560, 0), H100, None),
        ((12, 8), (560, 0), (6, 1), (570, 0)),
        ((13, 0), (575, 0), H100, (580, 0)),
        ((13, 0), (580, 95), H100, None),
    ],
)
def test_driver_floors(
    runtime: tuple[int, int], driver: tuple[int, int], cc: tuple[int, int], floor: tuple[int, int] | None
) -> None:
    found = driver_floor(holds(ptx(80)), runtime, driver, cc)
    assert (found[0] if found else None) == floor
