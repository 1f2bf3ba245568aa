"""Who probes, with which privileges, and how the context travels between processes."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from pytest_gpudiscovery import context
from pytest_gpudiscovery.options import Settings, UsageProblem
from pytest_gpudiscovery.service import adopt
from pytest_gpudiscovery.service.who import Who
from pytest_gpudiscovery.supervise.types import Identity

SERVICE = Who(Identity(990, 990, (44, 990), "ollama"), "systemd unit ollama.service", {"HOME": "/usr/share/ollama"})
ALL = (1 << 41) - 1


def test_root_probes_as_the_service_in_a_private_dev() -> None:
    setup = adopt.setup_for(SERVICE, 0, ALL)
    assert (setup.identity, setup.private_dev, setup.no_new_privs, setup.drop_mknod) == (
        SERVICE.identity,
        True,
        True,
        False,
    )


def test_root_that_may_not_mount_gives_up_the_right_to_make_nodes() -> None:
    setup = adopt.setup_for(Who(None, "caller"), 0, ALL & ~(1 << adopt.CAP_SYS_ADMIN))
    assert (setup.private_dev, setup.drop_mknod) == (False, True)


def test_somebody_else_probes_as_themselves_and_it_is_said() -> None:
    setup = adopt.setup_for(SERVICE, 1000, 0)
    assert setup.identity is None
    assert setup.private_dev is False
    said = adopt.describe(SERVICE, setup, 0)
    if os.geteuid() != 990:
        assert {"what": "user ollama", "why": "only root can probe as another user"} in said["not_adopted"]


def test_our_own_variables_do_not_reach_a_probe_and_the_users_do() -> None:
    env = {
        "PYTHONPATH": "x",
        "PYTEST_ADDOPTS": "y",
        "GPU_DISCOVERY_UNTIL": "z",
        "CUDA_VISIBLE_DEVICES": "0",
        "PATH": "/",
    }
    assert context.child_environment(env) == {"CUDA_VISIBLE_DEVICES": "0", "PATH": "/"}


def test_a_context_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    built = context.build(Settings(until="runtime", stage_timeout={"driver": 3.0}), str(tmp_path))
    context.save(built)
    assert context.load(str(tmp_path)) == built


def test_an_environment_file_is_adopted(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\n")
    built = context.build(Settings(as_service=f"env:{tmp_path}/env"), str(tmp_path))
    assert built.env == {"A": "1"}
    assert built.adopted["as"] == f"environment file {tmp_path}/env"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(profile="h10"), "--gpu-profile=h10"),
        (Settings(simulate="h100:no.such.fault"), "--gpu-simulate=h100:no.such.fault"),
        (Settings(as_service="env:/no/such/file"), "--gpu-as=env:/no/such/file"),
        (Settings(as_service="pid:4194303"), "--gpu-as=pid:4194303: no such process"),
        (Settings(as_service="systemd:no-such-unit"), "--gpu-as=systemd:no-such-unit: no unit no-such-unit.service"),
        (Settings(as_service="pid:1", simulate="h100"), "a simulated host has no such service"),
        (Settings(ollama="/no/such/path"), "--gpu-ollama=/no/such/path: expected an ollama binary"),
        (Settings(ollama="/etc/passwd"), "got no ELF file, script or archive"),
        (Settings(profile="h200", until="driver"), "--gpu-until=driver ends before that stage"),
        (Settings(trace=True, until="backend"), "--gpu-trace: bootstrap does it, and --gpu-until=backend ends before"),
        (Settings(experiment="preload", until="load"), "--gpu-experiment: bootstrap does it"),
    ],
)
def test_what_cannot_be_used_is_one_line(settings: Settings, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem) as caught:
        context.build(settings, str(tmp_path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_low_limit_on_descriptors_is_raised_for_us_and_given_back_to_probes() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        assert adopt.room_for_ourselves() == {"RLIMIT_NOFILE": (64, before[1])}
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64
        assert adopt.room_for_ourselves() == {}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_host_is_named_and_a_simulated_one_as_such() -> None:
    assert set(context.host(None)) == {"name", "kernel", "glibc", "arch"}
    assert context.host("h100")["name"] == "simulated h100"


def test_an_environment_file_reaches_a_simulated_host_too(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("CUDA_VISIBLE_DEVICES=\n")
    built = context.build(Settings(as_service=f"env:{tmp_path}/env", simulate="h100"), str(tmp_path))
    assert built.env["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_directory_that_is_closed_to_the_services_user_is_found_before_any_stage(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    who = Who(Identity(65534, 65534), "systemd unit x.service", {}, cwd=str(closed))
    found = adopt.in_its_directory(who, adopt.setup_for(who, 0, ALL))
    assert found.cwd == "/"
    assert found.sandbox["directory"] == {"path": str(closed), "errno": "EACCES"}
    who = Who(Identity(65534, 65534), "systemd unit x.service", {}, cwd="/usr")
    assert adopt.in_its_directory(who, adopt.setup_for(who, 0, ALL)) is who


def test_what_systemd_starts_needs_no_private_dev() -> None:
    who = Who(None, "systemd unit x.service", {}, transient=("Nice=1",), limits={"RLIMIT_NOFILE": (1, 2)})
    setup = adopt.setup_for(who, 0, ALL)
    assert (setup.private_dev, setup.drop_mknod, setup.limits) == (False, True, {})
    assert setup.transient == ("Nice=1",)
    assert adopt.setup_for(who, 1000, 0).transient == ()
