"""Looks at the device nodes and the driver's libraries as the identity that Ollama runs with; opens the nodes for real.

An open() of a GPU's node initialises the GPU when nobody holds it (kernel-open/nvidia/nv.c, nv_open_device): it may
take seconds, fail with EIO, or never return. Nothing is created or changed by it, not even as root: it is the driver's
user space that makes missing nodes, and none of that runs here.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.probes import facts, libraries, procdriver
from pytest_gpudiscovery.probes.host import HostView, open_view
from pytest_gpudiscovery.probes.journal import Journal
from pytest_gpudiscovery.probes.mounts import mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONTROL, UVM = "/dev/nvidiactl", "/dev/nvidia-uvm"
LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1")
MODPROBE = ("/usr/bin/nvidia-modprobe", "/sbin/nvidia-modprobe", "/usr/local/bin/nvidia-modprobe")


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Return {"identity", "libraries", "modprobe", "nodes"}.

    REQUEST: {"view", "env": {"LD_LIBRARY_PATH"}, "minors": [int], "uvm_major": int | None}: the GPUs that the module
    has bound and the major that it was given.
    """
    view = open_view(request["view"])
    answer: dict[str, Any] = {"identity": facts.identity()}
    with journal.step("find the driver's libraries"):
        answer["libraries"] = [library(view, name, request["env"]) for name in LIBRARIES]
    with journal.step("find nvidia-modprobe"):
        answer["modprobe"] = modprobe(view)
    for key, value in answer.items():
        journal.observe(key, value)
    wanted = [(CONTROL, procdriver.MAJOR, procdriver.CONTROL_MINOR), (UVM, request["uvm_major"], None)]
    minors = request["minors"] or listed_minors(view)
    wanted += [(f"/dev/nvidia{minor}", procdriver.MAJOR, minor) for minor in minors]
    nodes: list[dict[str, Any]] = []
    answer["nodes"] = nodes
    for path, major, minor in wanted:
        nodes.append(node(view, journal, path, major, minor))
        journal.observe("nodes", nodes)
    return answer


def library(view: HostView, name: str, env: dict[str, str]) -> dict[str, Any]:
    """Return what ld.so finds for NAME, else {"name", "path": None, "elsewhere", "passed_over", "unlinked"}."""
    found = libraries.find(view, name, env)
    if found is not None:
        return found
    elsewhere, passed_over = libraries.find_elsewhere(view, name), libraries.passed_over(view, name, env)
    unlinked = libraries.unlinked(view, name, env)
    return {"name": name, "path": None, "elsewhere": elsewhere, "passed_over": passed_over, "unlinked": unlinked}


def modprobe(view: HostView) -> dict[str, Any] | None:
    """Return {"path", "setuid", "executable", "nosuid"} of nvidia-modprobe, None when it is not installed."""
    for path in MODPROBE:
        try:
            status = view.stat(path)
        except OSError:
            continue
        mount = mount_options(view, view.realpath(path))
        return {
            "path": path,
            "setuid": bool(status["mode"] & 0o4000) and status["uid"] == 0,
            "executable": view.access(path, os.X_OK),
            "nosuid": mount is not None and "nosuid" in mount["options"],
        }
    return None


def listed_minors(view: HostView) -> list[int]:
    """Return the minors of the /dev/nvidiaN that exist: all there is to ask when /proc/driver/nvidia is hidden."""
    found = (facts.number(name[6:]) for name in facts.names(view, "/dev") if name.startswith("nvidia"))
    return sorted(minor for minor in found if minor is not None)


def node(view: HostView, journal: Journal, path: str, major: int | None, minor: int | None) -> dict[str, Any]:
    """Return {"path", "expected", "stat", "errno", "nodev", "open"} of one node.

    `expected` is [major, minor], None for what is not known; `errno` is that of stat(); `open` is "ok", the errno's
    name, or None when there is no character device to open.
    """
    answer: dict[str, Any] = {"path": path, "expected": [major, minor], "stat": None, "errno": None, "open": None}
    try:
        status = view.stat(path)
    except OSError as error:
        return {**answer, "errno": facts.errno_name(error)}
    answer["stat"] = {key: status[key] for key in ("type", "mode", "uid", "gid", "major", "minor")}
    mount = mount_options(view, path)
    answer["nodev"] = mount is not None and "nodev" in mount["options"]
    if status["type"] != "char":
        return answer  # opening a FIFO, or what else lies there, says nothing about the driver
    with journal.step(f"open {path}") as step:
        try:
            view.open_device(path)
            answer["open"] = "ok"
        except OSError as error:
            answer["open"] = facts.errno_name(error)
        step.result = answer["open"]
    return answer
