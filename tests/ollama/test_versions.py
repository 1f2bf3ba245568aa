"""Releases by line number, and the eras: data that must be whole and agree with itself."""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.ollama import eras, versions
from pytest_gpudiscovery.ollama.messages import filter_pattern, identify, messages
from pytest_gpudiscovery.ollama.versions import load
from pytest_gpudiscovery.probes import eras as probed
from pytest_gpudiscovery.stages import protocol, second_pass
from tests.ollama import reading
from tests.ollama.writer import Log, begin, config, cpu, fail


@pytest.mark.parametrize(
    ("file", "line", "message", "releases"),
    [
        ("runner.go", 464, "failure", "0.13.2 to 0.22.1"),
        ("runner.go", 462, "failure", "0.23.0 to 0.24.0"),
        ("runner.go", 507, "failure", "0.12.4 to 0.12.5"),
        ("runner.go", 522, "failure.c", "0.31.2 to 0.32.15"),
        ("routes.go", 1768, "server.vram_context", "0.16.2 to 0.17.4"),
        ("routes.go", 1852, "server.vram_context", "0.20.0 to 0.20.4"),
        ("types.go", 60, "result.device", "0.12.7 to 0.24.0"),
        ("gpu.go", 217, "start.a", "0.5.8 to 0.12.3"),
    ],
)
def test_a_line_number_names_releases(file: str, line: int, message: str, releases: str) -> None:
    found = versions.at(file, line, message)
    assert found is not None
    assert versions.words(found) == releases


def test_what_the_table_does_not_know() -> None:
    assert versions.at("runner.go", 1, "failure") == 0
    assert versions.at("other.go", 464, "failure") is None
    assert versions.at(None, None, "failure") is None
    assert versions.words(0) == "none that is known"
    assert versions.of("0.16.3") == versions.of("v0.16.3") != 0
    assert versions.of("0.16.3-rc1") == 0


def test_the_table_is_whole() -> None:
    releases = versions.releases()
    assert releases == tuple(sorted(releases, key=lambda release: versions.number(release) or ()))
    table = versions.load("lines")["lines"]
    for by_message in table.values():
        for message, ranges in by_message.items():
            assert message in messages()
            for line, first, last in ranges:
                assert line > 0
                assert versions.between(first, last)
                # A release is of an era that has the message: else line numbers and eras contradict each other.
                assert versions.between(first, last) & messages()[message].releases
    for message in versions.COMPLETE:
        found = 0
        for by_message in table.values():
            for _, first, last in by_message.get(message, ()):
                found |= versions.between(first, last)
        # "server config" came with 0.1.34, "inference compute" with 0.1.35; before, the era had neither.
        wanted = messages()[message].releases & versions.between("0.1.35", None)
        if message == "server.vram_context":
            wanted &= versions.between("0.15.5", None)
        if message == "failure.c":
            wanted &= versions.between("0.30.0", None)
        assert wanted & ~found == 0, message


def test_several_lines_narrow_the_range() -> None:
    log = fail(Log().put("runner.go:67", "discovering available GPUs...").at(30.03), "cuda_v12")
    assert reading.only(log)["versions"]["releases"] == "0.13.2 to 0.22.1"
    cpu(log.at(0.25))
    found = reading.only(log)["versions"]
    assert found["releases"] == "0.16.2 to 0.17.4"
    assert found["spans"] == [["0.16.2", "0.17.4"]]
    assert {entry["source"]: entry["releases"] for entry in found["evidence"]}["runner.go:464"] == "0.13.2 to 0.22.1"


def test_a_version_that_the_server_names_is_exact() -> None:
    found = reading.only(cpu(fail(begin(Log(), "0.17.1").at(30), "cuda_v12")))["versions"]
    assert (found["exact"], found["releases"], found["contradicted"]) == ("0.17.1", "0.17.1", False)


def test_a_build_without_a_version_is_known_by_its_lines() -> None:
    found = reading.only(cpu(fail(begin(Log(), "0.0.0").at(30), "cuda_v12")))["versions"]
    assert (found["exact"], found["releases"]) == ("0.0.0", "0.16.2 to 0.17.4")


def test_a_changed_build_is_said() -> None:
    log = begin(Log())
    log.put("runner.go:999", "failure during GPU discovery", error="failed to finish discovery before timeout")
    server = reading.only(cpu(log))
    assert server["versions"]["unlisted"] == [{"source": "runner.go:999", "message": "failure"}]
    assert "unlisted" in reading.ids(server)
    log = config(Log())
    log.put("routes.go:1718", "Listening on 127.0.0.1:11434 (version 0.32.15)")
    log.put("runner.go:67", "discovering available GPUs...")
    assert "contradicted" in reading.ids(reading.only(log))


def test_every_release_is_of_one_era() -> None:
    for release in versions.releases():
        assert len(eras.eras_in(versions.of(release))) == 1, release
        found = eras.era_of(release)
        assert found is not None
        ranges = eras.sub_ranges_in(versions.of(release))
        assert [entry.id[0] for entry in ranges] == ([] if found.id == "A" else [found.id]), release


@pytest.mark.parametrize(
    ("version", "era"),
    [("0.12.3", "A"), ("v0.12.4", "B"), ("0.24.0", "B"), ("0.30.0-rc2", "C"), ("0.99.0", "C"), ("0.1.1", "A")],
)
def test_the_era_of_a_version(version: str, era: str) -> None:
    found = eras.era_of(version)
    assert found is not None
    assert found.id == era


def test_the_gate_and_the_log_reader_have_the_same_borders() -> None:
    """Probes travel without data files, so the borders of the gate's stages are code: they must be the table's."""
    for release in versions.releases():
        found, known = eras.era_of(release), versions.of(release)
        assert found is not None
        assert probed.era(release) == found.id == protocol.of({"version": release}, newer=False).era, release
        how = second_pass.filter_of(release)
        if found.id == "A":
            continue
        assert (how == second_pass.NONE) == ("CUDA" not in eras.second_pass(known)), release
        assert (how == second_pass.INDEX) == (found.id == "C"), release
        assert (how == second_pass.ALL) == ([entry.id for entry in eras.sub_ranges_in(known)] == ["B4"]), release
        assert eras.budget_s(eras.FIRST_PASS, known, directory="cuda_v12") == protocol.FIRST_PASS_S
        assert eras.budget_s(eras.VALIDATION, known) == protocol.SECOND_PASS_S
    assert eras.budget_s("native_probe") == protocol.NATIVE_S
    announced = load("eras")["starting_runner"]["first"]
    assert versions.number(announced) == protocol.SHARED_START


def test_no_era_without_a_version() -> None:
    assert eras.era_of("main") is None


@pytest.mark.parametrize(
    ("kind", "version", "directory", "windows", "seconds"),
    [
        ("first_pass", "0.16.3", "cuda_v12", False, 30.0),
        ("first_pass", "0.16.3", "cuda_v12", True, 90.0),
        ("first_pass", "0.12.6", "cuda_v12", True, 30.0),
        ("first_pass", "0.12.8", "rocm", False, 60.0),
        ("first_pass", "0.12.8", "cuda_v13", False, 30.0),
        ("first_pass", "0.32.15", "cuda_v12", False, 30.0),
        ("validation", "0.16.3", "cuda_v12", True, 30.0),
        ("refresh", "0.16.3", "cuda_v12", False, 3.0),
        ("native_probe", "0.32.15", "cuda_v12", False, 15.0),
    ],
)
def test_budgets(kind: str, version: str, directory: str, windows: bool, seconds: float) -> None:
    assert eras.budget_s(kind, versions.of(version), directory=directory, windows=windows) == seconds


def test_a_budget_of_no_release_in_particular() -> None:
    assert eras.budget_s("first_pass") == 30.0
    with pytest.raises(KeyError):
        eras.budget_s("loading")


@pytest.mark.parametrize(
    ("version", "libraries"),
    [("0.12.6", {"CUDA", "ROCm", "Vulkan"}), ("0.12.9", {"CUDA", "ROCm", "Vulkan"}), ("0.12.10", {"ROCm"}),
     ("0.13.0", {"ROCm"}), ("0.13.1", {"CUDA", "ROCm"}), ("0.32.15", {"CUDA", "ROCm"})],
)  # fmt: skip
def test_who_has_a_second_pass(version: str, libraries: set[str]) -> None:
    assert eras.second_pass(versions.of(version)) == libraries


@pytest.mark.parametrize("message", list(messages().values()), ids=lambda message: message.id)
def test_every_message_is_recognised(message: object) -> None:
    entry = messages()[getattr(message, "id", "")]
    for text in (entry.text, *entry.aliases):
        words = text if " " not in entry.text else f"{text} and more"
        found = identify(words)
        assert found is not None
        assert found.id == entry.id
        for quote in ('msg="{}"', "msg={}", '"msg":"{}"', r'"MESSAGE":"msg=\"{}\""', r'"msg": "{}"'):
            assert filter_pattern().search(quote.format(words).encode()), quote


def test_words_that_begin_like_a_message() -> None:
    assert identify("systematic") is None
    assert identify("subprocesses were ended") is None
    assert identify("[0] CUDA GPU is too old. Compute Capability detected: 3.5") is not None
    assert identify("") is None
