"""The benchmark of a GPU runs here too, with a tiny model and every case in this process."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from llavamed.model.cost.memory import Memory
from llavamed.model.cost.speeds import Setting, with_measurements
from tests.support.training_setup import without_inductor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = (
    *("ours", "ours, compiled", "ours, recomputing", "ours, recomputing half"),
    *("ours, reading every step", "ours, without ZeRO", "ours, ZeRO-1", "ours, ZeRO-2"),
    *("ours, padded", "Trainer", "Trainer, recomputing", "SFTTrainer"),
)
FIRST = {"loss", "matrix product", "repeated"}


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS / "gpu")
    import step

    return step


def test_the_same_samples_have_the_same_loss_packed_padded_and_in_transformers(
    step: ModuleType,
) -> None:
    found = step.CASES["loss"](step.Scale("instruct", is_tiny=True))
    assert found["apart"] < 1e-5
    assert step.gates({"loss": found, "ours": {"error": ""}})[0]["passed"]


def test_the_same_pack_has_the_same_bits_twice(step: ModuleType) -> None:
    found = step.CASES["repeated"](step.Scale("instruct", is_tiny=True))
    assert found == {"same_loss": True, "apart": 0}


@pytest.mark.parametrize("case", CASES)
def test_every_case_counts_useful_tokens_and_operations(
    step: ModuleType, case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if case == "SFTTrainer":
        pytest.importorskip("trl")
    without_inductor(monkeypatch)
    assert {*step.CASES} - {*step.FOR_GPUS} == FIRST | {*CASES}
    found = json.loads(json.dumps(step.CASES[case](step.Scale("instruct", is_tiny=True))))
    assert found["tokens_per_second"] > found["samples_per_second"] > 0
    assert found["flops_per_second"] > 0
    assert found["mfu"] is None  # a CPU has no peak to compare with
    assert ("measured" in found) is case.startswith("ours")
    if "measured" in found:
        file = tmp_path / "gpu-step.json"
        file.write_text(json.dumps({"measured": [found["measured"] | {"accelerator": "H100"}]}))
        read, *_ = with_measurements([str(file)]).measured
        assert read.memory is not None
        assert read.memory.peak_bytes == found["peak_bytes"]
        setting = Setting("H100", True, read.gradient_checkpointing, read.kernels)
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


def test_a_wait_of_the_host_misses_its_gate_in_whatever_case_it_is_counted(
    step: ModuleType,
) -> None:
    profiled = [name for name in step.KERNELS if "compiled and varlen" in name]
    for waits, passes in (({}, True), ({"utils.py:293": 295}, False), (None, None)):
        found = step.gates({name: {"host_waits": waits} for name in profiled})
        assert [gate["passed"] for gate in found if "waits" in gate["measure"]] == (
            [] if passes is None else [passes]
        )


def test_a_profile_lists_the_operations_of_a_step(step: ModuleType) -> None:
    from timing import NUM_OPERATIONS

    found = step.ours(step.Scale("align", is_tiny=True), profiles=True)
    whole, *most = found["operations"].values()
    assert len(most) == NUM_OPERATIONS
    assert whole > sum(most) > whole / 2
    assert found["host_waits"] is None  # there is no GPU to wait for
