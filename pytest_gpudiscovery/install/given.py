"""What `--gpu-ollama` names: a binary, an install prefix, or a release archive that is unpacked for this run.

An archive goes into a directory of the run that only the caller and the probes' group can enter, and is gone with the
run. Everything that touches the path happens in a supervised child: it may lie on a dead file server, and an archive is
hostile until it was checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from pytest_gpudiscovery.options import UsageProblem
from pytest_gpudiscovery.supervise.child import run
from pytest_gpudiscovery.supervise.types import ChildResult, Ending, Identity, Probe

LOOK_S = 10.0  # for the first bytes of a file
UNPACK_S = 300.0  # for 4 GB on a disk that writes 20 MB/s; a fast one needs 10 s
EXPECTED = "expected an ollama binary, an install prefix or a release archive (.tgz, .tar.gz, .tar.zst)"
PLACES = ("bin/ollama", "ollama", "usr/bin/ollama")  # below a prefix

Supervise = Callable[[Probe], ChildResult]


@dataclass(frozen=True)
class Given:
    """A path that stages can use, and what has to be said about it."""

    path: str
    note: str = ""


def prepare(
    said: str,
    path: str,
    run_dir: str,
    *,
    name: str,
    identity: Identity | None,
    scale: float,
    supervise: Supervise = run,
) -> Given:
    """Return what stages are to look at for PATH; SAID is how the user wrote it ("--gpu-ollama=X").

    An archive is unpacked below RUN_DIR/NAME, readable for IDENTITY. Raises UsageProblem with one line.
    """
    into = os.path.join(run_dir, name)
    os.mkdir(into, 0o700)
    archive = path.endswith((".tgz", ".gz", ".zst", ".tar"))
    deadline = (UNPACK_S if archive else LOOK_S) * scale
    env = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    result = supervise(Probe("unpack", {"path": path, "into": into}, env, deadline, site=archive))
    answer = result.answer if isinstance(result.answer, dict) else None
    if answer is None:
        raise UsageProblem(f"{said}: {_why_not(result, deadline)}")
    if answer.get("refused"):
        expected = "" if answer["kind"] == "archive" else f"{EXPECTED}, got "
        raise UsageProblem(f"{said}: {expected}{answer['refused']}")
    if answer["kind"] != "archive":
        os.rmdir(into)
        return Given(path)
    if not any(os.path.isfile(os.path.join(into, place)) for place in PLACES):
        first = ", ".join(sorted(os.listdir(into))[:5]) or "nothing"
        raise UsageProblem(f"{said}: no bin/ollama in the archive, only {first}: a part that goes over a release?")
    if identity is not None and identity.uid != os.geteuid():
        # The run's directory holds the verdict so far: its group may pass through, and read what it knows by name.
        for directory in (run_dir, into):
            os.chown(directory, -1, identity.gid)
            os.chmod(directory, 0o710 if directory == run_dir else 0o750)
    size = answer["bytes"] / (1 << 20)
    return Given(into, f"{os.path.basename(path)} unpacked for this run: {answer['files']} files, {size:.0f} MB")


def _why_not(result: ChildResult, deadline: float) -> str:
    if result.ending in (Ending.TIMED_OUT, Ending.UNKILLABLE):
        step = result.open_step
        where = result.evidence.get("blocked_in", "unknown")
        return f"{step.name if step else 'the look at it'} did not end within {deadline:g} s (in {where})"
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    return (
        f"the look at it ended without an answer ({result.ending.value}): {(lines or list(result.notes) or ['?'])[-1]}"
    )
