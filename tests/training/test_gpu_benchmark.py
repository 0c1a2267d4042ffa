"""The benchmark of a GPU runs here too, with a tiny model and every case in this process."""

import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = (
    *("ours", "ours, reading every step", "ours, recomputing", "ours, ZeRO-1"),
    *("ours, without ZeRO", "ours, padded", "Trainer", "Trainer, recomputing"),
)


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS / "gpu")
    import step

    return step


def test_the_same_samples_have_the_same_loss_packed_and_padded(step: ModuleType) -> None:
    found = step.CASES["loss"](step.Scale("instruct", is_tiny=True))
    assert found["apart"] < 1e-5
    assert step.gates({"loss": found, "ours": {"error": ""}})[0]["passed"]


@pytest.mark.parametrize("case", CASES)
def test_every_case_counts_useful_tokens_and_operations(step: ModuleType, case: str) -> None:
    assert set(step.CASES) == {"loss", "matrix product", *CASES}
    found = json.loads(json.dumps(step.CASES[case](step.Scale("align", is_tiny=True))))
    assert found["tokens_per_second"] > found["samples_per_second"] > 0
    assert found["flops_per_second"] > 0
    assert found["mfu"] is None  # a CPU has no peak to compare with
