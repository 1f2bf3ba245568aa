"""01 package over real directories: where Ollama looks, what it finds, what is broken in it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_gpudiscovery.model import CheckOutcome, Outcome
from pytest_gpudiscovery.outcome import Conclusion
from pytest_gpudiscovery.probes import binaries, layout, libraries
from pytest_gpudiscovery.probes.host import LiveView
from pytest_gpudiscovery.stages.package import ROWS, SPEC
from pytest_gpudiscovery.supervise.types import Identity, Setup
from tests import fakes
from tests.stages import hosts

LIBRARY = next(Path("/lib").glob("*/libm.so.6")).resolve()
SMALL = Path("/bin/true").resolve()  # an ELF file that stands for the binary


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that an unprivileged probe may enter; pytest's own is closed to other users."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def install(prefix: Path, *directories: str) -> Path:
    """Make an Ollama install below PREFIX with GPU DIRECTORIES and return its binary."""
    lib = prefix / "lib" / "ollama"
    lib.mkdir(parents=True)
    (prefix / "bin").mkdir()
    shutil.copy(LIBRARY, lib / "libggml-base.so.0.0.0")
    (lib / "libggml-base.so.0").symlink_to("libggml-base.so.0.0.0")
    (lib / "libggml-base.so").symlink_to("libggml-base.so.0")
    shutil.copy(LIBRARY, lib / "libggml-cpu-haswell.so")
    for name in directories:
        major = name[-2:]
        (lib / name).mkdir()
        shutil.copy(LIBRARY, lib / name / "libggml-cuda.so")
        shutil.copy(LIBRARY, lib / name / f"libcudart.so.{major}.9.79")
        (lib / name / f"libcudart.so.{major}").symlink_to(f"libcudart.so.{major}.9.79")
    shutil.copy(SMALL, prefix / "bin" / "ollama")
    return prefix / "bin" / "ollama"


def conclude(path: str | Path | None, **context: Any) -> Conclusion:
    """Run the stage on this machine with --gpu-ollama PATH."""
    return hosts.conclusion(SPEC, hosts.context(None, ollama_path=path and str(path), **context))


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A good install with cuda_v12 and cuda_v13."""
    install(tmp_path / "usr", "cuda_v12", "cuda_v13")
    return tmp_path / "usr"


def test_a_good_install_passes_and_leaves_its_facts(prefix: Path) -> None:
    for path in (prefix, prefix / "bin" / "ollama"):
        said = conclude(path)
        assert said.outcome is Outcome.PASSED, said.summary
        assert {check.prerequisite for check in said.checks} == set(ROWS)
        assert said.facts["binary"] == str(prefix / "bin" / "ollama")
        assert said.facts["lib_dir"] == str(prefix / "lib" / "ollama")
        assert [(item["name"], item["cudart"]) for item in said.facts["gpu_dirs"]] == [
            (name, str(prefix / "lib" / "ollama" / name / f"libcudart.so.{name[-2:]}"))
            for name in ("cuda_v12", "cuda_v13")
        ]


def test_the_binary_is_found_on_path_and_through_links(
    tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "running", lambda _: None)  # a server that runs on this machine would come first
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "ollama").symlink_to(prefix / "bin" / "ollama")
    context = hosts.context(None, env={"PATH": f"relative:{folder}"})
    said = hosts.judged(SPEC, context, hosts.in_process(SPEC, context))
    assert said.outcome is Outcome.PASSED
    assert said.facts["binary"] == str(prefix / "bin" / "ollama")


def test_an_unprivileged_user_sees_what_it_may_not_execute(prefix: Path) -> None:
    (prefix / "bin" / "ollama").chmod(0o700 if os.geteuid() == 0 else 0o600)
    setup = Setup(identity=Identity(65534, 65534)) if os.geteuid() == 0 else Setup()
    said = conclude(prefix, setup=setup)
    assert hosts.causes(said, "failed") == ["package.ollama.not_executable"]


@pytest.mark.parametrize("closed", [".", "cuda_v1?"])
def test_directories_that_the_user_may_not_list_are_no_cpu_only_install(prefix: Path, closed: str) -> None:
    places = [prefix / "lib" / "ollama"] if closed == "." else list((prefix / "lib" / "ollama").glob(closed))
    for place in places:
        place.chmod(0o700 if os.geteuid() == 0 else 0o300)
    setup = Setup(identity=Identity(65534, 65534)) if os.geteuid() == 0 else Setup()
    said = conclude(prefix, setup=setup)
    for place in places:
        place.chmod(0o755)
    assert hosts.causes(said, "failed") == ["package.gpu_dir.closed"]


def drop_lib(prefix: Path) -> None:
    shutil.rmtree(prefix / "lib" / "ollama")


def rename_lib(prefix: Path) -> None:
    (prefix / "lib" / "ollama").rename(prefix / "bin" / "build")
    (prefix / "bin" / "build").rename(prefix / "bin" / "x")
    (prefix / "bin" / "build" / "lib").mkdir(parents=True)
    (prefix / "bin" / "x").rename(prefix / "bin" / "build" / "lib" / "ollama")


def drop_gpu(prefix: Path) -> None:
    for name in ("cuda_v12", "cuda_v13"):
        shutil.rmtree(prefix / "lib" / "ollama" / name)


def only_vulkan(prefix: Path) -> None:
    drop_gpu(prefix)
    folder = prefix / "lib" / "ollama" / "vulkan"
    folder.mkdir()
    shutil.copy(LIBRARY, folder / "libggml-vulkan.so")


def cut(prefix: Path, name: str = "cuda_v12/libggml-cuda.so") -> None:
    path = prefix / "lib" / "ollama" / name
    path.write_bytes(path.read_bytes()[:-5000])


def cut_both(prefix: Path) -> None:
    cut(prefix)
    cut(prefix, "cuda_v13/libggml-cuda.so")


def lfs(prefix: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\n"
    for name in ("cuda_v12", "cuda_v13"):
        (prefix / "lib" / "ollama" / name / "libggml-cuda.so").write_text(text)


def foreign(prefix: Path) -> None:
    for name in ("cuda_v12", "cuda_v13"):
        path = prefix / "lib" / "ollama" / name / "libcublas.so.12"
        data = bytearray(LIBRARY.read_bytes())
        data[18:20] = (40).to_bytes(2, "little")  # EM_ARM
        path.write_bytes(bytes(data))


def cut_binary(prefix: Path) -> None:
    path = prefix / "bin" / "ollama"
    path.write_bytes(path.read_bytes()[:-5000])


def two_bases(prefix: Path) -> None:
    (prefix / "lib" / "ollama" / "libggml-base.so").unlink()
    shutil.copy(LIBRARY, prefix / "lib" / "ollama" / "libggml-base.so")


def old_runners(prefix: Path) -> None:
    (prefix / "lib" / "ollama" / "runners" / "cuda_v11").mkdir(parents=True)


def stray(prefix: Path) -> None:
    shutil.copy(LIBRARY, prefix / "lib" / "ollama" / "libcuda.so.1")


def stray_top(prefix: Path) -> None:
    (prefix / "lib" / "ollama" / "libcudart.so.12").symlink_to("cuda_v12/libcudart.so.12")


def link_out(prefix: Path) -> None:
    (prefix / "lib" / "ollama" / "cuda_v12" / "libcublas.so.12").symlink_to(LIBRARY)


def powerless(prefix: Path) -> None:
    for path in (prefix / "lib" / "ollama").glob("cuda_v*/libggml-cuda.so"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def swap_files(prefix: Path) -> None:
    for name in ("cuda_v12", "cuda_v13"):
        (prefix / "lib" / "ollama" / name / ".libggml-cuda.so.swp").write_bytes(b"x")
        (prefix / "lib" / "ollama" / name / "libcudart.so").symlink_to("libcudart.so.0")  # for compilers alone


def collected(prefix: Path) -> None:
    for path in (prefix / "lib" / "ollama").glob("cuda_v*/libggml-cuda.so"):
        path.unlink()
        path.symlink_to("/nix/store/gone/libggml-cuda.so")


def emptied(prefix: Path) -> None:
    for path in (prefix / "lib" / "ollama").glob("cuda_v*/libggml-cuda.so"):
        path.unlink()


def looped_lib(prefix: Path) -> None:
    drop_lib(prefix)
    (prefix / "lib" / "ollama").symlink_to("ollama")


def test_a_library_that_lost_its_section_table_alone_is_whole_for_the_loader(tmp_path: Path) -> None:
    path, data = tmp_path / "libggml-cuda.so", LIBRARY.read_bytes()
    table = int.from_bytes(data[40:48], "little")
    path.write_bytes(data[:table] + bytes(len(data) - table))
    assert not libraries.ends_in_zeros(LiveView(), str(path))
    # ld.so agrees, in a process of its own: what is loaded here stays mapped, and must not be written over afterwards.
    subprocess.run([sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", path], check=True)
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert libraries.ends_in_zeros(LiveView(), str(path))


FAULTS = [
    (swap_files, "warned", ["package.library.not_elf"] * 2 + ["package.library.dangling"] * 2),
    (powerless, "failed", ["package.library.zeros"] * 2),
    (collected, "failed", ["package.library.dangling"] * 2),
    (emptied, "failed", ["package.gpu_dir.incomplete"]),
    (looped_lib, "failed", ["package.lib.dangling", "package.gpu_dir.missing"]),
    (drop_lib, "failed", ["package.lib.missing", "package.gpu_dir.missing"]),
    (drop_gpu, "failed", ["package.gpu_dir.missing"]),
    (only_vulkan, "failed", ["package.gpu_dir.no_cuda"]),
    (cut, "warned", ["package.library.truncated"]),
    (cut_both, "failed", ["package.library.truncated"] * 2),
    (lfs, "failed", ["package.library.not_elf"] * 2),
    (foreign, "failed", ["package.library.foreign"] * 2),
    (cut_binary, "failed", ["package.ollama.truncated"]),
    (two_bases, "warned", ["package.leftover.base"]),
    (old_runners, "warned", ["package.leftover.directory"]),
    (stray, "warned", ["package.stray.library"]),
    (stray_top, "warned", ["package.stray.library"]),
    (link_out, "warned", ["package.stray.link"]),
]


@pytest.mark.parametrize(
    ("name", "cause"),
    [("a:b", "package.lib.separator"), ("a;b", "package.lib.separator"), ("a[1]", "package.lib.pattern"), ("a b", "")],
)
def test_a_path_that_ollama_cannot_hand_on(tmp_path: Path, name: str, cause: str) -> None:
    install(tmp_path / name, "cuda_v12")
    assert hosts.causes(conclude(tmp_path / name), "failed") == ([cause] if cause else [])


def test_a_binary_behind_a_closed_directory_is_said(prefix: Path) -> None:
    (prefix / "bin").chmod(0o700 if os.geteuid() == 0 else 0o600)
    setup = Setup(identity=Identity(65534, 65534)) if os.geteuid() == 0 else Setup()
    said = conclude(prefix, setup=setup)
    (prefix / "bin").chmod(0o755)
    assert "may not search" in str(said.checks[0].observed)


def test_what_lies_in_the_place_of_the_binary_is_said(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ollama").symlink_to("/nix/store/gone/ollama")
    said = conclude(tmp_path)
    assert hosts.causes(said, "failed") == ["package.ollama.unusable"]
    assert "a link that leads nowhere (/nix/store/gone/ollama)" in str(said.checks[0].observed)


@pytest.mark.parametrize(("fault", "outcome", "expected"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_fault_is_named(prefix: Path, fault: Any, outcome: str, expected: list[str]) -> None:
    fault(prefix)
    said = conclude(prefix)
    assert hosts.causes(said) == expected
    assert said.outcome.value == outcome
    for check in said.checks:
        if check.finding is not None and check.finding.cause.startswith("package.library."):
            assert check.expected, "what was seen says little without what should have been"
            assert check.observed
            assert "?" not in check.expected + check.observed


def test_the_build_directory_beside_the_binary_counts(prefix: Path) -> None:
    rename_lib(prefix)
    said = conclude(prefix)
    assert said.outcome is Outcome.PASSED
    assert said.facts["lib_dir"] == str(prefix / "bin" / "build" / "lib" / "ollama")


def test_a_broken_file_beside_a_whole_directory_only_warns(prefix: Path) -> None:
    cut(prefix)
    said = conclude(prefix)
    subjects = {check.subject: check.outcome for check in said.checks if check.prerequisite == "P06"}
    assert subjects == {"dir:cuda_v12": CheckOutcome.WARNED, "dir:cuda_v13": CheckOutcome.PASSED}


def test_an_unreadable_library_is_named_for_the_user(prefix: Path) -> None:
    for name in ("cuda_v12", "cuda_v13"):
        (prefix / "lib" / "ollama" / name / "libggml-cuda.so").chmod(0o600 if os.geteuid() == 0 else 0o000)
    setup = Setup(identity=Identity(65534, 65534)) if os.geteuid() == 0 else Setup()
    said = conclude(prefix, setup=setup)
    assert hosts.causes(said, "failed") == ["package.library.unreadable"] * 2


def test_a_noexec_mount_is_seen_in_mountinfo(tmp_path: Path) -> None:
    install(tmp_path / "usr", "cuda_v12")
    lib = tmp_path / "usr" / "lib" / "ollama"
    program = {
        "type": "file",
        "mode": 0o755,
        "size": LIBRARY.stat().st_size,
        "b64": base64.b64encode((lib / "libggml-base.so").read_bytes()[:4096]).decode(),
    }
    entries: hosts.Entries = {
        "/proc/self/mountinfo": hosts.file(
            "22 1 0:21 / / rw - overlay overlay rw\n23 22 0:6 / /opt rw,noexec - ext4 /dev/vdb rw\n"
        ),
        "/opt/bin/ollama": program,
        "/opt/lib/ollama/cuda_v12/libggml-cuda.so": {**program, "mode": 0o644},
    }
    given_context = hosts.context(entries, ollama_path="/opt")
    said = hosts.judged(SPEC, given_context, hosts.in_process(SPEC, given_context))
    assert hosts.causes(said, "failed") == ["package.mount.noexec"]
    assert said.summary == "/opt is mounted noexec: nothing below /opt/lib/ollama/cuda_v12 can be loaded"


@pytest.mark.parametrize("target", ["enumeration", "runtime", "driver"])
def test_no_ollama_is_fine_for_what_needs_none(target: str) -> None:
    context = hosts.context(hosts.h100(), target=target)
    said = hosts.conclusion(SPEC, context)
    assert said.outcome is Outcome.NOT_APPLICABLE
    assert {check.prerequisite for check in said.checks} == set(ROWS)
    assert said.facts["binary"] is None


@pytest.mark.parametrize("target", ["", "bootstrap"])
def test_no_ollama_fails_for_what_needs_it(target: str) -> None:
    context = hosts.context(hosts.h100(), target=target)
    said = hosts.conclusion(SPEC, context)
    assert hosts.causes(said, "failed") == ["package.ollama.missing"]
    finding = next(check.finding for check in said.checks if check.finding)
    assert finding is not None
    assert "--gpu-until enumeration" in finding.next
    assert "/usr/bin/ollama" in finding.detail


def test_a_path_without_ollama_fails_whatever_the_target_is(tmp_path: Path) -> None:
    said = conclude(tmp_path / "absent", target="enumeration")
    assert hosts.causes(said, "failed") == ["package.ollama.unusable"]


def test_the_systems_libcudart_is_found_where_there_is_no_ollama() -> None:
    entries = hosts.h100(
        **hosts.library("/usr/local/cuda-12.9/lib64", "libcudart.so", "12.9.79"),
        **hosts.library("/usr/lib/x86_64-linux-gnu", "libcudart.so", "13.0.96"),
    )
    for name, major in (("/usr/local/cuda-12.9/lib64", "12"), ("/usr/lib/x86_64-linux-gnu", "13")):
        entries[f"{name}/libcudart.so.{major}"] = entries.pop(f"{name}/libcudart.so.1")
    context = hosts.context(entries, target="runtime")
    said = hosts.judged(SPEC, context, hosts.in_process(SPEC, context))
    assert [(item["rule"], item["version"]) for item in said.facts["system_cudart"]] == [
        ("default", "13.0.96"),
        ("toolkit", "12.9.79"),
    ]


def test_a_hang_is_the_file_systems() -> None:
    said = hosts.judged(SPEC, hosts.context(None), {"look": fakes.hang("find lib/ollama")})
    assert hosts.causes(said) == ["package.read_hang"]
    assert said.outcome is Outcome.TIMED_OUT


def test_the_glob_is_ollamas(tmp_path: Path) -> None:
    for name in ("cuda_v12", ".hidden", "mlx_cuda", "empty", "other"):
        (tmp_path / name).mkdir()
    for name in ("cuda_v12/libggml-cuda.so", ".hidden/libggml-x.so", "mlx_cuda/xggml-y", "other/libother.so"):
        (tmp_path / name).touch()
    (tmp_path / "libggml-base.so").touch()
    assert layout.gpu_directories(LiveView(), str(tmp_path)) == [".hidden", "cuda_v12", "mlx_cuda"]


NAMES = st.sampled_from(
    [
        "libggml-base.so",
        "libggml-base.so.0",
        "cuda_v12/libggml-cuda.so",
        "cuda_v12/libcudart.so.12",
        "rocm/libggml-hip.so",
    ]
)
ENTRY = st.one_of(
    st.builds(hosts.file, st.text(max_size=100), st.sampled_from([0o755, 0o000]), size=st.integers(0, 1 << 40)),
    st.binary(max_size=200).map(
        lambda data: {"type": "file", "mode": 0o644, "b64": base64.b64encode(b"\x7fELF\x02\x01" + data).decode()}
    ),
    st.sampled_from(["EACCES", "EIO", "ESTALE"]).map(lambda name: {"type": "error", "errno": name}),
    st.just({"type": "dir", "mode": 0o755}),
    st.just({"type": "link", "target": "../../../bin/ollama"}),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=st.dictionaries(NAMES, ENTRY), mounts=st.text(max_size=200))
def test_no_install_makes_the_stage_raise(files: dict[str, Any], mounts: str) -> None:
    entries: hosts.Entries = {"/opt/bin/ollama": hosts.file("x", 0o755), "/proc/self/mountinfo": hosts.file(mounts)}
    entries |= {f"/opt/lib/ollama/{name}": entry for name, entry in files.items()}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "host.json")
        path.write_text(json.dumps({"entries": entries}), encoding="utf-8")
        context = fakes.context(view={"kind": "recorded", "path": str(path)}, ollama_path="/opt")
        said = hosts.judged(SPEC, context, hosts.in_process(SPEC, context))
    assert {check.prerequisite for check in said.checks} == set(ROWS)
