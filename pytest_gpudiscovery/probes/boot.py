"""The first code of a supervised child: import what was shipped, change what Setup asks for, run one probe.

The parent ships this text and every probe's in a memfd, because the child may run as somebody who cannot read our
package and under another interpreter. A one-line stub behind `python -c` reads the memfd, executes this text and
calls `main(payload)`. Nothing here may need more than Python 3.6's grammar: an interpreter that is too old must be
able to say so. json, re, enum, signal and typing are not imported: together they double the start of a child.
"""

import faulthandler
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

OLDEST = (3, 10)
REFUSED = 125  # exit code of a child that will not run the probe; the reason is in the journal


class Shipped:
    """Serves modules from {name: (file, text, is a package, marshalled code or b"")}; COMPILED: the code fits us."""

    def __init__(self, sources: "dict[str, tuple[str, str, bool, bytes]]", compiled: bool) -> None:
        self._sources, self._compiled = sources, compiled

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "ModuleSpec | None":  # noqa: ARG002
        """Return the spec of a shipped module, None for any other."""
        if name not in self._sources:
            return None
        file, _, package, _ = self._sources[name]
        # importlib.machinery.ModuleSpec, without the import
        return type(sys.__spec__)(name, self, origin=file, is_package=package)  # type: ignore[arg-type]

    def create_module(self, spec: "ModuleSpec") -> None:
        """Let the import system create the module."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the shipped text."""
        file, text, _, code = self._sources[module.__name__]
        module.__file__ = file
        usable = self._compiled and code
        unit = marshal.loads(code) if usable else compile(text, file, "exec", dont_inherit=True)  # noqa: S302
        exec(unit, module.__dict__)  # noqa: S102 - this is an importer

    def get_source(self, name: str) -> str:
        """Return the text, for the source lines of tracebacks."""
        return self._sources[name][1]


def flush() -> None:
    """Push out what Python buffered; a probe may have closed or filled its own output."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass


def execute(payload: "dict[str, Any]", index: int) -> None:
    """Replace this process by interpreter INDEX of the payload. Raises OSError."""
    isolated = ["-I"] if payload["site"] else ["-I", "-S"]
    code = ["-X", "faulthandler", "-c", payload["stub"], sys.argv[1], sys.argv[2], str(index)]
    env = dict(os.environ) if payload["env"] is None else payload["env"]
    os.execve(payload["interpreters"][index], [payload["interpreters"][index]] + isolated + code, env)  # noqa: S606, RUF005


def check_age(payload: "dict[str, Any]") -> None:
    """Go on in the next interpreter when this one is too old for the shipped modules, or refuse."""
    if sys.version_info >= OLDEST:
        return
    for index in range(int(sys.argv[3]) + 1, len(payload["interpreters"])):
        try:
            execute(payload, index)
        except OSError:
            pass  # the next one, or the refusal below
    text = "%s is Python %d.%d, 3.10 is needed" % (sys.executable, sys.version_info[0], sys.version_info[1])  # noqa: UP031
    os.write(payload["journal_fd"], ('{"ev": "refused", "value": "%s"}\n' % text).encode())  # noqa: UP031
    os._exit(REFUSED)


def main(payload: "dict[str, Any]") -> None:
    """Run the probe that PAYLOAD names. Ends the process: 0 with an answer, 1 with a traceback, REFUSED, or as told."""
    for name in set(os.environ) - set(payload["env_names"]):
        del os.environ[name]  # Python's own locale coercion sets LC_CTYPE
    check_age(payload)
    compiled = payload["magic"] == sys.modules["_frozen_importlib_external"].MAGIC_NUMBER
    sources = marshal.loads(payload["sources"])  # noqa: S302
    sys.meta_path.insert(0, Shipped(sources, compiled))
    from pytest_gpudiscovery.probes import setup  # noqa: PLC0415 - served by the line above
    from pytest_gpudiscovery.probes.journal import Journal  # noqa: PLC0415

    journal = Journal(payload["journal_fd"])
    reason = setup.apply(payload, journal)
    if reason is not None:
        journal.refuse(reason)
        os._exit(REFUSED)
    if payload["sys_path"] and list(sys.version_info[:2]) == payload["python"]:
        sys.path.extend(path for path in payload["sys_path"] if path not in sys.path)
    allowed = setup.descriptors()
    journal.begin()
    try:
        faulthandler.dump_traceback_later(payload["traceback_after_s"])
    except RuntimeError:
        pass  # no thread can be started here: that is for the probe to find, and a hang is told without a traceback too
    try:
        module = "pytest_gpudiscovery.probes." + payload["module"]
        __import__(module)
        journal.answer(sys.modules[module].probe(payload["request"], journal))
    except Exception:
        setup.say_lowered(allowed, journal)
        import traceback  # noqa: PLC0415

        text = traceback.format_exc()
        journal.observe("traceback", text)
        try:
            sys.stderr.write(text)
        except (OSError, ValueError, AttributeError):
            pass
        setup.end_children(journal)
        flush()
        os._exit(1)
    setup.say_lowered(allowed, journal)
    setup.end_children(journal)
    flush()
    os._exit(0)  # at once: destructors of a driver library must not undo an answer that was given
