"""Inject faults on a real GPU host, run the gate as a process on each, and compare what it names with what was done.

    python ci/hardware/faults.py --out DIR [--old-driver DIR] [--only NAME,...]

Run as root on a host whose GPU is idle. Each case lives in a mount namespace of its own and in its environment, so
nothing stays behind; each runs as root and as uid 65534. `--old-driver` names a directory with libcuda.so.1 and
libnvidia-ml.so.1 of another driver version. Prints a table and writes DIR/faults.json; exit 1 when a case differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comparable

WORK = Path("/tmp/gpu-discovery-faults")  # noqa: S108  made anew by root below, removed at the end
NOBODY = 65534
LIMIT_S = 120.0
READY, DEGRADED, BLOCKED = "ready", "degraded", "blocked"
FINE = (READY, DEGRADED)

SHELL = r"""
set -eu
W=%(work)s/ns; mkdir -p $W; mount -t tmpfs -o mode=755 faults $W
LIBDIR=$(dirname "$(ldconfig -p | awk '/libcuda\.so\.1 /{print $NF; exit}')")
dev() { # a /dev of its own; OPTIONS, then the names that it lacks
  opts=$1; shift; mkdir -p $W/dev; mount -t tmpfs -o "mode=755$opts" dev $W/dev
  for n in null zero full random urandom tty; do [ -e /dev/$n ] && cp -a /dev/$n $W/dev/; done
  ln -s /proc/self/fd $W/dev/fd; mkdir $W/dev/shm; chmod 1777 $W/dev/shm
  for n in /dev/nvidia*; do
    b=$(basename $n); skip=; for s in "$@"; do [ "$s" = "$b" ] && skip=1; done
    [ -n "$skip" ] || cp -a $n $W/dev/
  done
  mount --move $W/dev /dev
}
libs() { # the driver's library directory without the files that the patterns name
  mkdir -p $W/orig $W/farm; mount --bind "$LIBDIR" $W/orig; ln -s $W/orig/* $W/farm/
  for p in "$@"; do rm -f $W/farm/$p; done
  mount --bind $W/farm "$LIBDIR"
}
hide() { mkdir -p $W/none; mount --bind $W/none "$1"; }
ALL="nvidia0 nvidiactl nvidia-uvm nvidia-uvm-tools nvidia-caps"
"""
PRELOADS = {
    "hang_cuinit": "#include <unistd.h>\nint cuInit(unsigned f){(void)f;for(;;)pause();}",
    "spin_cuinit": 'int cuInit(unsigned f){(void)f;for(;;)__asm__ volatile("");}',
    "crash_cuinit": "#include <stdlib.h>\nint cuInit(unsigned f){(void)f;abort();}",
    "exit_cuinit": "#include <unistd.h>\nint cuInit(unsigned f){(void)f;_exit(0);}",
    "slow_802": "#include <unistd.h>\nint cuInit(unsigned f){(void)f;sleep(2);return 802;}",
    "hang_context": "#include <unistd.h>\nint cuDevicePrimaryCtxRetain(void*c,int d){(void)c;(void)d;for(;;)pause();}",
    "hang_ctor": "#include <unistd.h>\n__attribute__((constructor))static void c(void){for(;;)pause();}",
}


@dataclass(frozen=True)
class Case:
    """One fault; `root` and `nobody` are the (verdicts, stage, causes) that are right, None: not run as that user."""

    name: str
    root: tuple[tuple[str, ...], str, tuple[str, ...]] | None
    nobody: tuple[tuple[str, ...], str, tuple[str, ...]] | None
    prepare: str = ""
    env: dict[str, str] = field(default_factory=dict)
    outer: str = ""  # words before everything, as root
    wrap: str = ""  # words before the gate's own command, as the user
    options: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether the gate must find nothing to say for either user."""
        return all(expected in (None, fine()) for expected in (self.root, self.nobody))


def blocked(stage: str, *causes: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """The gate must stop at STAGE for one of CAUSES."""
    return ((BLOCKED,), stage, causes)


def fine(*causes: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """The gate must not block; with CAUSES it must be degraded and say one of them."""
    return ((DEGRADED,) if causes else FINE, "", causes)


HIDES = ("service", "service.env.cuda_visible_devices_hides_all")
NODE = "kernel.node."
HEALED = fine(NODE + "healed_by_root")
SHORT = ("--gpu-stage-timeout", "driver=3", "--gpu-stage-timeout", "service=4")
PRELOAD = {name: {"LD_PRELOAD": f"{WORK}/{name}.so"} for name in PRELOADS}


def cases(old_driver: str | None) -> list[Case]:
    """Return every case; those with another driver version only when OLD_DRIVER is given."""
    found = [
        Case("none", fine(), fine()),
        *(
            Case(
                f"CUDA_VISIBLE_DEVICES={value!r}", blocked(*HIDES), blocked(*HIDES), env={"CUDA_VISIBLE_DEVICES": value}
            )
            for value in (
                "",
                "7",
                "GPU-deadbeef-0000-4000-8000-000000000000",
                "MIG-deadbeef-0000-4000-8000-000000000000",
            )
        ),
        *(
            Case(f"no /dev/{name}", HEALED, blocked("kernel", NODE + "missing"), f"dev '' {name}")
            for name in ("nvidia0", "nvidiactl", "nvidia-uvm")
        ),
        Case(
            "no device nodes", HEALED, blocked("kernel", NODE + "missing", "kernel.container.no_devices"), "dev '' $ALL"
        ),
        Case(
            "wrong minor",
            HEALED,
            blocked("kernel", NODE + "wrong_number"),
            "dev '' nvidia0; mknod -m 666 /dev/nvidia0 c 195 7",
        ),
        Case(
            "wrong major",
            HEALED,
            blocked("kernel", NODE + "wrong_number"),
            "dev '' nvidia0; mknod -m 666 /dev/nvidia0 c 194 0",
        ),
        Case(
            "a regular file",
            HEALED,
            blocked("kernel", NODE + "not_char"),
            "dev '' nvidia0; touch /dev/nvidia0; chmod 666 /dev/nvidia0",
        ),
        Case(
            "no nodes, root without CAP_MKNOD",
            blocked("kernel", NODE + "missing", "kernel.container.no_devices"),
            None,
            "dev '' $ALL",
            wrap="setpriv --bounding-set -mknod --inh-caps -mknod",
        ),
        Case(
            "all nodes 0600",
            fine(),
            blocked("kernel", NODE + "no_permission"),
            "dev ''; chmod 600 /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm",
        ),
        Case("nvidia0 0600", fine(), blocked("kernel", NODE + "no_permission"), "dev ''; chmod 600 /dev/nvidia0"),
        Case("nvidia-uvm 0600", fine(), blocked("kernel", NODE + "no_permission"), "dev ''; chmod 600 /dev/nvidia-uvm"),
        Case(
            "all nodes 0444",
            fine(),
            blocked("kernel", NODE + "no_permission"),
            "dev ''; chmod 444 /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm",
        ),
        Case("/dev mounted nodev", blocked("kernel", NODE + "nodev"), blocked("kernel", NODE + "nodev"), "dev ,nodev"),
        Case(
            "toolkit stub libcuda first",
            blocked("service", "service.ld_library_path.stub"),
            blocked("service", "service.ld_library_path.stub"),
            "mkdir -p $W/stub; ln -s /usr/local/cuda/lib64/stubs/libcuda.so $W/stub/libcuda.so.1",
            env={"LD_LIBRARY_PATH": f"{WORK}/ns/stub"},
        ),
        Case("user namespace alone", fine(), None, wrap="unshare --user --map-root-user"),
        Case(
            "user and PID namespace",
            blocked("service", "service.user_namespace"),
            None,
            wrap="unshare --user --pid --fork --map-root-user",
        ),
        Case(
            "ulimit -v 4 GB",
            blocked("service", "service.limit.address_space"),
            blocked("service", "service.limit.address_space"),
            wrap="prlimit --as=4294967296",
        ),
        Case(
            "ulimit -n 16",
            blocked("service", "service.limit.descriptors"),
            blocked("service", "service.limit.descriptors"),
            wrap="prlimit --nofile=16:1024",
        ),
        Case(
            "NVML missing",
            fine("kernel.user_space.no_nvml", "nvml.missing"),
            fine("kernel.user_space.no_nvml", "nvml.missing"),
            "libs 'libnvidia-ml*'",
        ),
        Case(
            "libcuda missing",
            blocked("kernel", "kernel.user_space.missing", "kernel.user_space.unusable"),
            blocked("kernel", "kernel.user_space.missing", "kernel.user_space.unusable"),
            "libs 'libcuda.so*'",
        ),
        Case(
            "PTX compiler missing",
            fine("driver.kernel.jit_missing"),
            fine("driver.kernel.jit_missing"),
            "libs 'libnvidia-ptxjitcompiler*'",
        ),
        Case(
            "preload: cuInit hangs",
            blocked("driver", "driver.cuinit.hang"),
            blocked("driver", "driver.cuinit.hang"),
            env=PRELOAD["hang_cuinit"],
            options=SHORT,
        ),
        Case(
            "preload: cuInit spins",
            blocked("driver", "driver.cuinit.hang"),
            blocked("driver", "driver.cuinit.hang"),
            env=PRELOAD["spin_cuinit"],
            options=SHORT,
        ),
        Case(
            "preload: cuInit aborts",
            blocked("driver", "driver.cuinit.crash"),
            blocked("driver", "driver.cuinit.crash"),
            env=PRELOAD["crash_cuinit"],
        ),
        Case(
            "preload: cuInit calls _exit(0)",
            blocked("driver", "driver.cuinit.crash", "engine.probe.no_answer"),
            blocked("driver", "driver.cuinit.crash", "engine.probe.no_answer"),
            env=PRELOAD["exit_cuinit"],
        ),
        Case(
            "preload: 802 after 2 s",
            blocked("driver", "driver.cuinit.802"),
            blocked("driver", "driver.cuinit.802"),
            env=PRELOAD["slow_802"],
        ),
        Case(
            "preload: context hangs",
            blocked("driver", "driver.context.hang"),
            blocked("driver", "driver.context.hang"),
            env=PRELOAD["hang_context"],
            options=SHORT,
        ),
        Case(
            "preload: constructor hangs",
            blocked("service", "service.preload.hang"),
            blocked("service", "service.preload.hang"),
            # In a file and not in our own environment, where it would stop the shell that prepares the case.
            f"echo LD_PRELOAD={WORK}/hang_ctor.so >$W/env; echo PATH=/usr/bin:/bin >>$W/env",
            options=("--gpu-as", f"env:{WORK}/ns/env", *SHORT),
        ),
        Case("MPS directory absent", fine(), fine(), env={"CUDA_MPS_PIPE_DIRECTORY": "/nonexistent"}),
        Case(
            "MPS directory empty",
            fine(),
            fine(),
            "mkdir -p $W/mps; chmod 777 $W/mps",
            env={"CUDA_MPS_PIPE_DIRECTORY": f"{WORK}/ns/mps"},
        ),
        Case("/proc/driver hidden", fine(), fine(), "hide /proc/driver"),
        Case("/sys hidden", fine(), fine(), "hide /sys"),
        Case("no /dev/shm", fine(), fine(), "dev ''; rmdir /dev/shm"),
        Case("HOME cannot be written", fine(), fine(), env={"HOME": "/proc"}),
        Case("no locked memory", fine(), fine(), wrap="prlimit --memlock=0:0"),
        Case(
            "own network namespace (lo down)", fine("loopback.lo.down"), fine("loopback.lo.down"), outer="unshare --net"
        ),
        Case(
            "profile h200 on this host",
            blocked("enumeration", "enumeration.profile.name"),
            blocked("enumeration", "enumeration.profile.name"),
            options=("--gpu-profile", "h200"),
        ),
    ]
    found += [*_libraries(), *_context()]
    if old_driver is not None:
        both = {"LD_LIBRARY_PATH": old_driver}
        mismatch = blocked("kernel", "kernel.version.mismatch")
        found += [
            Case("driver libraries of another version", mismatch, mismatch, env=both),
            Case(
                "NVML of another version",
                fine("kernel.version.nvml_mismatch"),
                fine("kernel.version.nvml_mismatch"),
                f"mkdir -p $W/ml; cp -a {old_driver}/libnvidia-ml* $W/ml/",
                env={"LD_LIBRARY_PATH": f"{WORK}/ns/ml"},
            ),
        ]
    return found


def _libraries() -> list[Case]:
    """The driver's libraries as files that ld.so cannot use: a farm of links in which one is something else."""

    def case(name: str, pattern: str, make: str, expected: tuple[tuple[str, ...], str, tuple[str, ...]]) -> Case:
        # The version that ld.so's soname leads to is replaced: links to it stay.
        lines = f"libs '{pattern}'; for f in $W/orig/{pattern}; do t=$W/farm/$(basename $f); {make}; done"
        return Case(name, expected, expected, lines)

    unloadable, no_nvml = blocked("driver", "driver.libcuda.unloadable"), fine("nvml.unloadable")
    text = "echo this is no library >$t"
    return [
        case("libcuda is an empty file", "libcuda.so.[0-9]*", "touch $t", unloadable),
        case("libcuda is a text file", "libcuda.so.[0-9]*", text, unloadable),
        case("NVML is an empty file", "libnvidia-ml.so.[0-9]*", "touch $t", no_nvml),
        case("NVML is a text file", "libnvidia-ml.so.[0-9]*", text, no_nvml),
    ]


def _context() -> list[Case]:
    """What a service may hand to its children, beyond the cases above."""
    no_permission = blocked("kernel", NODE + "no_permission")
    missing, unusable = fine("service.preload.missing"), fine("service.preload.unusable")
    few, tmp = fine("service.limit.descriptors_few"), fine("loopback.tmp.missing")
    twice = blocked("service", "service.env.cuda_visible_devices_twice")
    order = blocked("service", "service.env.cuda_device_order")
    listed = "mkdir -p $W; echo this is no library >$W/text.so"
    return [
        Case("CUDA_VISIBLE_DEVICES='-1'", blocked(*HIDES), blocked(*HIDES), env={"CUDA_VISIBLE_DEVICES": "-1"}),
        Case("CUDA_VISIBLE_DEVICES='0,0'", twice, twice, env={"CUDA_VISIBLE_DEVICES": "0,0"}),
        Case("CUDA_DEVICE_ORDER=''", order, order, env={"CUDA_DEVICE_ORDER": ""}),
        Case("nvidiactl 0600", fine(), no_permission, "dev ''; chmod 600 /dev/nvidiactl"),
        Case("LD_PRELOAD of no file", missing, missing, env={"LD_PRELOAD": "/nonexistent/libgone.so"}),
        Case("LD_PRELOAD of a text file", unusable, unusable, listed, env={"LD_PRELOAD": f"{WORK}/ns/text.so"}),
        Case("ulimit -n 100", few, few, wrap="prlimit --nofile=100:1024"),
        Case("TMPDIR does not exist", tmp, tmp, env={"TMPDIR": "/nonexistent/tmp"}),
    ]


def run(case: Case, user: str, index: int) -> dict[str, Any]:
    """Run CASE as USER and return what the gate said."""
    report = WORK / f"report-{index}-{user}"
    report.mkdir()
    owner = NOBODY if user == "nobody" else 0
    os.chown(report, owner, owner)
    gate = [sys.executable, "-m", "pytest_gpudiscovery", "gate", "--gpu-until", "runtime", "--gpu-report", str(report)]
    words = [*case.wrap.split(), *gate, *case.options]
    if user == "nobody":
        words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *words]
    words = [*case.outer.split(), *words]
    # Faults of the environment reach the gate and not the shell that prepares them.
    settings = [f"{name}={value}" for name, value in case.env.items()]
    script = SHELL % {"work": WORK} + case.prepare + '\nexec env "$@"\n'
    argv = ["unshare", "--mount", "--propagation", "private", "bash", "-c", script, "case", *settings, *words]
    begun = time.monotonic()
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False)
        code, tail = done.returncode, (done.stdout + done.stderr)[-1500:]
    except subprocess.TimeoutExpired:
        code, tail = -1, f"the gate did not end within {LIMIT_S:g} s"
    seconds = time.monotonic() - begun
    try:
        verdict = json.loads((report / "verdict.json").read_text())
    except (OSError, ValueError) as error:
        verdict = {"verdict": f"none: {error}", "blockers": [], "stages": []}
    return {"code": code, "seconds": round(seconds, 2), "tail": tail, "verdict": verdict}


def judge(case: Case, user: str, said: dict[str, Any]) -> dict[str, Any]:
    """Compare what the gate SAID with what CASE expects of USER."""
    expected = case.root if user == "root" else case.nobody
    assert expected is not None
    verdicts, stage, causes = expected
    verdict = said["verdict"]
    primary = (verdict["blockers"] or [{}])[0]
    findings = {
        check["finding"]["cause"]
        for record in verdict["stages"]
        for check in record["checks"]
        if check["finding"] and check["outcome"] in ("failed", "warned")
    }
    right = verdict["verdict"] in verdicts and said["code"] == (1 if verdicts == (BLOCKED,) else 0)
    if verdicts == (BLOCKED,):
        right = right and primary.get("stage") == stage and primary.get("cause") in causes
    elif causes:
        right = right and bool(findings & set(causes))
    shown = primary.get("cause", "") or ", ".join(sorted(findings))
    return {
        **comparable.row(
            "faults",
            f"{case.name} ({user})",
            "" if case.healthy else case.name,
            f"{'/'.join(verdicts)} {stage} {'/'.join(causes)}",
            f"{verdict['verdict']} {primary.get('stage', '')} {shown}",
            right,
            said["seconds"],
        ),
        "case": case.name,
        "user": user,
        "exit": said["code"],
        "verdict": verdict["verdict"],
        "stage": primary.get("stage", ""),
        "cause": shown,
        "tail": "" if right else said["tail"],
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--old-driver")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("root is needed: each case has a mount namespace of its own")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(mode=0o755)
    for name, source in PRELOADS.items():
        (WORK / f"{name}.c").write_text(source + "\n")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", WORK / f"{name}.so", WORK / f"{name}.c"], check=True)
    wanted = [word for word in options.only.split(",") if word]
    rows = []
    for index, case in enumerate(cases(options.old_driver)):
        if wanted and not any(word in case.name for word in wanted):
            continue
        for user in ("root", "nobody"):
            if (case.root if user == "root" else case.nobody) is not None:
                rows.append(judge(case, user, run(case, user, index)))
                row = rows[-1]
                mark = "ok   " if row["right"] else "WRONG"
                print(
                    f"{mark} {case.name:<36} {user:<7}{row['verdict']:<9}{row['time']:6.1f} s  {row['stage']} "
                    f"{row['cause']}",
                    flush=True,
                )
                if not row["right"]:
                    print(f"      expected {row['expected']}\n      {row['tail'][-600:]!r}", flush=True)
    shutil.rmtree(WORK, ignore_errors=True)
    right = sum(row["right"] for row in rows)
    print(f"{right} of {len(rows)} named rightly")
    options.out.mkdir(parents=True, exist_ok=True)
    comparable.write(options.out / "faults.json", rows)
    return int(right != len(rows))


if __name__ == "__main__":
    raise SystemExit(main())
