"""Unpack libc6 packages, and compare prediction and loader in every crafted case under the loader of each.

    python ci/loader/loaders.py DIRECTORY libc6_2.31*.deb libc6_2.41*.deb ...

The probe is linked against each package's own libc and started by its own loader, without a container: glibc from 2.31
on runs beside the host's. Cases that bring their own executable run under the host's loader only. Prints a table, the
cases whose outcome differs between loaders, and every disagreement; exit status 1 when there is one.

    LOADER_ROOTS=DIRECTORY/VERSION:... python -m pytest tests/loader/test_agreement.py

runs the same as tests; `--unpack` unpacks only and prints that value.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytest_gpudiscovery.loader.hostld import host_loader
from tests.loader.oracle import Answer, Builder, Loader, build_probe, predicted, real
from tests.loader.test_agreement import ALL, loaders


def unpack(directory: Path, packages: list[str]) -> list[str]:
    """Unpack each package below DIRECTORY; return the roots."""
    roots = []
    for package in packages:
        root = directory / Path(package).name.split("_")[1]
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", package, str(root)], check=True, timeout=60)
        roots.append(str(root))
    return roots


def compare(loader: Loader, place: Path) -> tuple[dict[str, str], list[tuple[str, Answer, Answer]]]:
    """Return the real outcome by case under LOADER, and (case, predicted, real) where they differ."""
    outcomes: dict[str, str] = {}
    different = []
    probe = build_probe(place, loader)
    for build in ALL:
        directory = place / f"{loader.name}-{build.__name__}"
        directory.mkdir()
        case = build(Builder(directory, probe))
        if (case.mounts or case.uid is not None) and os.geteuid() != 0:
            continue
        if case.exe is not None and loader.directory is not None:
            continue
        happened, expected = real(case, probe), predicted(case, probe)
        outcomes[build.__name__] = happened.outcome
        if happened != expected:
            different.append((build.__name__, expected, happened))
    return outcomes, different


def main() -> int:
    """Run every case under every loader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("directory", type=Path)
    parser.add_argument("packages", nargs="*")
    asked = parser.parse_args()
    os.environ["LOADER_ROOTS"] = ":".join(unpack(asked.directory.resolve(), asked.packages))
    if asked.unpack:
        print(os.environ["LOADER_ROOTS"])
        return 0
    place = Path(tempfile.mkdtemp(prefix="loader-cases-"))
    place.chmod(0o755)
    outcomes: dict[str, dict[str, str]] = {}
    differences = []
    try:
        for loader in loaders():
            outcomes[loader.name], different = compare(loader, place)
            facts = host_loader(loader.interpreter)
            version, count = ".".join(map(str, facts.version)), len(outcomes[loader.name])
            agreed = f"{count - len(different)} of {count} cases agree"
            print(f"{loader.name:18} glibc {version}, facts from {facts.source:18} {agreed}", flush=True)
            differences += [(loader.name, *item) for item in different]
    finally:
        shutil.rmtree(place)
    print("\ncases that end differently under some loader:")
    for build in ALL:
        ends = {name: found[build.__name__] for name, found in outcomes.items() if build.__name__ in found}
        if len(set(ends.values())) > 1:
            print(f"{build.__name__:44} {', '.join(f'{name} {end}' for name, end in ends.items())}")
    for name, case, expected, happened in differences:
        print(f"\nDIFFERENT under {name}: {case}\n  predicted: {expected}\n  real     : {happened}")
    return int(bool(differences))


if __name__ == "__main__":
    raise SystemExit(main())
