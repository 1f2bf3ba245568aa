"""Say how well `gpu-discovery explain` names what was done to the recorded servers of tests/ollama/corpus.

    python ci/explain_corpus.py [--rows]

Prints, for each era and log level: the logs of a known cause, in how many the cause is still among the candidates (all
of them, or the explanation is wrong), in how many it is the first or among the first three, and how many candidates
are left on average. --rows prints one line per log and level: the rank of the cause and the first three candidates.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a clone

from tests.ollama.faults import cause
from tests.ollama.recorded import SIDECARS, candidates, explained, levels


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true")
    options = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[int | None, int]]] = {}
    for name, sidecar in SIDECARS.items():
        wanted = cause(sidecar)
        for level in levels(name) if wanted else ():
            left = list(dict.fromkeys(candidates(explained(name, level))))
            rank = next((place for place, entry in enumerate(left, 1) if entry in wanted), None)
            found.setdefault((sidecar["era"], level), []).append((rank, len(left)))
            if options.rows:
                print(f"{name:<44}{level:<7}{rank or 'excluded':>8}  {' '.join(left[:3])}")
    columns = ("logs", "cause left", "first", "first three", "candidates")
    print(f"{'era':<5}{'level':<7}" + "".join(f"{column:>13}" for column in columns))
    for (era, level), ranks in sorted(found.items()):
        cells = (
            len(ranks),
            sum(rank is not None for rank, _ in ranks),
            sum(rank == 1 for rank, _ in ranks),
            sum(rank is not None and rank <= 3 for rank, _ in ranks),
            round(sum(count for _, count in ranks) / len(ranks), 1),
        )
        print(f"{era:<5}{level:<7}" + "".join(f"{cell:>13}" for cell in cells))
    return int(any(rank is None for ranks in found.values() for rank, _ in ranks))


if __name__ == "__main__":
    raise SystemExit(main())
