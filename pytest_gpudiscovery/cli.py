"""The command `gpu-discovery`, for root and CI: first forget everything that the current directory could bring.

No ini file, conftest, plugin or module of the current directory, no PYTEST_* variable, no plugin that is merely
installed. What cannot be undone is what Python does before this code: with `python -m pytest_gpudiscovery` it looks
for us in the current directory, so root uses the command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

PYTEST_VARIABLES = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_THEME", "PYTEST_THEME_MODE", "PYTEST_DEBUG")
LOADER_COMMANDS = ("closure", "fatbin")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ARGV (default: the process's); return the exit code of the contract."""
    there = forget_current_directory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in LOADER_COMMANDS:
        from pytest_gpudiscovery import loader_cli  # noqa: PLC0415 (without pytest: twice as fast as with it)

        return loader_cli.run(arguments)
    if arguments and arguments[0] == "explain":
        from pytest_gpudiscovery import explain_cli  # noqa: PLC0415 (likewise)

        return explain_cli.run(arguments)
    if arguments and arguments[0] == "bundle":
        from pytest_gpudiscovery import bundle_cli  # noqa: PLC0415 (likewise)

        return bundle_cli.run(arguments)
    # Only now: pytest, which the commands import, must not be found in the current directory.
    from pytest_gpudiscovery import commands  # noqa: PLC0415

    return commands.run(arguments, directory=there)


def forget_current_directory() -> bool:
    """Take the current directory off sys.path, and everything out of the environment that steers pytest.

    Returns whether there is one: from a directory that was removed (a deleted release, an unmounted home) the process
    goes on in /, because pytest needs one.
    """
    for name in PYTEST_VARIABLES:
        os.environ.pop(name, None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        here, there = os.path.realpath(os.getcwd()), True
    except OSError:
        os.chdir("/")
        here, there = "/", False
    own = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))
    python = tuple(os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix))
    kept = []
    for entry in sys.path:
        place = os.path.realpath(entry or here)
        inside = place == here or place.startswith(here.rstrip("/") + "/")
        # A virtual environment or a checkout below the current directory is where we come from ourselves; below /,
        # where services start, lies everything.
        if not inside or (os.path.isabs(entry) and (place == own or place.startswith(python))):
            kept.append(entry)
    sys.path[:] = kept
    return there
