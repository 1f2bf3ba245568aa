"""Which Ollama is meant: given, the service's, the running server's, PATH's; wrappers, links and replaced files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pytest_gpudiscovery.outcome import Conclusion
from pytest_gpudiscovery.probes.binaries import find_binary, running
from pytest_gpudiscovery.probes.host import LiveView
from pytest_gpudiscovery.probes.recordedview import RecordedView
from pytest_gpudiscovery.stages.package import SPEC
from tests.stages import hosts
from tests.stages.test_package import conclude, install


def process(pid: int, exe: str, parent: int = 1, name: str = "ollama") -> hosts.Entries:
    """Return the entries of a running process."""
    return {
        f"/proc/{pid}/comm": hosts.file(f"{name}\n"),
        f"/proc/{pid}/status": hosts.file(f"Name:\t{name}\nPPid:\t{parent}\nUid:\t998\t998\t998\t998\n"),
        f"/proc/{pid}/exe": {"type": "link", "target": exe},
    }


PROGRAM = hosts.file("#!/bin/sh\n", 0o755)


def look(entries: hosts.Entries, *hints: tuple[str, str], path: str = "/path") -> dict[str, Any]:
    return find_binary(RecordedView(entries), None, hints, path)


def test_the_order_is_service_running_path_usual() -> None:
    entries = dict.fromkeys(("/srv/ollama", "/run/ollama", "/path/ollama", "/usr/bin/ollama"), PROGRAM)
    entries |= process(7, "/run/ollama")
    expected = [("service", "/srv/ollama"), ("running", "/run/ollama"), ("PATH", "/path/ollama")]
    for source, path in expected:
        found = look(entries, ("service", "/srv/ollama"))
        assert (found["source"], found["path"]) == (source, path)
        assert all(item["path"] != path for item in found["others"])
        entries.pop(path)
    assert look(entries)["source"] == "usual"


def test_one_file_by_several_ways_is_no_other_ollama() -> None:
    entries = {"/opt/ollama": PROGRAM, "/path/ollama": {"type": "link", "target": "/opt/ollama"}}
    found = look({**entries, **process(7, "/opt/ollama")}, ("service", "/path/ollama"))
    assert (found["path"], found["realpath"], found["others"]) == ("/path/ollama", "/opt/ollama", [])


def test_the_server_is_the_one_that_no_ollama_started() -> None:
    entries = {**process(20, "/a", parent=9), **process(9, "/a"), **process(12, "/b", name="ollama-helper")}
    found = running(RecordedView(entries))
    assert found == {"pid": 9, "parent": 1, "uid": 998, "exe": "/a", "deleted": False}
    assert running(RecordedView({**process(30, "/a", parent=9)})) is not None
    assert running(RecordedView({"/proc/5/comm": hosts.file("bash\n")})) is None


def stage(entries: hosts.Entries, **changes: Any) -> Conclusion:
    context = hosts.context(entries, **changes)
    return hosts.judged(SPEC, context, hosts.in_process(SPEC, context))


def test_a_replaced_binary_is_said() -> None:
    said = stage({"/run/ollama": PROGRAM, **process(7, "/run/ollama (deleted)")})
    assert "package.ollama.replaced" in hosts.causes(said, "warned")
    assert said.facts["server_pid"] == 7


def test_another_ollama_on_path_is_a_note() -> None:
    entries = {"/srv/ollama": PROGRAM, "/usr/bin/ollama": PROGRAM}
    said = stage(entries, hints=(("service", "/srv/ollama"),))
    assert "package.ollama.another" in hosts.causes(said, "passed")
    assert said.facts["binary"] == "/srv/ollama"
    assert "package.ollama.another" not in hosts.causes(stage(entries, ollama_path="/srv/ollama"))


def test_a_wrapper_script_leads_to_the_program(tmp_path: Path) -> None:
    real = install(tmp_path / "store" / "abc-ollama", "cuda_v12")
    hidden = real.with_name(".ollama-wrapped")
    real.rename(hidden)
    real.write_text(f'#!/bin/sh\nexport LD_LIBRARY_PATH=/opt/ollama-libs\nexec -a "$0" "{hidden}" "$@"\n')
    real.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ollama").symlink_to(real)
    found = find_binary(LiveView(), str(tmp_path), (), "")
    assert (found["realpath"], found["wrapper"]) == (str(hidden), str(real))
    said = conclude(tmp_path)
    assert said.facts["lib_dir"] == str(tmp_path / "store" / "abc-ollama" / "lib" / "ollama")


def test_a_script_that_starts_nothing_is_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "ollama").write_text("#!/bin/sh\nexec /no/such/ollama\n")
    found = find_binary(LiveView(), str(tmp_path), (), "")
    assert (found["realpath"], found["wrapper"]) == (str(tmp_path / "ollama"), None)


def test_snaps_link_to_snapd_is_followed_to_the_snap() -> None:
    entries = {
        "/snap/bin/ollama": {"type": "link", "target": "/usr/bin/snap"},
        "/usr/bin/snap": PROGRAM,
        "/snap/ollama/current": {"type": "link", "target": "105"},
        "/snap/ollama/105/bin/ollama": PROGRAM,
    }
    found = look(entries, path="/snap/bin")
    assert found["realpath"] == "/snap/ollama/105/bin/ollama"


@pytest.mark.parametrize("below", ["bin/ollama", "ollama", "usr/bin/ollama"])
def test_every_kind_of_prefix(tmp_path: Path, below: str) -> None:
    target = tmp_path / below
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/true", target)
    assert find_binary(LiveView(), str(tmp_path), (), "")["path"] == str(target)


def test_the_container_images_layout() -> None:
    entries = {
        "/usr/bin/ollama": PROGRAM,
        "/usr/lib/ollama/libggml-base.so.0": hosts.file("x"),
        "/usr/lib/ollama/cuda_v12/libggml-cuda.so": hosts.file("x"),
    }
    said = stage(entries, env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"})
    assert (said.facts["binary"], said.facts["lib_dir"]) == ("/usr/bin/ollama", "/usr/lib/ollama")
    assert [item["name"] for item in said.facts["gpu_dirs"]] == ["cuda_v12"]


def test_libraries_in_a_place_that_ollama_does_not_look_at_are_said() -> None:
    entries = {
        "/usr/bin/ollama": PROGRAM,
        "/usr/lib64/ollama/libggml-base.so.0": hosts.file("x"),
    }
    said = stage(entries, env={"PATH": "/usr/bin"})
    finding = next(check.finding for check in said.checks if check.finding and check.prerequisite == "P02")
    assert finding is not None
    assert "/usr/lib64/ollama" in finding.detail
