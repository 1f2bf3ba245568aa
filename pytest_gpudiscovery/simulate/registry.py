"""Every fault that can be injected, by name; the tables are in faults_*.py.

`--gpu-simulate HOST:FAULT,FAULT=VALUE`. A fault changes the simulated host before it is written (changes.py): the view
that probes read, sim.conf, the library files, or the environment of the probes. Two things cannot be simulated so: a
packet filter that drops loopback traffic (a real socket is used), and limits of the process (RLIMIT_AS, RLIMIT_NOFILE,
a user namespace): the libraries honour those when they are really set.
"""

from __future__ import annotations

from typing import Any

from pytest_gpudiscovery.simulate import (
    faults_answers,
    faults_backend,
    faults_conditions,
    faults_context,
    faults_discovery,
    faults_environment,
    faults_gpu,
    faults_hang,
    faults_held_out,
    faults_held_out_ollama,
    faults_install,
    faults_kernel,
    faults_library,
    faults_loading,
    faults_ollama,
    faults_review,
    variants_gpu,
    variants_host,
    variants_install,
)
from pytest_gpudiscovery.simulate.fault import Fault

TABLES = (
    faults_answers,
    faults_hang,
    faults_library,
    faults_gpu,
    faults_kernel,
    faults_environment,
    faults_ollama,
    faults_loading,
    faults_backend,
    faults_discovery,
    variants_gpu,
    variants_host,
    variants_install,
    faults_install,
    faults_context,
    faults_conditions,
    faults_held_out,
    faults_held_out_ollama,
    faults_review,
)


def _registry() -> dict[str, Fault]:
    found: dict[str, Fault] = {}
    for fault in [fault for table in TABLES for fault in table.faults()]:
        if fault.name in found:
            raise ValueError(f"fault {fault.name} is defined twice")
        found[fault.name] = fault
    return found


FAULTS: dict[str, Fault] = _registry()


def listing() -> list[dict[str, Any]]:
    """Return name, text, mechanism, value and needs of every fault, for `gpu-discovery faults`."""
    return [
        {
            "name": fault.name,
            "text": fault.text,
            "mechanism": fault.mechanism,
            "value": fault.value,
            "needs": ", ".join(fault.needs),
        }
        for fault in FAULTS.values()
    ]
