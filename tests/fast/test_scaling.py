"""The model of many GPUs: its limits are exact, and more of what costs never costs less."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import scaling

        return scaling


def draw_tokens(seed: int, num_gpus: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 16_384, size=(20, num_gpus)) + 1


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=30)
@given(seed=seeds)
def test_one_gpu_waits_for_nobody(scaling: ModuleType, seed: int) -> None:
    found = scaling.simulate(draw_tokens(seed, 1), scaling.Cluster(), seed)
    assert found["efficiency"] == pytest.approx(1, abs=1e-12)
    assert found["used"] == pytest.approx(found["goodput"])


@settings(max_examples=30)
@given(seed=seeds, num_gpus=st.integers(1, 1024))
def test_equal_gpus_and_packs_without_gradients_wait_for_nothing(
    scaling: ModuleType, seed: int, num_gpus: int
) -> None:
    even = replace(scaling.Cluster(), speed_spread=0, step_spread=0, gradient_bytes=0, latency=0)
    found = scaling.simulate(np.full((5, num_gpus), 4096), even, seed)
    assert found["efficiency"] == pytest.approx(1, abs=1e-12)


@given(num_gpus=st.integers(1, 100_000))
def test_without_failures_and_stalls_all_time_is_good(scaling: ModuleType, num_gpus: int) -> None:
    safe = replace(scaling.Cluster(), failures_per_gpu_hour=0, checkpoint_stall=0)
    assert safe.goodput(num_gpus) == 1
    rare = replace(safe, failures_per_gpu_hour=1e-15)
    assert rare.goodput(num_gpus) == pytest.approx(1, abs=1e-6)


@settings(max_examples=30)
@given(seed=seeds, num_gpus=st.integers(1, 256))
def test_the_shares_of_a_step_are_all_of_it(scaling: ModuleType, seed: int, num_gpus: int) -> None:
    found = scaling.simulate(draw_tokens(seed, num_gpus), scaling.Cluster(), seed)
    waits = [value for key, value in found.items() if key.startswith("waits_for_")]
    assert found["efficiency"] + sum(waits) == pytest.approx(1)
    assert 0 < found["used"] <= found["efficiency"] <= 1 + 1e-12
    assert found["used"] <= found["goodput"] < 1


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("failures_per_gpu_hour", [0, 1e-6, 1e-5, 1e-4]),
        ("checkpoint_stall", [0, 1, 10, 100]),
        ("restart", [0, 60, 600]),
    ],
)
def test_goodput_falls_with_what_costs_and_with_the_gpus(
    scaling: ModuleType, setting: str, values: list[float]
) -> None:
    for value in values:
        cluster = replace(scaling.Cluster(), **{setting: value})
        by_gpus = [cluster.goodput(number) for number in scaling.GPUS]
        assert by_gpus == sorted(by_gpus, reverse=True)
    for number in scaling.GPUS:
        clusters = [replace(scaling.Cluster(), **{setting: value}) for value in values]
        by_value = [cluster.goodput(number) for cluster in clusters]
        assert by_value == sorted(by_value, reverse=True)
        assert len(set(by_value)) == len(by_value)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("gradient_bytes", [0, 1e9, 1e10]),
        ("latency", [0, 1e-5, 1e-3]),
        ("hidden", [1, 0.5, 0]),
        ("bandwidth", [1e12, 1e11, 1e10]),
    ],
)
def test_efficiency_falls_with_what_the_gradients_cost(
    scaling: ModuleType, setting: str, values: list[float]
) -> None:
    tokens = draw_tokens(0, 64)
    found = [
        scaling.simulate(tokens, replace(scaling.Cluster(), **{setting: value}), 0)["efficiency"]
        for value in values
    ]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)
    waits = [scaling.Cluster().gradient_seconds(number) for number in (1, *scaling.GPUS)]
    assert waits == sorted(waits)
    assert waits[0] == 0


def test_a_seed_gives_one_result_and_no_sample_is_lost(scaling: ModuleType) -> None:
    lengths = scaling.draw_lengths(scaling.CORPUS, 5000)
    tokens = scaling.tokens_of_gpus(scaling.order_of(lengths, 8), lengths, 8)
    assert tokens.sum() == lengths.sum()
    assert tokens.max() <= scaling.PACKS_PER_GPU * scaling.CAPACITY
    one, again, other = (scaling.simulate(tokens, scaling.Cluster(), n) for n in (0, 0, 1))
    assert one == again
    assert one != other
