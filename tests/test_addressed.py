"""Next commands are made out to the unit or the process that is probed as."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_gpudiscovery import addressed
from pytest_gpudiscovery.diagnosis import catalogue
from pytest_gpudiscovery.stages.spec import found

UNIT = {"unit": "my-llm.service"}
PROCESS = {"unit": "", "process": {"pid": 812}}


@pytest.mark.parametrize(
    ("cause", "service", "said"),
    [
        ("service.env.ollama_llm_library", {}, "systemctl show ollama -p Environment"),
        ("service.env.ollama_llm_library", {"unit": "ollama.service"}, "systemctl show ollama -p Environment"),
        ("service.env.ollama_llm_library", UNIT, "systemctl show my-llm.service -p Environment"),
        ("service.env.ollama_llm_library", PROCESS, "xargs -0n1 < /proc/812/environ"),
        ("bootstrap.hang.stopped", UNIT, "$(systemctl show -P MainPID my-llm.service)/status"),
        ("bootstrap.hang.stopped", PROCESS, "/proc/812/status"),
    ],
)
def test_a_command_is_for_what_is_probed_as(cause: str, service: dict[str, Any], said: str) -> None:
    (check,) = addressed.to_service([found(cause)], service)
    assert check.finding is not None
    assert said in check.finding.next


def test_no_command_of_the_catalogue_asks_another_unit() -> None:
    for cause in catalogue.causes():
        (check,) = addressed.to_service([found(cause)], UNIT)
        text = check.finding.next if check.finding else ""
        assert not ("systemctl" in text and " ollama " in f"{text.replace('ollama serve', '')} "), (cause, text)


def test_a_gate_again_looks_at_the_same_ollama_as_the_same_service() -> None:
    named = ("--gpu-ollama=/srv/my ollama", "--gpu-as=pid:812")
    for cause in catalogue.causes():
        plain, (check,) = found(cause), addressed.to_caller([found(cause)], named)
        assert plain.finding is not None
        assert check.finding is not None
        asked = "gpu-discovery gate '--gpu-ollama=/srv/my ollama' --gpu-as=pid:812"
        assert check.finding.next == plain.finding.next.replace("gpu-discovery gate", asked)
    assert addressed.to_caller([plain], ()) == (plain,)
