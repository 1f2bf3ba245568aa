"""Discoveries: which child, in which pass, how long and how it ended, by era and log level."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.ollama import attempts
from tests.ollama import reading
from tests.ollama.writer import (
    LIB,
    VALIDATION,
    Log,
    begin,
    cpu,
    extra,
    fail,
    gpu,
    library_path,
    spawn,
    took,
)


def discovery(log: Log, index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = reading.only(log)["discoveries"][index]
    return found


def rows(log: Log, index: int = 0) -> list[tuple[str, str | None, str, float | None]]:
    """Return pass, directory, outcome and seconds of every child."""
    return [
        (entry["pass"], entry["directory"], entry["outcome"], entry["duration_s"])
        for entry in discovery(log, index)["attempts"]
    ]


def test_info_the_first_pass_of_two_directories() -> None:
    log = begin(Log())
    spawn(log.at(0.01), 4001)
    fail(log.at(30.002), "cuda_v13")
    spawn(log.at(0.003), 4002)
    log = gpu(log.at(0.7))
    assert rows(log) == [
        ("first_pass", "cuda_v13", "timed_out", 30.002),
        ("unknown", None, "ended", 0.7),
    ]
    found = discovery(log)
    assert found["duration_s"] == pytest.approx(30.715)
    server = reading.only(log)
    assert server["answer"] == "gpu_found"
    assert "found.late" in reading.ids(server)


def test_debug_names_every_directory() -> None:
    log = begin(Log(), debug="DEBUG")
    spawn(log.at(0.01), 4001, "cuda_v12", debug=True)
    took(log.at(0.9), "cuda_v12", "890.5ms")
    spawn(log, 4002, "cuda_v13", debug=True)
    fail(log.at(30.001), "cuda_v13")
    took(log, "cuda_v13", "30.0008s")
    log.put("runner.go:124", "evaluating which, if any, devices to filter out", "DEBUG", initial_count="1")
    device = {
        "library": f"{LIB}/cuda_v12",
        "description": "NVIDIA H100 PCIe",
        "compute": "9.0",
        "pci_id": "0000:06:00.0",
    }
    log.put("runner.go:146", "verifying if device is supported", "DEBUG", **device)
    spawn(log, 4003, "cuda_v12", debug=True, **VALIDATION)
    took(log.at(0.5), "cuda_v12", "500ms", VALIDATION)
    assert rows(gpu(log)) == [
        ("first_pass", "cuda_v12", "devices", 0.8905),
        ("first_pass", "cuda_v13", "timed_out", 30.0008),
        ("validation", "cuda_v12", "devices", 0.5),
    ]


def test_debug_no_device_anywhere() -> None:
    log = begin(Log(), debug="DEBUG")
    for index, directory in enumerate(("cuda_v12", "cuda_v13")):
        spawn(log, 4001 + index, directory, debug=True)
        took(log.at(0.1), directory, "100ms")
    log.put("runner.go:124", "evaluating which, if any, devices to filter out", "DEBUG", initial_count="0")
    server = reading.only(cpu(log))
    assert [entry["outcome"] for entry in server["discoveries"][0]["attempts"]] == ["no_device", "no_device"]
    assert server["summary"].startswith("no GPU: discovery ended after")
    assert "fast" in reading.ids(server)
    left = [part["outcome"] for part in server["analyses"]]
    assert left == ["no_device"]
    assert "X11" in [entry["id"] for entry in server["analyses"][0]["excluded"]]


def test_the_second_pass_shares_its_30_s() -> None:
    log = begin(Log())
    spawn(log.at(0.01), 4001)
    log.at(1.0)
    for port in range(4002, 4006):
        spawn(log, port)
        log.at(0.002)
    log.at(30.0)
    for index in range(4):
        fail(log, "cuda_v12", env={"CUDA_VISIBLE_DEVICES": f"GPU-{index}", "GGML_CUDA_INIT": "1"})
    server = reading.only(cpu(log))
    kinds = [(entry["pass"], entry["outcome"]) for entry in server["discoveries"][0]["attempts"]]
    assert kinds == [("unknown", "ended"), *[("validation", "timed_out")] * 4]
    assert {"timeout.validation", "timeout.meaning"} <= set(reading.ids(server))
    assert "timeout.first_pass" not in reading.ids(server)
    assert len(server["analyses"]) == 1
    left = [entry["id"] for entry in server["analyses"][0]["candidates"]]
    assert {"R22", "R23"} <= set(left)
    assert not {"R24", "R13b"} & set(left)
    assert server["analyses"][0]["facts"]["parallel_children"] == 4


def test_a_refresh_is_no_start() -> None:
    log = gpu(spawn(begin(Log())).at(0.5))
    spawn(log.at(600), 5001)
    fail(log.at(3.0), "cuda_v12")
    log.put("runner.go:356", "unable to refresh free memory, using old values", "WARN")
    server = reading.only(log)
    assert server["answer"] == "gpu_found"
    assert (server["refreshes"]["seen"], server["refreshes"]["failed"], server["refreshes"]["slow"]) == (1, 1, 0)
    assert rows(log, 1) == [("refresh", "cuda_v12", "timed_out", 3.0)]
    assert {"timeout.refresh", "refresh.failed"} & set(reading.ids(server)) == {"refresh.failed"}
    left = server["analyses"][0]["candidates"]
    assert "R24" in [entry["id"] for entry in left]


@pytest.mark.parametrize(
    ("seconds", "kind"), [(3.0, "refresh"), (30.0, "first_pass")], ids=["3 s: a refresh", "30 s: a first pass"]
)
def test_without_a_beginning_the_time_tells_the_pass(seconds: float, kind: str) -> None:
    log = fail(spawn(Log()).at(seconds), "cuda_v12")
    assert rows(log) == [(kind, "cuda_v12", "timed_out", seconds)]


def test_a_lone_failure_line_leaves_the_pass_open() -> None:
    log = fail(Log(), "cuda_v12")
    assert rows(log) == [("unknown", "cuda_v12", "timed_out", None)]
    server = reading.only(log)
    assert server["answer"] == "cannot_tell"
    assert "timeout.pass_unknown" in reading.ids(server)
    log = cpu(log.at(0.25))
    assert rows(log) == [("first_pass", "cuda_v12", "timed_out", None)]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ("failed to finish discovery before timeout", attempts.TIMED_OUT),
        ("context deadline exceeded", attempts.TIMED_OUT),
        ("runner crashed", attempts.CRASHED),
        ("runner error: failed to initialize backend: open /tmp/1.bin: no space left on device", attempts.HTTP_ERROR),
        ("llamarunner free vram reporting not supported", attempts.WRONG_SERVER),
        ("fork/exec /usr/local/bin/ollama: resource temporarily unavailable", attempts.SPAWN_FAILED),
        ("llama-server --list-devices failed: exit status 1", attempts.FAILED),
        ("", attempts.FAILED),
    ],
)
def test_what_an_error_means(error: str, outcome: str) -> None:
    assert attempts.outcome_of(error) == outcome
    server = reading.only(cpu(fail(begin(Log()).at(1), "cuda_v12", error)))
    assert server["discoveries"][0]["attempts"][0]["outcome"] == outcome
    assert server["answer"] == "no_gpu"
    assert server["analyses"][0]["candidates"]


def test_trace_shows_how_far_the_child_came() -> None:
    log = begin(Log(), debug="DEBUG-4")
    log.put("runner.go:440", "starting runner for device discovery", "TRACE", libDirs=library_path("cuda_v12"))
    spawn(log, 4001, "cuda_v12", debug=True)
    steps = [
        (None, "spawned"),
        (("runner.go:1411", "starting ollama engine", {}), "main"),
        (("runner.go:1446", "Server listening on 127.0.0.1:4001", {}), "listening"),
        (("ggml.go:94", "ggml backend load all from path", {"path": LIB}), "top_directory"),
        (("ggml.go:94", "ggml backend load all from path", {"path": f"{LIB}/cuda_v12"}), "gpu_directory"),
        ("ggml_cuda_init: found 1 CUDA devices:", "enumerated"),
        (f"load_backend: loaded CUDA backend from {LIB}/cuda_v12/libggml-cuda.so", "backend"),
        (("ggml.go:104", "system", {"CUDA.0.ARCHS": "900"}), "system"),
        (("runner.go:1391", "gathering device infos took", {"duration": "1ms"}), "memory"),
    ]
    for step, mark in steps:
        if isinstance(step, str):
            log.raw(step)
        elif step is not None:
            log.put(step[0], step[1], **step[2])
        so_far = Log(log.now, lines=list(log.lines))
        server = reading.only(cpu(fail(so_far.at(30.0), "cuda_v12")))
        facts = server["analyses"][0]["facts"]
        assert facts["mark"] == mark
        assert "timeout.mark" in reading.ids(server)
        left = {entry["id"] for entry in server["analyses"][0]["candidates"]}
        assert ("R8" in left) == (mark == "spawned")
        assert ("R1" in left) == (mark == "gpu_directory")
        assert ("R11" in left) == (mark == "top_directory")
        assert ("R17" in left) == (mark == "listening")
        assert ("R14" in left) == (mark in ("backend", "system"))
        assert "R20" in left


def test_the_environment_of_a_child_is_used() -> None:
    log = begin(Log(), debug="DEBUG")
    spawn(log, 4001, "cuda_v13", debug=True, CUDA_MODULE_LOADING="EAGER", GGML_NO_BACKTRACE="1")
    server = reading.only(cpu(fail(log.at(30), "cuda_v13")))
    left = server["analyses"][0]["candidates"]
    assert left[0]["id"] == "R13b"
    assert left[0]["confidence"] > 0.5
    assert "R15" not in [entry["id"] for entry in left]
    log = begin(Log(), debug="DEBUG")
    spawn(log, 4001, "cuda_v13", debug=True)
    left = reading.only(cpu(fail(log.at(30), "cuda_v13")))["analyses"][0]["candidates"]
    assert "R13b" not in [entry["id"] for entry in left]


def test_detail_of_0_23() -> None:
    log = Log().put("runner.go:67", "discovering available GPUs...")
    log.at(2).put(
        "runner.go:462",
        "failure during GPU discovery",
        OLLAMA_LIBRARY_PATH=library_path("cuda_v12"),
        extra_envs="map[]",
        error="runner crashed",
        detail="CUDA error: out of memory",
    )
    server = reading.only(cpu(log, "routes.go:1914"))
    assert server["versions"]["releases"] == "0.23.2 to 0.24.0"
    assert "failure.detail" in reading.ids(server)


def test_the_list_of_variables_before_0_12_7() -> None:
    log = Log().put("runner.go:80", "discovering available GPUs...").at(30)
    log.put(
        "runner.go:507",
        "failure during GPU discovery",
        OLLAMA_LIBRARY_PATH=library_path("cuda_v13"),
        extra_envs="[GGML_CUDA_INIT=1 CUDA_VISIBLE_DEVICES=GPU-1]",
        error="failed to finish discovery before timeout",
    )
    server = reading.only(log)
    assert server["discoveries"][0]["attempts"][0]["pass"] == "validation"
    assert server["discoveries"][0]["attempts"][0]["extra"] == {"GGML_CUDA_INIT": "1", "CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert server["versions"]["releases"] == "0.12.4 to 0.12.5"


def era_c(directory: str = "cuda_v13") -> tuple[Log, str]:
    log = Log().put("routes.go:2008", "Listening on 127.0.0.1:11434 (version 0.32.15)")
    return log.put("runner.go:60", "discovering available GPUs..."), library_path(directory)


def test_era_c_the_watchdog_and_the_process_that_hung() -> None:
    log, path = era_c()
    log.at(30.0).put(
        "runner.go:584",
        "llama-server GPU discovery watchdog timed out",
        "WARN",
        OLLAMA_LIBRARY_PATH=path,
        extra_envs="map[]",
        error="context deadline exceeded",
    )
    log.put(
        "runner.go:522",
        "failure during llama-server GPU discovery",
        OLLAMA_LIBRARY_PATH=path,
        extra_envs="map[]",
        error="context deadline exceeded",
        detail="",
    )
    without = Log(log.now, lines=list(log.lines))
    log.at(0.1).put(
        "llama_server.go:130",
        "llama-server discovery: timed out waiting for server startup",
        "WARN",
        error="context deadline exceeded",
        libDirs=path,
        lines_captured="0",
    )
    server = reading.only(cpu(log, "routes.go:2058"))
    attempt = server["discoveries"][0]["attempts"]
    assert [(entry["outcome"], entry["process"], entry["lines_captured"]) for entry in attempt] == [
        ("timed_out", "llama-server", 0)
    ]
    assert {"timeout.meaning_c", "timeout.process"} <= set(reading.ids(server))
    assert "timeout.meaning" not in reading.ids(server)
    left = {entry["id"] for entry in server["analyses"][0]["candidates"]}
    assert not left & {"R9", "R13b", "R16", "R17", "R18", "R19"}, "era C asks nothing over the loopback"
    assert {"R1", "R2", "R8", "R10"} <= left
    server = reading.only(cpu(without, "routes.go:2058"))
    assert "--list-devices" in server["discoveries"][0]["attempts"][0]["process"]


def test_era_c_fast_failures_and_filters() -> None:
    log, path = era_c("cuda_v12")
    log.at(0.5).put(
        "runner.go:522",
        "failure during llama-server GPU discovery",
        OLLAMA_LIBRARY_PATH=path,
        extra_envs="map[]",
        error="llama-server --list-devices failed: exit status 1",
        detail="error: failed",
    )
    server = reading.only(cpu(log, "routes.go:2058"))
    assert server["analyses"][0]["outcome"] == "c_failed"
    log, _ = era_c("cuda_v12")
    values = {"device": "NVIDIA H100 PCIe", "compute": "9.0", "driver": "535", "required_driver": "550 or newer"}
    log.at(0.5).put("cuda_compat.go:59", "NVIDIA driver too old", "WARN", **values)
    server = reading.only(cpu(log, "routes.go:2058"))
    assert server["analyses"][0]["candidates"][0]["id"] == "C3"
    assert "c.driver_old" in reading.ids(server)
    log, path = era_c("cuda_v12")
    log.put("llama_server.go:299", "skipping CUDA device — compute capability not in compiled architectures", cc="900")
    assert reading.only(cpu(log, "routes.go:2058"))["analyses"][0]["candidates"][0]["id"] == "C4"


def test_era_a_says_what_cuinit_answered() -> None:
    log = Log().put("routes.go:1528", "Listening on 127.0.0.1:11434 (version 0.12.3)")
    log.put("gpu.go:217", "looking for compatible GPUs").at(0.2)
    text = (
        "unknown error initializing cuda driver library /usr/lib/libcuda.so.580: cuda driver library init failure: 999"
    )
    log.put("gpu.go:624", f"{text}. see https://github.com/ollama/ollama/...", "WARN")
    log.put("gpu.go:396", "no compatible GPUs were discovered")
    log.put("types.go:131", "inference compute", id="0", library="cpu", variant="", compute="", driver="0.0", name="")
    server = reading.only(log)
    assert (server["answer"], [era["id"] for era in server["eras"]]) == ("no_gpu", ["A"])
    assert any(text in entry["text"] for entry in server["conclusions"] if entry["id"] == "a.text")


def test_era_a_blocks_in_silence() -> None:
    log = Log().put("routes.go:1528", "Listening on 127.0.0.1:11434 (version 0.12.3)")
    log.put("gpu.go:217", "looking for compatible GPUs")
    server = reading.only(log)
    assert server["answer"] == "cannot_tell"
    assert "a.silent" in reading.ids(server)
    assert server["analyses"][0]["outcome"] == "blocked_a"
    assert "no timeout" in " ".join(entry["text"] for entry in server["conclusions"])
    # Other lines show that time passes; at DEBUG the last word names the call.
    log.put("gpu.go:98", "searching for GPU discovery libraries for NVIDIA", "DEBUG").raw("calling cuInit")
    log.at(300).raw("2023-11-14T22:20:00Z gpu-host systemd[1]: something else")
    server = reading.only(log)
    assert "a.blocked" in reading.ids(server)
    assert server["analyses"][0]["candidates"][0]["id"] == "A1"
    assert server["analyses"][0]["candidates"][0]["speaks_for_it"]


@pytest.mark.parametrize(("seconds", "statement"), [(12.0, "bc.cut"), (500.0, "bc.overdue")])
def test_a_log_that_ends_before_the_answer(seconds: float, statement: str) -> None:
    log = spawn(begin(Log())).at(seconds)
    log.put("sched.go:1", "something that says nothing")
    server = reading.only(log)
    assert server["answer"] == "cannot_tell"
    assert statement in reading.ids(server)
    assert "mute_port" in reading.ids(server)


def test_the_childs_own_words_name_the_error() -> None:
    log = begin(Log(), debug="DEBUG-4")
    spawn(log, 4001, "cuda_v12", debug=True)
    log.raw("ggml_cuda_init: failed to initialize CUDA: system not yet initialized")
    took(log.at(0.4), "cuda_v12", "400ms")
    log.put("runner.go:124", "evaluating which, if any, devices to filter out", "DEBUG", initial_count="0")
    server = reading.only(cpu(log))
    assert server["analyses"][0]["facts"]["cuda_code"] == 802
    assert server["analyses"][0]["candidates"][0]["id"] == "F7"
    assert any("802 " in entry["text"] for entry in server["conclusions"] if entry["id"] == "cuda_error")


def test_a_device_with_nonsense_for_properties() -> None:
    log = begin(Log(), debug="DEBUG")
    spawn(log, 4001, "cuda_v12", debug=True)
    took(log.at(0.4), "cuda_v12", "400ms")
    log.put("runner.go:124", "evaluating which, if any, devices to filter out", "DEBUG", initial_count="1")
    values = {"library": f"{LIB}/cuda_v12", "description": "NVIDIA H100", "compute": "0.0", "pci_id": "99fff950:99fff9"}
    log.put("runner.go:146", "verifying if device is supported", "DEBUG", id="GPU-0", **values)
    values = {"id": "GPU-0", "libdir": f"{LIB}/cuda_v12", "pci_id": "99fff950:99fff9", "library": "CUDA"}
    log.at(0.3).put("runner.go:153", "filtering device which didn't fully initialize", "DEBUG", **values)
    server = reading.only(cpu(log))
    assert server["summary"] == "no GPU: the second pass left every device out"
    assert server["analyses"][0]["candidates"][0]["id"] == "V3"


PATHS = st.text(st.characters(blacklist_characters="\n[]", blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(
    st.lists(PATHS.map(lambda name: f"/{name.strip()}").filter(lambda path: " /" not in path), min_size=1, max_size=4)
)
def test_directories_of_a_list(paths: list[str]) -> None:
    assert attempts.paths(f"[{' '.join(paths)}]") == tuple(paths)


@given(
    st.dictionaries(st.sampled_from(["CUDA_VISIBLE_DEVICES", "GGML_CUDA_INIT", "A"]), st.text("GPU-0,1 9", max_size=9))
)
def test_variables_of_a_map(values: dict[str, str]) -> None:
    assert attempts.pairs(extra(values)) == values


@given(st.text(max_size=60))
def test_no_text_for_a_list_raises(text: str) -> None:
    attempts.paths(text)
    attempts.pairs(text)
    attempts.outcome_of(text)
    attempts.sane(text, text)


def test_a_timeout_that_an_excerpt_lacks_is_not_excluded() -> None:
    """The end of a real server's log: its discovery took 45 s, and the line of the child that hung was before it."""
    text = (
        'time=2026-02-25T08:54:50.444Z level=DEBUG source=runner.go:42 msg="GPU bootstrap discovery took" duration={}\n'
        'time=2026-02-25T08:54:50.444Z level=INFO source=types.go:50 msg="inference compute" id=cpu library=cpu\n'
        'time=2026-02-25T08:54:50.444Z level=INFO source=routes.go:2058 msg="vram-based default context" '
        'total_vram="0 B" default_num_ctx=4096\n'
    )
    server = reading.only(text.format("45.403317219s"))
    assert "unseen" in reading.ids(server)
    assert "fast" not in reading.ids(server)
    assert [part["outcome"] for part in server["analyses"]] == ["unseen_timeout", "cut_off"]
    assert [part["excluded"] for part in server["analyses"]] == [[], []]
    assert {"R1", "R20"} <= {entry["id"] for entry in server["analyses"][0]["candidates"]}
    assert {"F2", "C2"} <= {entry["id"] for entry in server["analyses"][1]["candidates"]}
    quick = reading.only(text.format("1.403317219s"))  # 30 s do not fit into that
    assert "fast" in reading.ids(quick)
    assert [part["outcome"] for part in quick["analyses"]] == ["cut_off"]
    nobody = reading.only(text.partition("\n")[2])
    assert [part["outcome"] for part in nobody["analyses"]] == ["cut_off", "unseen_timeout"]


def test_an_excerpt_without_a_timeout_is_called_one() -> None:
    lines = cpu(begin(Log()).at(0.3)).text()
    assert "starting runner" not in lines
    server = reading.only(lines)
    assert "excerpt" in reading.ids(server)
    assert server["analyses"][0]["outcome"] == "cut_off"
    assert {"H1", "K2"} <= {entry["id"] for entry in server["analyses"][0]["candidates"]}
