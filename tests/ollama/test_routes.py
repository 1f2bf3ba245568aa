"""The tables of causes: whole, sourced, reachable, and never what the log rules out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.diagnosis.catalogue import DATA as GATE_DATA
from pytest_gpudiscovery.ollama import attempts, facts, routes, statements, versions, words

ROUTES = versions.load("routes")["routes"]
CAUSES = versions.load("causes")["causes"]
EXCLUSIONS = versions.load("exclusions")["exclusions"]
ENTRIES = [*ROUTES, *CAUSES]
ROWS = {row["id"] for row in json.loads((GATE_DATA / "prerequisites.json").read_text(encoding="utf-8"))}
OPERATORS = {"in", "not_in", "min", "max"}
CAPTURED = {
    "era": "B",
    "pass": "first_pass",
    "directory": "cuda_v12",
    "vendor": "nvidia",
    "windows": False,
    "mlx_possible": True,
    "host_memory_gib": 3.8,
}


def ids(entries: Any) -> list[str]:
    return [entry.id for entry in entries]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_an_entry_is_whole(entry: dict[str, Any]) -> None:
    assert entry["title"]
    assert entry["what"].endswith((".", ":"))
    assert entry["weight"] > 0
    assert entry["weight_why"]
    assert entry["next"]
    assert entry["action"] in ("safe", "caution", "destructive")
    assert set(entry["prerequisites"]) <= ROWS
    assert entry["prerequisites"]
    assert entry["sources"]
    for condition in (*entry["needs"], *entry["supports"]):
        assert condition["fact"] in facts.NAMES
        assert condition["op"] in OPERATORS
        assert condition["why"]
        assert isinstance(condition["value"], list) == (condition["op"] in ("in", "not_in"))
    for support in entry["supports"]:
        assert support["factor"] > 1


def test_every_id_is_used_once_and_every_route_is_there() -> None:
    names = [entry["id"] for entry in (*ENTRIES, *EXCLUSIONS)]
    assert len(names) == len(set(names))
    numbers = {int("".join(filter(str.isdigit, entry["id"]))) for entry in ROUTES}
    assert numbers == set(range(1, 28))


def test_every_outcome_has_causes() -> None:
    said = {outcome for entry in CAUSES for outcome in entry["outcomes"]}
    assert said == set(versions.load("causes")["outcomes"])
    for outcome in (attempts.CRASHED, attempts.HTTP_ERROR, attempts.WRONG_SERVER, attempts.SPAWN_FAILED):
        assert routes.candidates(outcome, {})[0]


@pytest.mark.parametrize("entry", EXCLUSIONS, ids=lambda entry: entry["id"])
def test_an_exclusion_is_whole(entry: dict[str, Any]) -> None:
    assert entry["because"]
    assert entry["sources"]
    assert set(entry["prerequisites"]) <= ROWS


def test_nothing_is_both_excluded_by_a_timeout_and_left_as_its_cause() -> None:
    excluded = {row for entry in EXCLUSIONS if "timed_out" in entry["outcomes"] for row in entry["prerequisites"]}
    # P12, P22 to P26: a library that is there may block while it is loaded; memory may be short without a kill.
    left = {row for entry in ROUTES for row in entry["prerequisites"]} - {"P12", "P13", "P14", "P24", "P25", "P26"}
    assert not excluded & left


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_every_entry_is_left_for_some_facts(entry: dict[str, Any]) -> None:
    known: dict[str, Any] = {}
    for need in entry["needs"]:
        value = need["value"]
        known[need["fact"]] = None if need["op"] == "not_in" else value[0] if need["op"] == "in" else value
    outcome = entry.get("outcomes", [attempts.TIMED_OUT])[0]
    assert entry["id"] in ids(routes.candidates(outcome, known)[0])


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_every_need_excludes(entry: dict[str, Any]) -> None:
    outcome = entry.get("outcomes", [attempts.TIMED_OUT])[0]
    for need in entry["needs"]:
        value = need["value"]
        if need["op"] in ("in", "not_in"):
            other = -77 if type(value[0]) is int else "?"
            bad = value[0] if need["op"] == "not_in" else other
        else:
            bad = 0 if need["op"] == "min" else 10_000
        left, out = routes.candidates(outcome, {need["fact"]: bad})
        assert entry["id"] not in ids(left)
        assert entry["id"] in ids(out)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_every_support_speaks_for_its_entry(entry: dict[str, Any]) -> None:
    outcome = entry.get("outcomes", [attempts.TIMED_OUT])[0]
    for support in entry["supports"]:
        value = support["value"][0] if support["op"] == "in" else support["value"]
        weights = []
        for known in ({}, {support["fact"]: value}):
            found = next(item for item in routes.candidates(outcome, known)[0] if item.id == entry["id"])
            assert (support["why"] in found.speaks_for_it) == bool(known)
            weights.append(found.weight)
        assert weights[1] == pytest.approx(weights[0] * support["factor"])


KNOWN = st.fixed_dictionaries(
    {},
    optional={
        "era": st.sampled_from("ABC"),
        "pass": st.sampled_from(["first_pass", "validation", "refresh"]),
        "directory": st.sampled_from(["cuda_v12", "cuda_v13", "rocm", "vulkan", ""]),
        "vendor": st.sampled_from(["nvidia", "amd", "vulkan", "other", "none"]),
        "mark": st.sampled_from(words.marks()),
        "windows": st.booleans(),
        "shim": st.just(True),
        "nvswitch": st.booleans(),
        "gpu_count": st.integers(1, 16),
        "parallel_children": st.integers(1, 16),
        "host_memory_gib": st.floats(0.5, 4096),
        "module_loading": st.sampled_from(["EAGER", "LAZY", "ABSENT"]),
    },
)


@given(KNOWN, st.sampled_from(sorted({"timed_out", *versions.load("causes")["outcomes"]})))
def test_shares_are_shares(known: dict[str, Any], outcome: str) -> None:
    left, out = routes.candidates(outcome, known)
    shares = [entry.confidence for entry in left]
    assert shares == sorted(shares, reverse=True)
    assert all(0 <= share <= routes.CEILING for share in shares)
    assert sum(shares) < 1.02
    assert not set(ids(left)) & set(ids(out))
    everything = ROUTES if outcome == "timed_out" else [entry for entry in CAUSES if outcome in entry["outcomes"]]
    assert {entry["id"] for entry in everything} == {*ids(left), *ids(out)}


@given(KNOWN)
def test_eager_is_never_suggested_where_there_is_machine_code(known: dict[str, Any]) -> None:
    for directory in ("cuda_v12", "cuda_v11", "rocm", "vulkan", ""):
        left, out = routes.candidates("timed_out", {**known, "directory": directory})
        assert "R13b" not in ids(left)
        assert "R13b" in ids(out)


def test_the_captured_failure() -> None:
    left, out = routes.candidates("timed_out", CAPTURED)
    assert set(ids(out)) == {"R13b", "R22", "R23", "R24", "R25", "R27"}
    assert ids(left)[0] == "R1"
    assert {"R5", "R6", "R7", "R8"} <= set(ids(left)[:6])
    assert next(entry for entry in left if entry.id == "R10").speaks_for_it
    excluded = ids(routes.excluded_by("timed_out", CAPTURED))
    assert excluded == [f"X{number}" for number in range(1, 11)]


def test_what_a_pass_and_an_era_exclude() -> None:
    assert "X9" not in ids(routes.excluded_by("timed_out", {**CAPTURED, "pass": "validation"}))
    assert "X5" not in ids(routes.excluded_by("timed_out", {**CAPTURED, "era": "C"}))
    assert ids(routes.excluded_by("no_device", {"era": "B"})) == ["X11"]


def test_stages_of_prerequisites() -> None:
    assert routes.stages(["P43", "P38"]) == ("nvml", "kernel")
    assert routes.stages(["P999"]) == ()


@pytest.mark.parametrize("entry", versions.load("words")["words"], ids=lambda entry: entry["id"])
def test_a_word_is_sourced_and_its_mark_is_known(entry: dict[str, Any]) -> None:
    assert entry["source"]
    assert entry.get("mark", "a_").startswith("a_") or entry["mark"] in words.marks()
    assert words.meaning(entry["id"])


@pytest.mark.parametrize(
    ("line", "word", "values"),
    [
        ("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", "init_failed",
         ("no CUDA-capable device is detected",)),
        ("0.00.012.345 E load_backend: failed to load /x/libggml-cuda.so: libcuda.so.1: cannot open shared object file",
         "load_failed", ("/x/libggml-cuda.so", "libcuda.so.1: cannot open shared object file")),
        ("  Device 0: NVIDIA H100 80GB HBM3, compute capability 9.0, VMM: yes", "device",
         ("0", "NVIDIA H100 80GB HBM3", "9.0")),
        ("load_backend: loaded CUDA backend from /x/libggml-cuda.so", "gpu_backend", ("CUDA", "/x/libggml-cuda.so")),
        ("load_backend: loaded CPU backend from /x/libggml-cpu-x64.so", "cpu_backend", None),
        ("Listen error: listen tcp 127.0.0.1:4001: bind: cannot assign requested address", "listen_error", None),
        ("ERROR: ld.so: object '/x.so' from LD_PRELOAD cannot be preloaded (cannot open): ignored.", "preload", None),
        ("system_info: n_threads = 2 | CUDA : ARCHS = 750,900 | CPU : SSE3 = 1", "archs", ("750,900",)),
        ("CUDA error: out of memory", "cuda_error", ("out of memory",)),
        ("ollama.service: A process of this unit has been killed by the OOM killer.", "oom", None),
        ("calling cuInit", "a_cuinit", ("cuInit",)),
    ],
)  # fmt: skip
def test_words_are_recognised(line: str, word: str, values: tuple[str, ...] | None) -> None:
    found = words.recognise(line)
    assert found is not None
    assert found.id == word
    assert values is None or found.values == values


def test_a_line_that_says_nothing() -> None:
    assert words.recognise("llama_model_loader: - kv 0: general.architecture str = llama") is None
    assert words.further(None, "main") == "main"
    assert words.further("gpu_directory", "main") == "gpu_directory"
    assert words.further("a_cuinit", "a_answered") == "a_answered"
    assert "cuInit" in words.blocked_at("gpu_directory")
    assert words.exit_code(2)
    assert words.exit_code(77)


def test_statements_are_sourced_and_worded_once() -> None:
    table = versions.load("statements")
    assert {entry["group"] for entry in table["statements"]} == set(table["groups"])
    assert len(set(statements.ids())) == len(table["statements"])
    for entry in table["statements"]:
        assert entry["sources"]
        assert entry["confidence"] in ("certain", "inferred")


def test_advice_fits_the_era_and_is_filled_in() -> None:
    of_b = {entry["id"]: entry for entry in statements.advice("B", bound_s=100.0, directories="2")}
    assert set(of_b) == {"debug_level", "capture_once", "private_server", "strace"}
    assert "sleep 100" in of_b["capture_once"]["commands"][0]["command"]
    for entry in of_b.values():
        texts = [*entry["text"], *(command["command"] for command in entry["commands"])]
        assert not any("{bound_s" in text or "{directories" in text for text in texts)
        assert entry["sources"]
    assert 'Environment="OLLAMA_DEBUG=2"' in of_b["debug_level"]["commands"][0]["command"]
    assert {entry["id"] for entry in statements.advice("A")} == {"era_a", "strace"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "gpu-discovery closure /usr/local/lib/ollama/cuda_v12/libggml-cuda.so"),
        ({"lib_dir": "/usr/lib/ollama"}, "gpu-discovery closure /usr/lib/ollama/cuda_v12/libggml-cuda.so"),
        (
            {"lib_dir": "/srv/my ollama", "directory": "cuda_v13"},
            "gpu-discovery closure '/srv/my ollama'/cuda_v13/libggml-cuda.so",
        ),
        ({"directory": "rocm"}, "gpu-discovery closure /usr/local/lib/ollama/cuda_v12/libggml-cuda.so"),
        (
            {"lib_dir": "/x\nrm -rf y", "directory": "cuda_v1\nrm"},
            "gpu-discovery closure /usr/local/lib/ollama/cuda_v12/libggml-cuda.so",
        ),
        ({"lib_dir": "/$(id)"}, "gpu-discovery closure '/$(id)'/cuda_v12/libggml-cuda.so"),
    ],
)
def test_a_next_command_is_for_the_install_that_the_log_names(given: dict[str, Any], said: str) -> None:
    found, _ = routes.candidates("no_device", dict.fromkeys(facts.NAMES) | given)
    assert said in {candidate.next for candidate in found}
