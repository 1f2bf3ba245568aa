"""The gate through transient units of a real systemd, which is started in namespaces of its own.

    python ci/systemd.py [--out DIR]

Needs root, systemd, dbus, unshare and nsenter, and no systemd that runs here already. A unit `ollama.service` with a
user, an environment, an environment file, limits, a sandbox and a directory runs a simulated Ollama, and a gate with
`--gpu-as systemd:ollama` runs beside it. Its discovery children load the simulated driver stack; the stages that look
at the machine itself find what it has, which is no GPU. Exit status 1 when a row is wrong, 20 without a systemd.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pytest_gpudiscovery import simulate  # noqa: E402
from tests.supervise.private_systemd import PrivateSystemd  # noqa: E402

UNIT = """[Unit]
DefaultDependencies=no
[Service]
ExecStart={host}/usr/local/bin/ollama serve
User=nobody
Group=nogroup
SupplementaryGroups=video
Environment=LD_LIBRARY_PATH={host}/lib "OLLAMA_ORIGINS=a b" OLLAMA_MODELS={home}/models HOME={home}
EnvironmentFile=-{home}/no-such-file
EnvironmentFile={home}/environment
WorkingDirectory={home}
MemoryMax=2G
TasksMax=200
LimitNOFILE=4096:8192
ProtectHome=yes
ProtectSystem=full
NoNewPrivileges=yes
{more}
"""
ENVIRONMENT = """# read by systemd, not by a shell
OLLAMA_HOST=127.0.0.1:21434
OLLAMA_DEBUG=1
TOKEN="hunter2 $HOME"
"""
GATE_S = 300.0
Verdict = dict[str, Any]


class Bed:
    """A systemd with the unit, and gates inside of it."""

    def __init__(self, directory: Path) -> None:
        """Boot it; raises OSError or RuntimeError with a reason when that cannot be had here."""
        self.directory = directory
        self.systemd = PrivateSystemd(directory)
        for place in ("/tmp", "/var/tmp"):  # noqa: S108 - of its own: other gates may run on this machine
            if self.systemd.run(["mount", "-t", "tmpfs", "tmpfs", place]).returncode != 0:
                raise RuntimeError(f"no {place} of its own")
        self.host = directory / "host"
        self.home = directory / "home"
        self.home.mkdir(mode=0o755)
        shutil.chown(self.home, "nobody", "nogroup")
        (self.home / "environment").write_text(ENVIRONMENT)
        simulate.prepare(simulate.parse("h100-ollama"), str(self.host))
        simulate.prepare(simulate.parse("h100-ollama:serve.hang"), str(directory / "hangs"))

    def unit(self, *more: str, host: Path | None = None) -> None:
        """Write the unit with MORE settings, and start it."""
        text = UNIT.format(host=host or self.host, home=self.home, more="\n".join(more))
        (self.systemd.units / "ollama.service").write_text(text)
        for command in (["daemon-reload"], ["restart", "ollama.service"]):
            done = self.systemd.run(["systemctl", *command])
            if done.returncode != 0:
                raise RuntimeError(f"systemctl {command[0]}: {done.stderr.strip()}")
        time.sleep(1.0)  # the service's own discovery

    def state(self) -> str:
        """Return the service's main PID and when it started."""
        names = ["-p", "MainPID", "-p", "ExecMainStartTimestampMonotonic", "-p", "ActiveState"]
        return " ".join(self.systemd.run(["systemctl", "show", "ollama.service", *names]).stdout.split())

    def units(self) -> str:
        """Return the transient units that are there."""
        return self.systemd.run(["systemctl", "list-units", "--all", "--no-legend", "gpu-discovery*"]).stdout.strip()

    def gate(self, *, stop: bool = False) -> tuple[Verdict, str]:
        """Run a gate inside, STOP it by SIGTERM while its private server runs; (verdict, output)."""
        report = self.directory / "report"
        shutil.rmtree(report, ignore_errors=True)
        argv = ["nsenter", "-t", str(self.systemd.pid), "-m", "-p", "-u", "-i", "-n", "--"]
        argv += [sys.executable, "-m", "pytest_gpudiscovery", "gate", "-v", "--gpu-as", "systemd:ollama"]
        argv += ["--gpu-report", str(report)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryFile() as out:
            child = subprocess.Popen(argv, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd="/")
            until = time.monotonic() + GATE_S
            while child.poll() is None and time.monotonic() < until:
                servers = [argv for argv in below(self.systemd.pid).values() if argv[1:2] == ["serve"]]
                gates = [pid for pid, argv in below(child.pid).items() if "pytest_gpudiscovery" in argv]
                if stop and gates and len(servers) > 1:
                    stop = False
                    os.kill(gates[0], signal.SIGTERM)
                time.sleep(0.02)
            child.kill()
            child.wait()
            out.seek(0)
            text = out.read().decode("utf-8", "replace")
        try:
            return json.loads((report / "verdict.json").read_text()), text
        except (OSError, ValueError) as error:
            return {"verdict": f"none: {error}", "stages": [], "context": {}}, text


def stage(verdict: Verdict, name: str) -> dict[str, Any]:
    """Return the record of stage NAME."""
    return next((one for one in verdict["stages"] if one["name"] == name), {"outcome": "absent", "checks": []})


def below(pid: int) -> dict[int, list[str]]:
    """Return the descendants of PID with their command lines: this machine may run other gates and other servers."""
    found: dict[int, list[str]] = {}
    todo = [pid]
    while todo:
        for path in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in map(int, path.read_text().split()):
                    todo.append(child)
                    found[child] = Path(f"/proc/{child}/cmdline").read_text(errors="replace").split("\0")
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the verdicts here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/opt", prefix="gpu-discovery-systemd-") as name:  # not hidden by ProtectHome
        directory = Path(name)
        directory.chmod(0o755)
        try:
            bed = Bed(directory)
        except (OSError, RuntimeError) as error:
            print(f"no systemd can be started here: {error}")
            return 20
        try:
            return rows(bed, options.out)
        finally:
            bed.systemd.end()


def rows(bed: Bed, keep: Path | None) -> int:
    """Ask every question; return 1 when an answer is wrong."""
    print(bed.systemd.run(["systemctl", "--version"]).stdout.splitlines()[0], flush=True)
    wrong = 0

    def say(right: bool, what: str, seen: object) -> None:
        nonlocal wrong
        wrong += not right
        print(f"{'ok   ' if right else 'WRONG'} {what}: {seen}", flush=True)

    bed.unit()
    before, homes = bed.state(), set(os.listdir(bed.home))
    verdict, text = bed.gate()
    print(text)
    context = verdict["context"]
    say((context.get("uid"), context.get("gid")) == (65534, 65534), "probed as", f"uid {context.get('uid')}")
    say(context.get("adopted", [""])[-1].startswith("every property"), "adopted", context.get("adopted"))
    say(context.get("not_adopted") == [], "not adopted", context.get("not_adopted"))
    for name in ("service", "bootstrap", "serve"):
        say(stage(verdict, name)["outcome"] in ("passed", "warned"), name, stage(verdict, name).get("summary"))
    say("hunter2" not in json.dumps(verdict), "the secret of the environment file is in no report", True)
    say(bed.state() == before, "the service is as before", before)
    say(bed.units() == "", "transient units left", bed.units() or "none")
    say(set(os.listdir(bed.home)) == homes, "files of the service", sorted(os.listdir(bed.home)))
    _keep(keep, "plain", verdict)

    for setting, cause in (
        ("PrivateDevices=yes", "service.devices.private"),
        ("ProtectSystem=strict", "loopback.tmp.denied"),
    ):
        bed.unit(setting)
        verdict, _ = bed.gate()
        causes = {check["finding"]["cause"] for one in verdict["stages"] for check in one["checks"] if check["finding"]}
        say(cause in causes, f"{setting} is found", sorted(causes))
        _keep(keep, setting.partition("=")[0], verdict)

    bed.unit(host=bed.directory / "hangs")
    before, were = bed.state(), _left(bed)
    verdict, text = bed.gate(stop=True)
    last = text.rstrip().rpartition("\n")[2]
    say(verdict["verdict"] == "incomplete" and "143" in last, "stopped in stage 13", last)
    until = time.monotonic() + 15
    while (left := [name for name in _left(bed) if name not in were]) and time.monotonic() < until:
        time.sleep(0.2)
    say(left == [], "left behind by the stopped gate", left or "nothing")
    say(bed.state() == before, "the service is as before", before)
    return int(wrong > 0)


def _left(bed: Bed) -> list[str]:
    """Return the gate's directories and units that are there."""
    names = bed.systemd.run(["sh", "-c", "ls -d /tmp/gpu-discovery-* /var/tmp/gpu-discovery-* 2>/dev/null"]).stdout
    return [*names.split(), *bed.units().splitlines()]


def _keep(directory: Path | None, name: str, verdict: Verdict) -> None:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"systemd-{name}.json").write_text(json.dumps(verdict, indent=1))


if __name__ == "__main__":
    raise SystemExit(main())
