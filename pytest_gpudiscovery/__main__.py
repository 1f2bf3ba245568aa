"""`python -m pytest_gpudiscovery`: the same as the command `gpu-discovery`."""

from __future__ import annotations

import sys

from pytest_gpudiscovery.cli import main

sys.exit(main())
