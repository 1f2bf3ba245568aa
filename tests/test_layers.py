"""Views that contradict each other: every pair that a stage can meet has a culprit, and the finding says which."""

from __future__ import annotations

import pytest

from pytest_gpudiscovery.diagnosis import catalogue, layers

CONTRADICTIONS = [cause for cause in catalogue.causes().values() if cause.views]


def test_the_table_is_over_the_layers_and_each_pair_has_its_reason() -> None:
    assert set(layers.NAMES) == set(layers.layers())
    for pair in layers.table().values():
        assert {pair.sees, pair.misses} <= set(layers.layers())
        assert pair.why.endswith(".")
        assert catalogue.link(pair.source) or pair.source.startswith("docs/")


def test_every_contradiction_of_the_catalogue_is_in_the_table() -> None:
    assert len(CONTRADICTIONS) >= 10
    for cause in CONTRADICTIONS:
        pair = layers.between(*cause.views)
        assert pair is not None, cause.id
        assert catalogue.finding(cause.id).detail.endswith(pair.text)


@pytest.mark.parametrize(
    ("cause", "sees", "blame"),
    [
        ("enumeration.gpu_missing", "nvml", "what CUDA needs beyond NVML"),
        ("enumeration.gpu_missing", "sysfs", "the kernel driver, or the node"),
        ("bootstrap.gpus.none", "ggml", "Ollama's own filters, or its child's environment"),
        ("bootstrap.gpus.none", "cuda", "what lies between the driver and Ollama"),
    ],
)
def test_who_saw_it_decides_who_is_to_blame(cause: str, sees: str, blame: str) -> None:
    assert f"To blame: {blame}, because" in catalogue.finding(cause, {"sees": sees}).detail
