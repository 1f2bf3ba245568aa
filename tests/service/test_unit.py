"""Who a systemd unit runs as, by its files: identity, environment, limits, directory, program, what is missing."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from pytest_gpudiscovery.service import sandbox
from pytest_gpudiscovery.service.unit import from_unit, service
from pytest_gpudiscovery.service.who import NATIVE, Who
from pytest_gpudiscovery.unit_files import Unit, read_unit

NOBODY = pwd.getpwnam("nobody")


def unit(tmp_path: Path, text: str) -> Unit:
    (tmp_path / "ollama.service").write_text(f"[Service]\n{text}\n")
    found = read_unit("ollama.service", (str(tmp_path),))
    assert found is not None
    return found


def who(tmp_path: Path, text: str, *, may_run: bool = False) -> Who:
    return from_unit(unit(tmp_path, text), may_run=may_run)


def what(found: Who) -> list[str]:
    return [item.what for item in found.missing]


def test_user_and_environment_are_adopted(tmp_path: Path) -> None:
    found = who(tmp_path, 'User=nobody\nEnvironment="A=b c" D=e\nEnvironment=LD_LIBRARY_PATH=/opt')
    assert found.identity is not None
    assert (found.identity.uid, found.identity.gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert found.env is not None
    wanted = {"A": "b c", "D": "e", "LD_LIBRARY_PATH": "/opt", "USER": "nobody", "HOME": NOBODY.pw_dir}
    assert {name: found.env[name] for name in wanted} == wanted


def test_without_user_root_has_no_home(tmp_path: Path) -> None:
    found = who(tmp_path, "ExecStart=/bin/true")
    assert found.identity is not None
    assert found.identity.uid == 0
    assert found.env is not None
    assert "HOME" not in found.env
    assert "HOME" in (who(tmp_path, "User=root").env or {})


def test_groups(tmp_path: Path) -> None:
    found = who(tmp_path, "User=nobody\nGroup=0\nSupplementaryGroups=12 34\nSupplementaryGroups=56")
    assert found.identity is not None
    assert found.identity.gid == 0
    assert {12, 34, 56} <= set(found.identity.groups)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("User=no-such-user-here", "no-such-user-here"),
        ("User=nobody\nGroup=no-such-group", "no-such-group"),
        ("DynamicUser=yes", "DynamicUser of ollama.service"),
    ],
)
def test_who_cannot_be_adopted_is_said_and_not_replaced_in_silence(tmp_path: Path, text: str, words: str) -> None:
    found = who(tmp_path, text)
    assert (found.identity, found.source) == (None, "caller")
    assert words in found.refused
    assert found.missing


def test_a_dynamic_user_can_be_had_from_systemd(tmp_path: Path) -> None:
    found = who(tmp_path, "DynamicUser=yes\nEnvironment=A=1", may_run=True)
    assert (found.refused, found.identity) == ("", None)
    assert found.transient == ("DynamicUser=yes", "User=ollama")


def test_later_sources_win_and_variables_can_be_taken_away(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=file\nB=file\nC=file\n")
    text = (
        f"PassEnvironment=P Q\nEnvironment=A=unit B=unit\nEnvironmentFile={tmp_path}/env\nEnvironmentFile=-/no/such\n"
        "UnsetEnvironment=B C=other PATH"
    )
    found = from_unit(unit(tmp_path, text), manager_env={"P": "1", "PATH": "/manager", "X": "no"})
    assert found.env is not None
    assert found.env["A"] == "file"
    assert "B" not in found.env
    assert found.env["C"] == "file"
    assert "PATH" not in found.env
    assert found.env["P"] == "1"
    assert "X" not in found.env
    assert from_unit(unit(tmp_path, "A=b"), manager_env={"PATH": "/manager"}).env == {
        "PATH": "/manager",
        "LANG": "C.UTF-8",
    }


def test_what_of_the_environment_cannot_be_had_is_said(tmp_path: Path) -> None:
    text = 'PassEnvironment=P\nEnvironment="open\nEnvironmentFile=/no/such/file\nEnvironment=X=%q'
    found = who(tmp_path, text)
    said = what(found)
    assert "PassEnvironment=P" in said
    assert "an Environment= line" in said
    assert "EnvironmentFile=/no/such/file" in said
    assert "Environment" in said  # the specifier that is not known


def test_specifiers_are_expanded_where_systemd_does(tmp_path: Path) -> None:
    found = who(tmp_path, "Environment=A=%n/%t/%h B=100%%\nWorkingDirectory=%S/x\nCPUQuota=50%")
    assert found.env is not None
    assert (found.env["A"], found.env["B"]) == ("ollama.service//run//root", "100%")
    assert found.cwd == "/var/lib/x"
    assert found.sandbox["cpus"] == 0.5


@pytest.mark.parametrize(
    ("text", "cwd"),
    [
        ("", "/"),
        ("WorkingDirectory=/tmp", "/tmp"),
        ("WorkingDirectory=-/no/such", "/"),
        ("WorkingDirectory=/no/such", "/no/such"),
        ("WorkingDirectory=~", "/root"),
        ("User=nobody\nWorkingDirectory=~", NOBODY.pw_dir),
    ],
)
def test_the_working_directory(tmp_path: Path, text: str, cwd: str) -> None:
    if text.endswith("~") and "User" not in text:
        cwd = pwd.getpwuid(0).pw_dir
    assert who(tmp_path, text).cwd == cwd


@pytest.mark.parametrize(
    ("line", "binary"),
    [
        ("/usr/bin/ollama serve", "/usr/bin/ollama"),
        ('-@"/opt/my ollama/bin/ollama" ollama serve', "/opt/my ollama/bin/ollama"),
        ("true", "/usr/bin/true"),
        ("no-such-program", None),
        ("", None),
    ],
)
def test_the_program(tmp_path: Path, line: str, binary: str | None) -> None:
    assert who(tmp_path, f"ExecStart={line}").binary == binary


def test_limits_are_translated_and_what_is_not_is_said(tmp_path: Path) -> None:
    found = who(tmp_path, "LimitNOFILE=16\nLimitAS=4G\nLimitCPU=1h\nLimitMEMLOCK=infinity")
    assert found.limits == {
        "RLIMIT_NOFILE": (16, 16),
        "RLIMIT_AS": (4 << 30, 4 << 30),
        "RLIMIT_MEMLOCK": (-1, -1),
    }
    assert "LimitCPU" in what(found)
    assert who(tmp_path, "").limits == {"RLIMIT_NOFILE": (1024, 524288)}


def test_what_only_systemd_can_apply_leaves_stages_open(tmp_path: Path) -> None:
    text = "SystemCallFilter=@system-service\nPrivateDevices=yes\nMemoryMax=8G\nProtectHome=no\nPrivateTmp=yes"
    found = who(tmp_path, text)
    filters, others = found.missing
    assert (filters.what, filters.stages) == ("SystemCallFilter", NATIVE)
    assert (others.what, others.stages) == ("PrivateDevices, PrivateTmp, MemoryMax", ())
    assert found.sandbox["private_devices"] is True
    assert found.sandbox["memory_max"] == 8 << 30
    applied = who(tmp_path, text, may_run=True)
    assert applied.missing == ()
    assert applied.transient == tuple(text.splitlines())


def test_a_transient_unit_takes_over_neither_directories_nor_secrets_nor_the_program(tmp_path: Path) -> None:
    text = (
        "User=nobody\nRuntimeDirectory=ollama\nStateDirectory=ollama\nLoadCredential=a:/b\nEnvironment=KEY=secret\n"
        "EnvironmentFile=/etc/secret\nExecStart=/usr/bin/ollama serve\nExecStartPre=/bin/rm x\nRestart=always\n"
        "WorkingDirectory=/x\nDeviceAllow=\nDeviceAllow=char-nvidia rw\nLimitNOFILE=5\nType=notify\nSlice=gpu.slice"
    )
    assert sandbox.transient(unit(tmp_path, text)) == (
        "User=nobody",
        "DeviceAllow=",
        "DeviceAllow=char-nvidia rw",
        "LimitNOFILE=5",
        "Slice=gpu.slice",
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        (["AF_INET AF_UNIX"], {"allowed": True, "names": ["AF_INET", "AF_UNIX"]}),
        (["AF_INET", "AF_UNIX"], {"allowed": True, "names": ["AF_INET", "AF_UNIX"]}),
        (["AF_INET AF_UNIX", "~AF_INET"], {"allowed": True, "names": ["AF_UNIX"]}),
        (["~AF_INET"], {"allowed": False, "names": ["AF_INET"]}),
        (["~AF_INET AF_PACKET", "AF_INET"], {"allowed": False, "names": ["AF_PACKET"]}),
        (["none"], {"allowed": True, "names": []}),
    ],
)
def test_address_families(values: list[str], expected: dict[str, object] | None) -> None:
    assert sandbox.families(values) == expected


def test_the_units_root_directory_is_read_below(tmp_path: Path) -> None:
    assert who(tmp_path, "RootDirectory=/srv/root").root == "/srv/root"
    assert who(tmp_path, "RootDirectory=/").root is None
    assert who(tmp_path, "RootDirectory=/srv/root", may_run=True).root is None


def test_a_masked_unit_is_refused(tmp_path: Path) -> None:
    assert service(directories=(str(tmp_path),)) is None
    os.symlink("/dev/null", tmp_path / "ollama.service")
    found = service(directories=(str(tmp_path),))
    assert found is not None
    assert "masked" in found.refused
