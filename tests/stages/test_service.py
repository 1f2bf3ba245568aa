"""02 service: real limits, real preloaded objects, real namespaces; recorded cgroups and variables."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.model import CheckOutcome, Kind, Outcome
from pytest_gpudiscovery.outcome import Conclusion
from pytest_gpudiscovery.probes import service as probe
from pytest_gpudiscovery.probes.recordedview import RecordedView
from pytest_gpudiscovery.signals import Sigchld
from pytest_gpudiscovery.stages.service import ROWS, SPEC
from pytest_gpudiscovery.stages.service_env import judge_environment
from pytest_gpudiscovery.supervise.types import Ending, Identity, Setup
from tests import fakes
from tests.stages import hosts

OLLAMA = {"binary": "/usr/bin/ollama", "gpu_dirs": [{"name": "cuda_v12"}, {"name": "cuda_v13"}]}
GB = 1 << 30
CC = shutil.which("cc")


def package() -> dict[str, Any]:
    """Return the record of a package stage that found Ollama."""
    return {"package": fakes.record("package", Outcome.PASSED, facts=OLLAMA)}


def conclude(env: dict[str, str], entries: hosts.Entries | None = None, **context: Any) -> Conclusion:
    """Run the stage over the H100 host (or ENTRIES) with ENV beside a usual environment."""
    prior = context.pop("prior", package())
    given_context = hosts.context(hosts.h100() if entries is None else entries, env=env, **context)
    return hosts.conclusion(SPEC, given_context, prior)


def outcome_of(said: Conclusion, row: str) -> CheckOutcome:
    """Return the outcome of ROW in SAID."""
    return next(check.outcome for check in said.checks if check.prerequisite == row)


def test_a_usual_context_passes() -> None:
    said = conclude({})
    assert said.outcome is Outcome.PASSED, said.summary
    assert {check.prerequisite for check in said.checks} == set(ROWS)
    assert hosts.causes(said) == ["service.observe.ollama_debug"]  # a note
    assert said.facts["identity"]["uid"] == os.geteuid()
    assert said.facts["user_namespace"] is False


def test_what_concerns_ollama_does_not_apply_without_it() -> None:
    none = {"package": fakes.record("package", Outcome.NOT_APPLICABLE, facts={"binary": None})}
    env = {"OLLAMA_LLM_LIBRARY": "cuda_v11", "JETSON_JETPACK": "6", "OLLAMA_DEBUG": "1"}
    said = conclude(env, prior=none)
    assert said.outcome is Outcome.PASSED
    for row in ("P13", "P15", "P80"):
        assert outcome_of(said, row) is CheckOutcome.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "service.env.cuda_visible_devices_hides_all"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "service.env.cuda_visible_devices_hides_all"),
        ({"CUDA_VISIBLE_DEVICES": "all"}, "service.env.cuda_visible_devices_hides_all"),
        ({"CUDA_VISIBLE_DEVICES": "7"}, "service.env.cuda_visible_devices_hides_all"),
        ({"CUDA_VISIBLE_DEVICES": "7,0"}, "service.env.cuda_visible_devices_hides_all"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-99999999"}, "service.env.cuda_visible_devices_hides_all"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1234"}, "service.env.cuda_visible_devices_hides_all"),
        ({"CUDA_VISIBLE_DEVICES": hosts.UUID.lower()}, "service.env.cuda_visible_devices_hides_all"),
        ({"CUDA_VISIBLE_DEVICES": "1abc"}, "service.env.cuda_visible_devices_hides_all"),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, "service.env.cuda_visible_devices_twice"),
        ({"CUDA_VISIBLE_DEVICES": "00,0x0"}, "service.env.cuda_visible_devices_twice"),
        ({"CUDA_DEVICE_ORDER": ""}, "service.env.cuda_device_order"),
        ({"CUDA_DEVICE_ORDER": "pci_bus_id"}, "service.env.cuda_device_order"),
        ({"OLLAMA_LLM_LIBRARY": "cuda_v11"}, "service.env.ollama_llm_library"),
        ({"OLLAMA_LLM_LIBRARY": "'cuda_v11'"}, "service.env.ollama_llm_library"),
    ],
)
def test_a_variable_that_hides_the_gpu_blocks(env: dict[str, str], cause: str) -> None:
    without_mig = hosts.h100(**{"/proc/driver/nvidia/capabilities/mig/config": hosts.file()})
    said = conclude(env, without_mig)
    assert hosts.causes(said, "failed") == [cause]
    (value,) = env.values()
    assert (value.strip("'") or '""') in said.summary


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, "service.env.cuda_visible_devices_subset"),
        ({"CUDA_VISIBLE_DEVICES": "0,9"}, "service.env.cuda_visible_devices_subset"),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, "service.env.nvidia_visible_devices_none"),
    ],
)
def test_a_variable_that_hides_a_part_warns(env: dict[str, str], cause: str) -> None:
    two = hosts.h100(**hosts.gpu("0000:00:07.0", 1, "GPU-11111111-1111-1111-1111-111111111111"))
    if "NVIDIA_VISIBLE_DEVICES" in env:
        del two["/dev/nvidiactl"]  # nothing was injected
    said = conclude(env, two)
    assert hosts.causes(said, "warned") == [cause]
    assert said.outcome is Outcome.WARNED


@pytest.mark.parametrize(
    "env",
    [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": hosts.UUID},
        {"CUDA_VISIBLE_DEVICES": "GPU-0000"},
        {"CUDA_VISIBLE_DEVICES": "0,1,0"},  # the list ends at 1: the second 0 is not read
        {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"},
        {"NVIDIA_VISIBLE_DEVICES": "all"},
        {"NVIDIA_VISIBLE_DEVICES": "void"},
        {"NVIDIA_VISIBLE_DEVICES": "none"},  # the nodes are there all the same
        {"OLLAMA_LLM_LIBRARY": "cuda_v13"},
        {"OLLAMA_LLM_LIBRARY": ' "cuda_v13" '},
        {"OLLAMA_DEBUG": "2"},
        {"LD_LIBRARY_PATH": "/nowhere"},
    ],
)
def test_a_variable_that_hides_nothing_passes(env: dict[str, str]) -> None:
    said = conclude(env)
    assert said.outcome is Outcome.PASSED, said.summary


@pytest.mark.parametrize(
    ("machine", "tegra", "era", "directories", "outcome"),
    [
        ("aarch64", False, "B", ("cuda_v12",), CheckOutcome.FAILED),
        ("aarch64", False, "C", ("cuda_v12",), CheckOutcome.PASSED),  # a JetPack that is not installed does not count
        ("aarch64", False, "C", ("cuda_v12", "cuda_jetpack6"), CheckOutcome.FAILED),
        ("aarch64", True, "B", ("cuda_jetpack6",), CheckOutcome.PASSED),
        ("x86_64", False, "B", ("cuda_v12",), CheckOutcome.PASSED),  # Ollama reads the variable on arm64 only
    ],
)
def test_a_jetsons_variable_on_another_machine(
    machine: str, tegra: bool, era: str, directories: tuple[str, ...], outcome: CheckOutcome
) -> None:
    seen = {"machine": machine, "tegra": tegra, "gpus": []}
    facts = {"binary": "/usr/bin/ollama", "era": era, "gpu_dirs": [{"name": name} for name in directories]}
    checks = judge_environment(seen, {"JETSON_JETPACK": "6.2"}, facts)
    assert [check.outcome for check in checks if check.prerequisite == "P15"] == [outcome]


def test_a_variable_that_this_layout_does_not_filter_by_passes() -> None:
    facts = {"binary": "/usr/bin/ollama", "gpu_dirs": [{"name": "ollama", "kept": True}]}
    checks = judge_environment({"gpus": []}, {"OLLAMA_LLM_LIBRARY": "cuda_v12"}, facts)
    assert [check.outcome for check in checks if check.prerequisite == "P13"] == [CheckOutcome.PASSED]


def test_mig_instances_and_hidden_gpus_are_left_to_the_driver() -> None:
    mig = hosts.h100(**{"/proc/driver/nvidia/capabilities/gpu0/mig/gi1/access": hosts.file()})
    for entries, value in ((mig, "0"), (mig, "MIG-1234"), (hosts.h100(), "MIG-1234"), ({}, "0")):
        said = conclude({"CUDA_VISIBLE_DEVICES": value}, entries)
        check = next(check for check in said.checks if check.prerequisite == "P14")
        assert (check.outcome, check.kind) == (CheckOutcome.UNKNOWN, Kind.OBSERVABILITY), value


@pytest.mark.parametrize(
    ("paths", "cause", "outcome"),
    [
        (["/usr/local/cuda/lib64/stubs/libcuda.so.1"], "service.ld_library_path.stub", "failed"),
        (["/opt/shim/libcuda.so.1"], "service.ld_library_path.conflict", "warned"),
    ],
)
def test_another_libcuda_on_the_path(paths: list[str], cause: str, outcome: str) -> None:
    entries = {
        **hosts.library("/usr/lib/x86_64-linux-gnu", "libcuda.so"),
        **{path: hosts.file(size=60000) for path in paths},
    }
    folder = os.path.dirname(paths[0])
    said = conclude({"LD_LIBRARY_PATH": f"/empty:{folder}"}, hosts.h100(**entries))
    assert hosts.causes(said, outcome) == [cause]
    assert folder in said.summary


def test_a_second_copy_of_the_same_driver_is_no_conflict() -> None:
    copies = {**hosts.library("/usr/lib/x86_64-linux-gnu", "libcuda.so"), **hosts.library("/mnt/driver", "libcuda.so")}
    said = conclude({"LD_LIBRARY_PATH": "/mnt/driver"}, hosts.h100(**copies))
    assert (outcome_of(said, "P16"), hosts.causes(said, "warned")) == (CheckOutcome.PASSED, [])
    copies[f"/mnt/driver/libcuda.so.{hosts.VERSION}"]["size"] = 60000  # a shim under the driver's name
    said = conclude({"LD_LIBRARY_PATH": "/mnt/driver"}, hosts.h100(**copies))
    assert hosts.causes(said, "warned") == ["service.ld_library_path.conflict"]


CGROUP: dict[str, dict[str, Any]] = {
    "/proc/self/cgroup": hosts.file("0::/system.slice/ollama.service\n"),
    "/sys/fs/cgroup/system.slice/memory.max": hosts.file(f"{8 * GB}\n"),
    "/sys/fs/cgroup/system.slice/memory.current": hosts.file(f"{1 * GB}\n"),
    "/sys/fs/cgroup/system.slice/ollama.service/memory.max": hosts.file("max\n"),
    "/sys/fs/cgroup/system.slice/ollama.service/pids.max": hosts.file("max\n"),
}


@pytest.mark.parametrize(
    ("changes", "cause", "outcome"),
    [
        ({}, None, "passed"),
        ({"/sys/fs/cgroup/system.slice/memory.max": hosts.file("134217728\n")}, "service.memory.limit", "failed"),
        ({"/sys/fs/cgroup/system.slice/memory.current": hosts.file(f"{7 * GB}\n")}, "service.memory.low", "warned"),
        (
            {
                "/sys/fs/cgroup/system.slice/memory.current": hosts.file(f"{7 * GB}\n"),
                "/sys/fs/cgroup/system.slice/memory.stat": hosts.file(f"anon 1\ninactive_file {5 * GB}\n"),
            },
            None,
            "passed",
        ),
        ({"/proc/meminfo": hosts.file("MemAvailable: 500000 kB\n")}, "service.memory.low", "warned"),
        (
            {
                "/sys/fs/cgroup/system.slice/pids.max": hosts.file("100\n"),
                "/sys/fs/cgroup/system.slice/pids.current": hosts.file("90\n"),
            },
            "service.pids.few",
            "warned",
        ),
        (
            {
                "/sys/fs/cgroup/system.slice/ollama.service/cpu.max": hosts.file("10000 100000\n"),
                "/sys/fs/cgroup/system.slice/ollama.service/cpu.stat": hosts.file("throttled_usec 5000000\n"),
            },
            "service.cpu.quota",
            "warned",
        ),
    ],
)
def test_the_cgroups_limits(changes: dict[str, Any], cause: str | None, outcome: str) -> None:
    said = conclude({}, hosts.h100(**{**CGROUP, **changes}))
    assert said.outcome.value == outcome, said.summary
    assert [name for name in hosts.causes(said) if "observe" not in name] == ([cause] if cause else [])


@pytest.mark.parametrize("bytes_", [128 << 20, GB], ids=["limit", "low"])
def test_the_next_command_shows_the_file_that_limits(bytes_: int) -> None:
    file = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes"
    cgroup = {
        "/proc/self/cgroup": hosts.file("4:memory:/a\n0::/\n"),
        file: hosts.file(f"{bytes_}\n"),
        "/sys/fs/cgroup/memory/a/memory.usage_in_bytes": hosts.file("1\n"),
    }
    said = conclude({}, hosts.h100(**cgroup))
    (finding,) = [check.finding for check in said.checks if check.prerequisite == "P12" and check.finding]
    assert f"cat {file}" in finding.next


def test_a_version_1_cgroup_is_read_too() -> None:
    view = RecordedView(
        {
            "/proc/self/cgroup": hosts.file("8:pids:/a\n4:memory:/a/b\n0::/\n"),
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": hosts.file(f"{GB}\n"),
            "/sys/fs/cgroup/memory/a/memory.usage_in_bytes": hosts.file(f"{GB // 2}\n"),
            "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": hosts.file("9223372036854771712\n"),
            "/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": hosts.file("1\n"),
            "/sys/fs/cgroup/pids/a/pids.max": hosts.file("50\n"),
            "/sys/fs/cgroup/pids/a/pids.current": hosts.file("20\n"),
        }
    )
    assert probe.cgroup(view) == {
        "memory": {"max": GB, "free": GB // 2, "file": "/sys/fs/cgroup/memory/a/memory.limit_in_bytes"},
        "pids": {"max": 50, "free": 30},
        "cpu": None,
    }


@given(text=st.text(max_size=100))
def test_no_cgroup_file_raises(text: str) -> None:
    entries = dict.fromkeys(
        ("/proc/self/cgroup", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/cpu.max"),
        hosts.file(text),
    )
    assert set(probe.cgroup(RecordedView(entries))) == {"memory", "pids", "cpu"}


@pytest.mark.parametrize(
    ("limits", "cause", "outcome"),
    [
        ({"AS": (4 * GB, 4 * GB)}, "service.limit.address_space", "failed"),
        ({"AS": (64 * GB, 64 * GB)}, "service.limit.address_space_finite", "warned"),
        ({"NOFILE": (16, 16)}, "service.limit.descriptors", "failed"),
        ({"NOFILE": (64, 64)}, "service.limit.descriptors_few", "warned"),
        ({"CPU": (600, 600)}, "service.limit.cpu_time", "warned"),
        ({"DATA": (8 * GB, 8 * GB)}, "service.limit.data", "warned"),
    ],
)
def test_limits_are_those_of_a_real_child(limits: dict[str, Any], cause: str, outcome: str) -> None:
    said = conclude({}, setup=Setup(limits=limits))
    assert hosts.causes(said, outcome) == [cause]


def test_threads_that_a_limit_on_data_forbids_are_its_doing() -> None:
    said = conclude({}, setup=Setup(limits={"DATA": (64 << 20, 64 << 20)}))
    assert hosts.causes(said, "failed") == ["service.threads.refused"]
    assert hosts.causes(said, "warned") == ["service.limit.data"]
    assert "service.limit.data" in catalogue.causes()["service.threads.refused"].explained_by


@pytest.fixture
def childless() -> Iterator[None]:
    """Ignore SIGCHLD, as `trap '' CHLD` of an entry point has whatever it execs do."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("childless")
def test_who_ignores_the_ends_of_children_is_not_blocked() -> None:
    assert hosts.causes(conclude({})) == ["service.observe.ollama_debug"]
    mine = Sigchld()
    mine.heed()
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    mine.restore()
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN


def test_a_service_without_a_home_cannot_start() -> None:
    assert hosts.causes(conclude({"HOME": ""}), "failed") == ["service.env.home_missing"]


@pytest.mark.parametrize(("value", "warned"), [("1", True), ("0", False), ("", False)])
def test_a_compiler_that_is_turned_off_is_said(value: str, warned: bool) -> None:
    causes = hosts.causes(conclude({"CUDA_DISABLE_PTX_JIT": value}), "warned")
    assert ("service.env.ptx_jit_disabled" in causes) is warned


@pytest.mark.parametrize(
    ("value", "warned"),
    [("0x1", True), ("0;1", True), ("4294967296", True), ("0," + 3000 * ",", True), ("0 ", False), ("0, 1", False)],
)
def test_a_list_that_is_read_otherwise_than_it_looks_is_said(value: str, warned: bool) -> None:
    said = conclude({"CUDA_VISIBLE_DEVICES": value})
    assert hosts.causes(said, "failed") == []
    assert hosts.causes(said, "warned") == (["service.env.cuda_visible_devices_odd"] if warned else [])


def test_too_few_processes_are_met_for_real() -> None:
    if os.geteuid() != 0:
        pytest.skip("a limit of the user's own processes would count this test run")
    setup = Setup(identity=Identity(61234, 61234), limits={"NPROC": (12, 12)})
    said = conclude({}, setup=setup)
    assert hosts.causes(said, "failed") == ["service.threads.refused"]
    assert "of 32 threads" in said.summary


def compile_preload(tmp_path: Path, body: str) -> Path:
    """Return a shared object whose constructor does BODY."""
    if CC is None:
        pytest.skip("no C compiler")
    source, target = tmp_path / "p.c", tmp_path / "libpreloaded.so"
    source.write_text(
        f"#include <unistd.h>\n#include <stdlib.h>\n__attribute__((constructor)) static void start(void) {{ {body} }}\n"
    )
    subprocess.run([CC, "-shared", "-fPIC", "-o", str(target), str(source)], check=True, timeout=60)
    return target


@pytest.mark.parametrize(
    ("body", "cause", "outcome"),
    [
        (";", "service.preload.present", "passed"),
        ("for (;;) pause();", "service.preload.hang", "failed"),
        ("abort();", "service.preload.crash", "failed"),
        ('write(2, "no licence\\n", 11); _exit(3);', "service.preload.crash", "failed"),
    ],
    ids=["returns", "hangs", "aborts", "exits"],
)
def test_a_preloaded_object_is_tried_in_a_real_child(tmp_path: Path, body: str, cause: str, outcome: str) -> None:
    library = compile_preload(tmp_path, body)
    entries = hosts.h100(**{str(library): hosts.file("\x7fELF", 0o755)})
    said = conclude({"LD_PRELOAD": str(library)}, entries, scale=0.2)
    assert [name for name in hosts.causes(said, outcome) if "observe" not in name] == [cause]
    finding = next(check.finding for check in said.checks if check.finding and check.finding.cause == cause)
    assert "libpreloaded.so" in finding.summary
    if "licence" in body:
        assert "no licence" in finding.detail
    unknown = next(check for check in said.checks if check.prerequisite == "P77")
    assert unknown.outcome is CheckOutcome.UNKNOWN


def test_a_preloaded_object_that_is_not_there_only_warns() -> None:
    said = conclude({"LD_PRELOAD": "/nowhere/libhook.so"})
    assert hosts.causes(said, "warned") == ["service.preload.missing"]
    assert said.outcome is Outcome.WARNED


def test_the_systems_preload_file_is_read() -> None:
    entries = hosts.h100(**{"/etc/ld.so.preload": hosts.file("# a comment\n/opt/hook.so:/opt/b.so # more\n")})
    context = hosts.context(entries)
    name, _ = SPEC.plan(context, {}, {}) or ("", None)
    results = {name: hosts.probe_all(SPEC, context, package())["look"]}
    listed = results["look"].answer["preload"]
    assert [(item["name"], item["source"]) for item in listed] == [
        ("/opt/hook.so", "/etc/ld.so.preload"),
        ("/opt/b.so", "/etc/ld.so.preload"),
    ]
    name, preload = SPEC.plan(context, {}, results) or ("", None)
    assert preload is not None
    assert (name, preload.request["names"]) == ("preload", ["hook.so", "b.so"])
    assert preload.env == context.env


def test_a_preload_file_that_may_not_be_read_is_unknown() -> None:
    said = conclude({}, hosts.h100(**{"/etc/ld.so.preload": {"type": "error", "errno": "EACCES"}}))
    check = next(check for check in said.checks if check.prerequisite == "P10")
    assert (check.outcome, check.kind) == (CheckOutcome.UNKNOWN, Kind.OBSERVABILITY)


def test_the_look_does_not_preload_and_the_program_does() -> None:
    context = hosts.context(hosts.h100(), env={"LD_PRELOAD": "/x.so"})
    planned = SPEC.plan(context, {}, {})
    assert planned is not None
    assert "LD_PRELOAD" not in planned[1].env
    assert planned[1].request["env"]["LD_PRELOAD"] == "/x.so"


def test_only_the_loaders_variables_travel_in_the_request() -> None:
    context = hosts.context(hosts.h100(), env={"OLLAMA_API_KEY": "secret", "LD_PRELOAD": "/x.so"})
    planned = SPEC.plan(context, {}, {})
    assert planned is not None
    assert "secret" not in json.dumps(dict(planned[1].request))


@pytest.mark.parametrize(
    ("uid_map", "ours", "outcome", "severity"),
    [
        ([[0, 0, 4294967295]], True, "passed", None),
        ([[0, 1000, 1]], True, "passed", "note"),  # every rootless container
        ([[0, 1000, 1]], None, "warned", "warning"),
        ([[0, 1000, 1]], False, "failed", "blocker"),
        ([], False, "failed", "blocker"),
        ([[0, 0, 4294967295]], False, "warned", "warning"),
        (None, None, "unknown", None),
    ],
)
def test_user_namespaces(uid_map: Any, ours: bool | None, outcome: str, severity: str | None) -> None:
    context = hosts.context(hosts.h100())
    answer = dict(hosts.probe_all(SPEC, context, package())["look"].answer)
    answer["namespaces"] = {"uid_map": uid_map, "proc_is_ours": ours}
    said = hosts.judged(SPEC, context, {"look": fakes.result(answer=answer)}, package())
    check = next(check for check in said.checks if check.prerequisite == "P81")
    assert check.outcome.value == outcome
    assert (check.finding.severity.value if check.finding else None) == severity


def test_a_real_user_namespace_is_seen() -> None:
    code = "import json; from pytest_gpudiscovery.probes import service; print(json.dumps(service.namespaces()))"
    shell = ["unshare", "--user", "--pid", "--fork", sys.executable, "-c", code]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    assert found["uid_map"] == []
    assert found["proc_is_ours"] is False


@given(cut=st.integers(0, 12))
def test_an_answer_that_stops_anywhere_is_judged(cut: int) -> None:
    keys = ("machine", "identity", "limits", "namespaces", "preload")
    values: dict[str, Any] = {"machine": "x", "identity": {"uid": 1}, "limits": {}, "namespaces": {}, "preload": []}
    observed = {key: values[key] for key in keys[:cut]}
    said = hosts.judged(SPEC, fakes.context(), {"look": fakes.hang("fork", observed=observed)})
    assert said.outcome is Outcome.TIMED_OUT
    assert hosts.causes(said) == ["service.look_hang"]


def test_a_program_that_could_not_be_started_is_unknown() -> None:
    context = hosts.context(hosts.h100())
    look = hosts.probe_all(SPEC, context, package())["look"]
    item = {"name": "/x.so", "source": "LD_PRELOAD", "path": "/x.so", "elf": {"class": 64}, "token": False}
    seen = fakes.result(answer={**look.answer, "preload": [item]})
    failed = fakes.result(Ending.NOT_SPAWNED, notes=("no interpreter",))
    said = hosts.judged(SPEC, context, {"look": seen, "preload": failed}, package())
    assert outcome_of(said, "P10") is CheckOutcome.UNKNOWN
