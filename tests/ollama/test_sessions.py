"""Which server wrote a line: restarts, processes, containers, and two servers mixed in one log."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ollama import reading
from tests.ollama.writer import Log, begin, cpu, fail, gpu, spawn


def hung(now: float = 1_700_000_000.0, **settings: str) -> Log:
    """A start of 0.16.3 whose cuda_v12 times out."""
    return cpu(fail(spawn(begin(Log(now), **settings)).at(30.01), "cuda_v12").at(0.2))


def healthy(now: float = 1_700_000_000.0) -> Log:
    """A start of 0.16.3 that finds its GPU."""
    return gpu(spawn(begin(Log(now)).at(0.01)).at(0.6))


def other_release(now: float = 1_700_000_000.0) -> Log:
    """A start of 0.32.15 that finds its GPU: no line number is that of 0.16.3."""
    log = Log(now)
    log.put("routes.go:1951", "server config", env="map[OLLAMA_DEBUG:INFO]")
    log.put("routes.go:2008", "Listening on 127.0.0.1:11500 (version 0.32.15)")
    log.put("runner.go:60", "discovering available GPUs...").at(2.0)
    log.put("types.go:32", "inference compute", id="0", library="CUDA", compute="9.0", description="NVIDIA H100 PCIe")
    return log.put("routes.go:2058", "vram-based default context", total_vram="79.2 GiB", default_num_ctx="262144")


def merged(*logs: Log) -> list[str]:
    """Return the lines of LOGS in the order of their times."""
    return [line for _, line in sorted((line.split(" ")[0], line) for log in logs for line in log.lines)]


def test_restarts_follow_each_other_and_the_last_counts() -> None:
    found = reading.explain(hung().text() + healthy(1_700_000_100).text())
    assert [server["answer"] for server in found["servers"]] == ["no_gpu", "gpu_found"]
    assert (found["answer"], found["counted"]) == ("gpu_found", [2])
    found = reading.explain(healthy().text() + hung(1_700_000_100).text())
    assert (found["answer"], found["counted"]) == ("no_gpu", [2])


def test_a_restart_in_the_middle_of_discovery() -> None:
    cut = "".join(f"{line}\n" for line in hung().lines[:4])
    found = reading.explain(cut + healthy(1_700_000_010).text())
    assert [server["answer"] for server in found["servers"]] == ["cannot_tell", "gpu_found"]
    assert found["answer"] == "gpu_found"
    found = reading.explain(healthy().text() + "".join(f"{line}\n" for line in hung(1_700_000_100).lines[:4]))
    assert (found["answer"], found["counted"]) == ("cannot_tell", [2])


def journal(line: str, pid: int, unit: str = "ollama.service") -> str:
    return json.dumps({"MESSAGE": line, "_PID": str(pid), "_SYSTEMD_UNIT": unit, "__REALTIME_TIMESTAMP": "17"}) + "\n"


def test_two_servers_by_pid() -> None:
    first, second = hung(), healthy(1_700_000_000.5)
    lines = [(line, 100) for line in first.lines] + [(line, 200) for line in second.lines]
    lines.sort(key=lambda entry: entry[0].split(" ")[0])
    found = reading.explain("".join(journal(line, pid) for line, pid in lines))
    assert [(server["pid"], server["answer"]) for server in found["servers"]] == [(100, "no_gpu"), (200, "gpu_found")]
    assert not any(server["mixed"] for server in found["servers"])
    assert found["answer"] == "no_gpu"
    assert found["counted"] == [1, 2]


def test_two_units_and_two_containers() -> None:
    for prefix in ("ollama-a  | {}\n", "[pod/ollama-{}/ollama] "):
        first, second = hung(), healthy(1_700_000_000.5)
        names = ("ollama-a", "ollama-b") if "pod" not in prefix else ("[pod/a/ollama]", "[pod/b/ollama]")
        bar = "" if "pod" in prefix else " |"
        both = [f"{names[0]}{bar} {line}" for line in first.lines] + [
            f"{names[1]}{bar} {line}" for line in second.lines
        ]
        both.sort(key=lambda line: line.partition("time=")[2][:24])
        found = reading.explain("".join(f"{line}\n" for line in both))
        assert sorted(server["answer"] for server in found["servers"]) == ["gpu_found", "no_gpu"]
        assert len({server["origin"] for server in found["servers"]}) == 2


def test_a_container_restarts_with_the_same_pid() -> None:
    lines = [journal(line, 1, "docker.service") for line in (*hung().lines, *healthy(1_700_000_100).lines)]
    found = reading.explain("".join(lines))
    assert [server["answer"] for server in found["servers"]] == ["no_gpu", "gpu_found"]
    assert found["counted"] == [2]


def test_a_childs_own_pid_belongs_to_its_server() -> None:
    log = begin(Log(), debug="DEBUG-4")
    spawn(log, 4000, "cuda_v12", debug=True)
    lines = [journal(line, 100) for line in log.lines]
    lines.append(journal("ggml_cuda_init: failed to initialize CUDA: system not yet initialized", 101))
    lines += [journal(line, 100) for line in cpu(Log(log.now + 1)).lines]
    found = reading.explain("".join(lines))
    assert len(found["servers"]) == 1
    assert found["servers"][0]["discoveries"][0]["attempts"][0]["said"][0]["id"] == "init_failed"


def test_two_releases_mixed_without_a_name_are_told_apart_by_their_lines() -> None:
    found = reading.explain("\n".join(merged(hung(), other_release(1_700_000_005.0))))
    assert [(server["answer"], server["versions"]["releases"]) for server in found["servers"]] == [
        ("no_gpu", "0.16.3"),
        ("gpu_found", "0.32.15"),
    ]
    first = found["servers"][0]["discoveries"][0]
    assert [attempt["directory"] for attempt in first["attempts"]] == ["cuda_v12"]
    assert found["answer"] == "no_gpu"
    assert any("apart" in reading.ids(server) for server in found["servers"])


def test_the_same_release_mixed_is_said_and_not_guessed() -> None:
    found = reading.explain("\n".join(merged(hung(), healthy(1_700_000_029.9))))
    assert found["answer"] != "gpu_found"
    assert any(server["mixed"] for server in found["servers"])
    assert any("mixed" in reading.ids(server) for server in found["servers"])
    # Both without a GPU: which is which does not matter.
    found = reading.explain("\n".join(merged(hung(), hung(1_700_000_005.0))))
    assert found["answer"] == "no_gpu"


@given(st.lists(st.sampled_from(["hung", "healthy"]), min_size=1, max_size=6), st.integers(0, 5000))
def test_restarts_are_counted_right(kinds: list[str], pid: int) -> None:
    lines: list[str] = []
    for index, kind in enumerate(kinds):
        log = (hung if kind == "hung" else healthy)(1_700_000_000.0 + 100 * index)
        lines += [journal(line, pid + index) for line in log.lines]
    found = reading.explain("".join(lines))
    wanted = ["no_gpu" if kind == "hung" else "gpu_found" for kind in kinds]
    assert [server["answer"] for server in found["servers"]] == wanted
    assert (found["answer"], found["counted"]) == (wanted[-1], [len(kinds)])


@given(st.randoms(use_true_random=False), st.integers(2, 3))
def test_any_mix_of_servers_with_pids_comes_apart(rng: random.Random, count: int) -> None:
    logs = [(hung if rng.random() < 0.5 else healthy)(1_700_000_000.0 + rng.random()) for _ in range(count)]
    left: list[list[str]] = [list(log.lines) for log in logs]
    lines = []
    while any(left):
        index = rng.choice([index for index, rest in enumerate(left) if rest])
        lines.append(journal(left[index].pop(0), 1000 + index))
    found = reading.explain("".join(lines))
    by_pid = {server["pid"]: server["answer"] for server in found["servers"]}
    wanted = {1000 + index: "no_gpu" if "failure" in log.text() else "gpu_found" for index, log in enumerate(logs)}
    assert by_pid == wanted


def test_of_very_many_restarts_the_first_and_the_newest_are_kept() -> None:
    text = "".join(hung(1_700_000_000.0 + 60 * index).text() for index in range(200)) + healthy(1_800_000_000).text()
    found = reading.explain(text)
    assert found["input"]["servers_not_kept"] == 201 - len(found["servers"]) > 0
    assert (found["servers"][0]["number"], found["counted"], found["answer"]) == (1, [201], "gpu_found")


def test_a_log_without_a_start_says_so() -> None:
    log = Log().put("sched.go:147", "starting llm scheduler").put("runner.go:464", "failure during GPU discovery")
    found: dict[str, Any] = reading.explain(log)
    assert found["answer"] == "cannot_tell"
    assert reading.explain("nothing of Ollama\n" * 10)["summary"] == "no line of an Ollama server is in it"
    assert reading.explain("")["summary"] == "it is empty"


@pytest.mark.parametrize("secret", ["HTTP_PROXY:http://user:hunter2@proxy", "OLLAMA_API_KEY:hunter2"])
def test_secrets_of_the_environment_do_not_come_out(secret: str) -> None:
    log = Log().put("routes.go:1663", "server config", env=f"map[{secret} OLLAMA_DEBUG:INFO]")
    spawn(log, 4000, "cuda_v12", debug=True, OLLAMA_API_KEY="hunter2", CUDA_VISIBLE_DEVICES="0")
    found = reading.explain(cpu(fail(log.at(30), "cuda_v12")))
    assert "hunter2" not in json.dumps(found)
    assert found["servers"][0]["settings"]["OLLAMA_DEBUG"] == "INFO"
