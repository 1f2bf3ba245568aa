"""The recipe of docs/containers.md: its image as an overlay, entered as a container, asked from inside and outside."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import container
from tests.service.test_process import ROOT

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = (REPOSITORY / "ci" / "templates" / "container" / "Dockerfile").read_text(encoding="utf-8")
# PID 1 of the container. Its /dev is what a runtime gives: a tmpfs with a few nodes.
BEGIN = """
set -e
mount --make-rprivate /
mount -t overlay overlay -o lowerdir=/,upperdir={upper},workdir={work} {root}
mount -t proc proc {root}/proc
mount -t tmpfs -o mode=755 tmpfs {root}/dev
for node in "null 3" "zero 5" "full 7" "random 8" "urandom 9" "tty 0"; do
  set -- $node; mknod -m 666 {root}/dev/$1 c 1 $2
done
{ip} link set lo up 2>/dev/null || true
mount -t tmpfs -o mode=1777 tmpfs {root}/tmp
exec {capsh} --drop=cap_sys_admin,cap_mknod --chroot={root} -- -c {command}
"""


def lines(word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in DOCKERFILE.splitlines() if line.startswith(f"{word} ")]


class Image:
    """The recipe's image: this machine's root directory, for its Python, with Ollama's files where the recipe says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("upper", "work", "root", "ollama"):
            (directory / name).mkdir()
        source = container.make(directory / "ollama")
        (source / "usr" / "bin" / "ollama").unlink()
        (source / "usr" / "bin" / "ollama.real").rename(source / "usr" / "bin" / "ollama")
        (source / "etc" / "ld.so.preload").unlink()
        for line in lines("COPY"):
            option, path, target = line.split()
            assert option == "--from=ollama"
            there = directory / "upper" / target.lstrip("/")
            there.parent.mkdir(parents=True, exist_ok=True)
            if (source / path.lstrip("/")).is_dir():
                shutil.copytree(source / path.lstrip("/"), there, symlinks=True)
            else:
                shutil.copy(source / path.lstrip("/"), there)
        self.env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/root",
            **dict(line.split("=", 1) for line in lines("ENV")),
        }

    def command(self, command: str) -> list[str]:
        """Return what runs shell COMMAND as PID 1 of a container of this image."""
        script = BEGIN.format(
            upper=self.directory / "upper",
            work=self.directory / "work",
            root=self.directory / "root",
            command=shlex.quote(command),
            capsh=shutil.which("capsh"),
            ip=shutil.which("ip"),
        )
        return ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "/bin/sh", "-c", script]

    def run(self, command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(command), env={**self.env, **env}, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """The image, or a skip that says what this machine lacks."""
    if not ROOT or not all(map(shutil.which, ("unshare", "capsh", "mount", "ip"))):
        pytest.skip("needs root, unshare, capsh, mount and ip")
    made = Image(tmp_path)
    tried = made.run("test -x /usr/bin/ollama && echo here")
    if tried.stdout.strip() != "here":
        pytest.skip(f"no overlay of this root directory can be made: {tried.stderr.strip()[-200:]}")
    return made


def gate(*more: str) -> str:
    """Return the recipe's ENTRYPOINT with this repository's gate, and MORE."""
    (entry,) = lines("ENTRYPOINT")
    program, *arguments = json.loads(entry)
    assert program == "gpu-discovery"
    return shlex.join([sys.executable, "-m", "pytest_gpudiscovery", *arguments, *more])


def test_the_recipe_is_complete() -> None:
    assert lines("FROM") == ["${OLLAMA} AS ollama", "${PYTHON} AS gpu", "gpu"]
    assert len(lines("COPY")) == 2
    assert {line.partition("=")[0] for line in lines("ENV")} == {
        "LD_LIBRARY_PATH",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_VISIBLE_DEVICES",
    }


def test_inside_the_gate_finds_the_images_ollama_and_needs_no_privilege(image: Image) -> None:
    done = image.run(
        f"cd /tmp && PYTHONPATH={REPOSITORY} {gate('--gpu-until', 'loopback', '--gpu-report', '/tmp/r')}; "
        "echo code=$?; cat /tmp/r/verdict.json",
        PYTHONDONTWRITEBYTECODE="1",
    )
    text, _, data = done.stdout.partition("code=")
    code, _, data = data.partition("\n")
    assert code in ("0", "20"), done.stdout + done.stderr
    verdict = json.loads(data)
    stages = {record["name"]: record for record in verdict["stages"]}
    assert verdict["versions"]["ollama"] == "0.16.3"
    assert stages["package"]["facts"]["lib_dir"] == "/usr/lib/ollama"
    assert stages["package"]["outcome"] in ("passed", "warned"), stages["package"]["summary"]
    assert stages["service"]["outcome"] in ("passed", "warned"), stages["service"]["summary"]
    assert stages["loopback"]["outcome"] == "passed", stages["loopback"]["summary"]
    assert verdict["context"]["private_dev"] is False
    assert "01 package" in text


def test_from_outside_the_process_is_asked_by_its_pid_and_never_green(image: Image, tmp_path: Path) -> None:
    (image.directory / "upper" / "etc").mkdir(exist_ok=True)
    outer = subprocess.Popen(
        image.command("exec -a ollama sleep 300"),
        env={**image.env, "OLLAMA_API_KEY": "hunter2", "CUDA_VISIBLE_DEVICES": "-1"},
        stdin=subprocess.DEVNULL,
    )
    try:
        pid = _inside(outer.pid)
        program = [sys.executable, "-m", "pytest_gpudiscovery", "gate", f"--gpu-as=pid:{pid}", "--gpu-until=closure"]
        report = tmp_path / "report"
        done = subprocess.run(
            [*program, f"--gpu-report={report}"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        verdict = json.loads((report / "verdict.json").read_text())
    finally:
        outer.kill()
        outer.wait(10)
        os.kill(pid, 9)
    assert done.returncode in (1, 20), done.stdout + done.stderr
    stages = {record["name"]: record for record in verdict["stages"]}
    assert stages["package"]["facts"]["binary"] == "/usr/bin/ollama"
    assert stages["package"]["facts"]["lib_dir"] == "/usr/lib/ollama"
    service = {check["finding"]["cause"] for check in stages["service"]["checks"] if check["finding"]}
    assert "service.env.cuda_visible_devices_hides_all" in service
    assert not any("/cgroup cannot be read" in (check["reason"] or "") for check in stages["service"]["checks"])
    assert verdict["verdict"] in ("blocked", "incomplete")
    assert "mount namespace" in {item["what"] for item in verdict["context"]["not_adopted"]}
    everything = (report / "verdict.json").read_text() + done.stdout
    assert "hunter2" not in everything


def _inside(outer: int) -> int:
    """Return the process that became PID 1 of the container, once it has become `sleep`."""
    for _ in range(2000):
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "sleep":
            return int(children[0])
        subprocess.run(["sleep", "0.01"], check=True)
    raise AssertionError("the container did not begin")
