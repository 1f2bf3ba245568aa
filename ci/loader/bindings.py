"""Compare every symbol that the real loader binds with the file that was predicted for it.

    LD_LIBRARY_PATH=... python ci/loader/bindings.py [--global LIBRARY]... LIBRARY

The library is really dlopen()ed in a child under LD_DEBUG=bindings: constructors run. Weak symbols that both leave
unbound are counted apart. Exit status 1 when a symbol goes elsewhere or one side binds what the other does not.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytest_gpudiscovery.loader import ProcessModel, predict
from tests.loader.oracle import Loader, build_probe

BINDING = re.compile(
    r"^ +\d+:\tbinding file (\S+) \[0\] to (\S+) \[0\]: (?:normal|protected) symbol `([^']+)'(?: \[(\S+)\])?",
    re.MULTILINE,
)


def bound(probe: str, library: str, opened: list[str], env: dict[str, str]) -> dict[tuple[str, str, str], str]:
    """Return (requester, symbol, version) -> file as LD_DEBUG tells it."""
    words = [probe, *(word for path in opened for word in ("-g", path)), library]
    with tempfile.TemporaryDirectory() as directory:
        log = f"{directory}/log"
        asked = {**env, "LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": log}
        subprocess.run(words, env=asked, timeout=60, check=False, capture_output=True)
        text = "".join(path.read_text(errors="replace") for path in Path(directory).iterdir())
    found: dict[tuple[str, str, str], str] = {}
    for requester, provider, symbol, version in BINDING.findall(text):
        found.setdefault((requester, symbol, version), provider)
    return found


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--global", dest="opened", action="append", default=[], metavar="LIBRARY")
    parser.add_argument("library")
    asked = parser.parse_args()
    env = {"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    with tempfile.TemporaryDirectory() as directory:
        probe = build_probe(Path(directory), Loader("host", ""))
        model = ProcessModel(exe=probe, opened=tuple((path, True) for path in asked.opened))
        closure = predict(asked.library, env=env, process=model, bindings=True)
        real = bound(probe, asked.library, asked.opened, env)
    print(f"predicted: {closure.outcome} {closure.message}; {len(closure.bindings)} undefined symbols")
    same = unbound = 0
    wrong = []
    for requester, symbol, version, path in closure.bindings:
        happened = real.get((requester, symbol, version), "")
        if happened == path:
            same, unbound = same + bool(path), unbound + (not path)
        else:
            wrong.append(
                f"{requester}: {symbol} {version}: predicted {path or 'unbound'}, real {happened or 'unbound'}"
            )
    print(*wrong, sep="\n")
    print(f"{same} bound to the predicted file, {unbound} weak and unbound in both, {len(wrong)} different")
    return int(bool(wrong) or not closure.loads)


if __name__ == "__main__":
    raise SystemExit(main())
