"""Unpack libc6 packages, so that the crafted cases run under their loaders as well.

    python ci/loader/loaders.py DIRECTORY libc6_2.31*.deb libc6_2.41*.deb ...
    LOADER_ROOTS=$(...) python -m pytest tests/loader/test_agreement.py

Prints the value of LOADER_ROOTS. The probe is linked against each package's own libc and started by its own loader,
without a container: glibc from 2.31 on runs beside the host's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Unpack each package below the directory."""
    if len(sys.argv) < 3:
        print(__doc__)
        return 4
    roots = []
    for package in sys.argv[2:]:
        root = Path(sys.argv[1]).resolve() / Path(package).name.split("_")[1]
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", package, str(root)], check=True, timeout=60)
        roots.append(str(root))
    print(":".join(roots))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
