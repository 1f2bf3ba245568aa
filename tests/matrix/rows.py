"""The rows of the fault matrix: data/*.tsv, one file for each origin, one line for each expectation.

Columns (tab separated, the first line names them; a column that a file lacks is empty):
    faults        what is injected: FAULT[=VALUE][,FAULT...], "-" for nothing
    host          simulated host
    target        --gpu-until; "-": none
    as            any, root, nobody (uid 65534), dropped (nobody, on files of root's)
    with          what is injected beside the simulation, " | " between: `env NAME=VALUE`, `wrap WORDS` (before the
                  gate's command), `option WORDS` (of the gate), `rig NAME` (a path on a file system that blocks,
                  for {rig} in `faults`; rigs.py)
    verdict stage outcome    what the gate must say; stage "-": nothing blocks
    cause         the cause that is named first, "-": none; for `degraded` one of the findings
    rows says     instead of the cause: prerequisite rows (comma), regular expression over summary and explanation
    alternatives  further answers that are right too: VERDICT/STAGE/OUTCOME, comma between; a part may be "*"
    corrected     the answer by the mechanism, where who wrote the row erred: VERDICT/STAGE/OUTCOME/ROWS/SAYS
    why           the mechanism, the relation of a pair; after "Corrected:" why it was corrected, after "Gap:" what the
                  gate still owes
Origins: `author` who knows the catalogue, `blind` who had seen the mechanism only, `pair` and `blind-pair` two faults
at once, `reach` rows that reach what the others do not, `healthy` hosts, `held-out` written last and run once.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.privileges import MAY_MOUNT

DATA = Path(__file__).parent / "data"
ORIGINS = ("author", "blind", "pair", "blind-pair", "reach", "healthy", "held-out")
NOTHING = "-"
# Faults that hang: their rows get short deadlines. The others get the gate's own, which a loaded machine meets.
HANG_STARTS = ("hang.", "shim.", "ctor.", "score.", "ifunc.", "native.")
HANG_ENDS = (
    "_hang",
    ".flock",
    ".poll",
    ".sleep",
    ".dlopen",
    ".stopped",
    ".pause",
    ".spin",
    ".futex",
    ".hang",
    ".mute",
    ".garbage",
    ".signals",
    ".module_loading_eager",
)
# These take their time and answer: a deadline shorter than Ollama's own would take them for hangs.
PATIENT = ("driver.cuinit.too_slow", "driver.cuinit.802_after", "runner.slow", "load.slow")
NO_HANGS = (".slow", ".fork", ".segv", ".abort", ".exit0", ".exit127", ".none")
# Seconds; long enough for a loaded machine to reach the call, short enough to wait for.
SHORT = {"service": 8.0, "nvml": 3.0, "driver": 3.0, "enumeration": 10.0, "runtime": 3.0}
SHORT |= {"load": 3.0, "backend": 3.0, "bootstrap": 4.0, "serve": 2.0}


@dataclass(frozen=True)
class Row:
    """One expectation; see the module's text for the fields."""

    origin: str
    faults: str
    host: str
    target: str
    verdict: str
    stage: str = NOTHING
    outcome: str = NOTHING
    cause: str = ""
    rows: tuple[str, ...] = ()
    says: str = ""
    alternatives: tuple[tuple[str, str, str], ...] = ()
    corrected: str = ""
    why: str = ""
    as_user: str = "any"
    given: tuple[tuple[str, str], ...] = ()  # (env|wrap|option|rig, words)

    @property
    def injection(self) -> Injection:
        """What is run for this row; rows of several origins share one run."""
        return Injection(self.faults, self.host, self.target, self.as_user, self.given)

    @property
    def name(self) -> str:
        """A short name: what is injected, and where that is not the default, on which host and up to where."""
        return str(self.injection)


@dataclass(frozen=True)
class Injection:
    """One run of the gate."""

    faults: str
    host: str
    target: str
    as_user: str = "any"
    given: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        words = [f"{self.host}:{self.names or 'healthy'}@{self.target}"]
        words += [f"{kind} {text}" for kind, text in self.given]
        return " ".join(words) + ("" if self.as_user == "any" else f" ({self.as_user})")

    @property
    def names(self) -> str:
        """The faults, empty for none."""
        return "" if self.faults == NOTHING else self.faults

    @property
    def each(self) -> list[str]:
        """The names of the faults without their values."""
        return [word.partition("=")[0] for word in self.names.split(",")] if self.names else []

    @property
    def hangs(self) -> bool:
        """Whether something of it never comes back, so that the deadlines are shortened."""
        if any(name in PATIENT for name in self.each):
            return False
        slow = any(
            (name.startswith(HANG_STARTS) or name.endswith(HANG_ENDS)) and not name.endswith(NO_HANGS)
            for name in self.each
        )
        return slow or any(kind == "rig" for kind, _ in self.given)

    @property
    def runs_here(self) -> bool:
        """Whether this user can run it: only root, not a container's, is what `root` means, or can mount a rig."""
        return MAY_MOUNT or not (
            self.as_user in ("root", "dropped") or any(kind in ("rig", "wrap") for kind, _ in self.given)
        )


def read(*origins: str) -> list[Row]:
    """Return the rows of ORIGINS, of all when none is named. Raises ValueError for a line that cannot be read."""
    found = []
    for origin in origins or ORIGINS:
        path = DATA / f"{origin}.tsv"
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                lines = (line for line in file if line.strip() and not line.startswith("#"))
                table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
                found += [_row(origin, line) for line in table]
    return found


def _row(origin: str, line: dict[str, str]) -> Row:
    def text(name: str) -> str:
        return (line.get(name) or "").strip()

    if not text("faults") or not text("verdict") or None in line:
        raise ValueError(f"{origin}.tsv: cannot read {line!r}")
    given = tuple(_given(word) for word in text("with").split(" | ") if word)
    return Row(
        origin=origin,
        faults=text("faults"),
        host=text("host") or "h100",
        target=text("target") or "runtime",
        as_user=text("as") or "any",
        given=given,
        verdict=text("verdict"),
        stage=text("stage") or NOTHING,
        outcome=text("outcome") or NOTHING,
        cause=text("cause"),
        rows=tuple(word.strip() for word in text("rows").split(",") if word.strip() not in ("", NOTHING)),
        says="" if text("says") == NOTHING else text("says"),
        alternatives=tuple(answer(word) for word in text("alternatives").split(",") if word.strip()),
        corrected=text("corrected"),
        why=text("why"),
    )


def _given(word: str) -> tuple[str, str]:
    kind, _, text = word.strip().partition(" ")
    if kind not in ("env", "wrap", "option", "rig"):
        raise ValueError(f"`with` begins with env, wrap, option or rig, not {word!r}")
    return kind, text


def answer(text: str) -> tuple[str, str, str]:
    """Return (verdict, stage, outcome) of TEXT, VERDICT/STAGE/OUTCOME; what is left out is "*"."""
    parts = [part.strip() or "*" for part in text.split("/")]
    verdict, stage, outcome = (*parts, "*", "*", "*")[:3]
    return verdict, stage, outcome


def correction(row: Row) -> Row:
    """Return ROW as it was corrected: the answer by the mechanism in the place of what was written down first."""
    if not row.corrected:
        return row
    verdict, stage, outcome, rows, says = (*row.corrected.split("/", 4), "", "", "", "", "")[:5]
    return dataclasses.replace(
        row,
        verdict=verdict,
        stage=stage or NOTHING,
        outcome=outcome or NOTHING,
        rows=tuple(word for word in rows.split("+") if word not in ("", NOTHING)),
        says=says,
        alternatives=(),
    )


def injections(rows: Iterable[Row]) -> list[Injection]:
    """Return what must be run for ROWS, each once, in their order."""
    return list(dict.fromkeys(row.injection for row in rows))
