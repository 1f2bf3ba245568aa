"""Transient units under a real systemd: its own, in namespaces, so that the machine's is not touched."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.install import archives
from tests.supervise.private_systemd import PrivateSystemd

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Runs inside: builds the context as `--gpu-as systemd:ollama` does, and asks one probe in it.
INSIDE = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, {repository!r})
from pytest_gpudiscovery import context
from pytest_gpudiscovery.options import Settings, UsageProblem
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import Probe
from pytest_gpudiscovery.model import to_json
from pytest_gpudiscovery.stages.package import SPEC
from tests.stages import hosts
with tempfile.TemporaryDirectory() as directory:
    try:
        built = context.build(Settings(as_service={service!r}, ollama={ollama!r}), directory)
        looked = hosts.probe_all(SPEC, built)["look"].answer if built.ollama_path else None
    except UsageProblem as problem:
        print(json.dumps({{"problem": str(problem)}}))
        sys.exit()
    request = {{"mode": "look", "view": dict(built.view), "env": {{}}, "pid": None}}
    seen = run(Probe("service", request, built.env, 10.0, built.cwd, built.setup))
    nodes = run(Probe("names", {{}}, built.env, 10.0, built.cwd, built.setup), extra=Path({extra!r}))
    print(json.dumps({{
        "adopted": built.adopted, "notes": built.notes, "transient": built.setup.transient,
        "service": to_json(built.service),
        "env": dict(built.env), "refused": built.not_adopted, "unspoken": dict(built.unspoken),
        "seen": seen.answer, "ending": seen.ending.value, "why": [seen.notes, seen.stderr], "names": nodes.answer,
        "looked": looked,
    }}))
"""
NAMES = """import os
def probe(request, journal):
    return {'dev': sorted(os.listdir('/dev')), 'tmp': sorted(os.listdir('/tmp'))}
"""


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSystemd]:
    """A systemd that runs nothing but what a test gives it."""
    directory = tmp_path_factory.mktemp("systemd")
    try:
        made = PrivateSystemd(directory)
    except (OSError, RuntimeError) as error:
        pytest.skip(f"no private systemd here: {error}")
    yield made
    made.end()


def ask(
    systemd: PrivateSystemd,
    tmp_path: Path,
    text: str,
    *,
    service: str = "systemd:ollama",
    ollama: str | None = None,
    **dropins: str,
) -> Any:
    """Return what a gate inside says of unit TEXT."""
    if text:
        (systemd.units / "ollama.service").write_text(text)
        folder = systemd.units / "ollama.service.d"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, more in dropins.items():
            (folder / f"{name}.conf").write_text(more)
        systemd.run(["systemctl", "daemon-reload"])
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "names.py").write_text(NAMES)
    code = INSIDE.format(repository=str(REPOSITORY), service=service, extra=str(extra), ollama=ollama)
    done = systemd.run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


HARDENED = """[Unit]
DefaultDependencies=no
[Service]
ExecStart=/usr/bin/sleep 600
User=nobody
Environment="CUDA_VISIBLE_DEVICES=0" TOKEN=hunter2
PrivateDevices=yes
PrivateTmp=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET
SystemCallFilter=@system-service
MemoryMax=2G
TasksMax=77
LimitNOFILE=300:400
"""


def test_a_hardened_unit_is_probed_through_a_unit_like_it(systemd: PrivateSystemd, tmp_path: Path) -> None:
    said = ask(systemd, tmp_path, HARDENED)
    assert said["ending"] == "answered", said["why"]
    assert "User=nobody" in said["transient"]
    assert said["adopted"]["adopted"][-1] == "every property, through a transient unit"
    assert (said["adopted"]["not_adopted"], said["unspoken"], said["refused"]) == ([], {}, "")
    seen = said["seen"]
    assert seen["identity"]["uid"] == 65534
    assert seen["identity"]["seccomp"] == "2"
    assert seen["limits"]["NOFILE"] == [300, 400]
    assert seen["cgroup"]["pids"]["max"] == 77
    assert "nvidia0" not in said["names"]["dev"]
    assert "kmsg" not in said["names"]["dev"]
    assert said["names"]["tmp"] == []
    assert said["env"]["TOKEN"] == "hunter2"
    assert "hunter2" not in json.dumps(said["adopted"])
    left = systemd.run(["systemctl", "list-units", "--all", "--no-legend", "gpu-discovery*"]).stdout
    assert left.strip() == ""


def test_an_unpacked_archive_is_seen_in_a_unit_with_a_tmp_of_its_own(systemd: PrivateSystemd, tmp_path: Path) -> None:
    archive = tmp_path / "ollama.tgz"
    archive.write_bytes(archives.tgz(archives.RELEASE))
    said = ask(systemd, tmp_path, HARDENED, ollama=str(archive))
    assert said["looked"]["binary"]["path"].endswith("/ollama/bin/ollama")
    assert said["looked"]["directories"][0]["name"] == "cuda_v12"
    assert said["looked"]["binary"]["executable"] is True


def test_a_dynamic_user_is_probed_as(systemd: PrivateSystemd, tmp_path: Path) -> None:
    said = ask(systemd, tmp_path, "[Service]\nExecStart=/usr/bin/sleep 600\nDynamicUser=yes\n")
    assert said["ending"] == "answered", said["why"]
    assert 61184 <= said["seen"]["identity"]["uid"] <= 65519  # systemd's range of such users
    assert said["refused"] == ""


def test_a_service_of_roots_keeps_its_sandbox(systemd: PrivateSystemd, tmp_path: Path) -> None:
    text = "[Service]\nExecStart=/usr/bin/sleep 600\nCapabilityBoundingSet=CAP_CHOWN CAP_MKNOD CAP_KILL\n"
    said = ask(systemd, tmp_path, text + "CapabilityBoundingSet=~CAP_KILL\n")
    assert said["ending"] == "answered", said["why"]
    assert said["seen"]["identity"]["uid"] == 0
    assert int(said["seen"]["identity"]["effective"], 16) & ~1 == 0
    assert (said["transient"], said["adopted"]["private_dev"]) == (["CapabilityBoundingSet=CAP_CHOWN CAP_MKNOD"], False)


def test_a_filter_that_kills_at_mount_does_not_kill_a_probe(systemd: PrivateSystemd, tmp_path: Path) -> None:
    text = "[Service]\nExecStart=/usr/bin/sleep 600\nSystemCallFilter=@system-service\nMemoryDenyWriteExecute=yes\n"
    said = ask(systemd, tmp_path, text)
    assert said["ending"] == "answered", said["why"]
    assert said["seen"]["identity"]["seccomp"] == "2"
    assert int(said["seen"]["identity"]["effective"], 16) >> 27 & 1 == 0  # CAP_MKNOD


def test_a_drop_in_of_the_running_daemon_counts(systemd: PrivateSystemd, tmp_path: Path) -> None:
    text = "[Service]\nExecStart=/usr/bin/sleep 600\nUser=nobody\n"
    said = ask(systemd, tmp_path, text, more="[Service]\nEnvironment=OLLAMA_DEBUG=2\nPassEnvironment=FROM_MANAGER\n")
    assert said["env"]["OLLAMA_DEBUG"] == "2"
    assert [path.rpartition("/")[2] for path in said["service"]["files"]] == ["ollama.service", "more.conf"]
    systemd.run(["systemctl", "start", "ollama.service"])  # systemd forgets, and reads anew, what does not run
    (systemd.units / "ollama.service.d" / "more.conf").write_text("[Service]\nEnvironment=OLLAMA_DEBUG=1\n")
    (tmp_path / "again").mkdir()
    said = ask(systemd, tmp_path / "again", "")
    systemd.run(["systemctl", "stop", "ollama.service"])
    assert "its files changed since systemd read them" in said["notes"][0]


def test_a_running_service_tells_what_its_device_cgroup_allows(systemd: PrivateSystemd, tmp_path: Path) -> None:
    text = "[Service]\nExecStart=/usr/bin/sleep 600\nUser=nobody\nDevicePolicy=strict\nDeviceAllow=/dev/null rw\n"
    (systemd.units / "ollama.service").write_text(text)
    systemd.run(["systemctl", "daemon-reload"])
    started = systemd.run(["systemctl", "start", "ollama.service"])
    assert started.returncode == 0, started.stderr
    said = ask(systemd, tmp_path, text)
    running = said["service"]["running"]
    systemd.run(["systemctl", "stop", "ollama.service"])
    assert running["active"] == "active"
    assert running["pid"] > 1
    devices = running["devices"]
    assert {node["allowed"] for node in devices["nodes"]} == {False}, devices


def test_a_property_that_systemd_does_not_take_is_said_and_probes_go_on_without(
    systemd: PrivateSystemd, tmp_path: Path
) -> None:
    said = ask(systemd, tmp_path, "[Service]\nExecStart=/usr/bin/sleep 600\nUser=nobody\nRootDirectory=/no/such/root\n")
    assert said["transient"] == []
    missing = {item["what"]: item["why"] for item in said["adopted"]["not_adopted"]}
    assert "systemd-run" in missing["the transient unit"]
    assert "RootDirectory" in missing


def test_a_unit_that_does_not_exist_is_one_line(systemd: PrivateSystemd, tmp_path: Path) -> None:
    said = ask(systemd, tmp_path, "", service="systemd:no-such-unit")
    assert said["problem"].startswith("--gpu-as=systemd:no-such-unit: no unit no-such-unit.service")
