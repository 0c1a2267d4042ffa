"""The benchmark of a GPU runs here too, with a tiny model and every case in this process."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from llavamed.model.cost.memory import Memory
from llavamed.model.cost.speeds import Setting, with_measurements
from tests.support.training_setup import without_inductor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = {
    "trainers": (
        *("ours", "ours, reading every step", "ours, recomputing", "ours, ZeRO-1"),
        *("ours, without ZeRO", "ours, padded", "Trainer", "Trainer, recomputing"),
    ),
    "kernels": ("ours", "ours, recomputing half", "ours, compiled"),
}
RUNS = [(part, case) for part, cases in CASES.items() for case in cases]
FIRST = {"loss", "matrix product"}


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS / "gpu")
    import step

    return step


def test_the_same_samples_have_the_same_loss_packed_and_padded(step: ModuleType) -> None:
    found = step.CASES["trainers"]["loss"](step.Scale("instruct", is_tiny=True))
    assert found["apart"] < 1e-5
    assert step.gates({"loss": found, "ours": {"error": ""}})[0]["passed"]


@pytest.mark.parametrize(("part", "case"), RUNS)
def test_every_case_counts_useful_tokens_and_operations(
    step: ModuleType, part: str, case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_inductor(monkeypatch)
    left_out = set(step.FOR_GPUS) if part == "kernels" else set()
    assert {*step.CASES[part]} - left_out == FIRST | {*CASES[part]}
    found = json.loads(json.dumps(step.CASES[part][case](step.Scale("align", is_tiny=True))))
    assert found["tokens_per_second"] > found["samples_per_second"] > 0
    assert found["flops_per_second"] > 0
    assert found["mfu"] is None  # a CPU has no peak to compare with
    assert ("measured" in found) is case.startswith("ours")
    if "measured" in found:
        file = tmp_path / "gpu-step.json"
        file.write_text(json.dumps({"measured": [found["measured"] | {"accelerator": "H100"}]}))
        (read,) = with_measurements([str(file)]).measured
        assert read.memory is not None
        assert read.memory.peak_bytes == found["peak_bytes"]
        setting = Setting("H100", False, read.gradient_checkpointing, read.kernels)
        _, by = with_measurements([str(file)]).correct(Memory(read.memory.planned), setting)
        assert by is not None
        assert by.is_same


def test_a_kernel_that_computes_another_loss_misses_its_gate(step: ModuleType) -> None:
    plain = {"first_loss": 2.0, "mfu": None, "tokens_per_second": 1.0}
    found = {"loss": {"apart": 0.0}, "ours": plain}
    for loss, passes in ((2.001, True), (2.1, False)):
        gates = step.gates(found | {"ours, varlen": {"first_loss": loss}})
        (gate,) = [each for each in gates if "varlen" in str(each)]
        assert gate["passed"] is passes
