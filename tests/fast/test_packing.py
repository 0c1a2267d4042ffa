"""The packs: each sample in one, none over full, and hardly any room left."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavamed.data.feed.packing import Integers, fill_packs
from tests.fast.test_order import KINDS, MAX_TOKENS, NUM_LANES, Case, draw_weights, realistic


@st.composite
def samples(draw: st.DrawFn, max_count: int) -> tuple[Integers, Integers, int]:
    """Places in random order, the weights they refer to, and the capacity."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, capacity = draw(st.integers(0, max_count)), draw(st.integers(1, 5000))
    weights = draw_weights(random, draw(st.sampled_from(KINDS)), count + 50, capacity)
    return random.permutation(count + 50)[:count], weights, capacity


@settings(max_examples=150)
@given(case=samples(max_count=600))
def test_each_sample_is_in_one_pack_and_no_pack_is_over_full(
    case: tuple[Integers, Integers, int],
) -> None:
    places, weights, capacity = case
    packs = fill_packs(places, weights, capacity)
    assert sorted(np.concatenate([places[:0], *packs])) == sorted(places)
    assert all(0 < weights[pack].sum() <= capacity for pack in packs)


@settings(max_examples=150)
@given(case=samples(max_count=60))  # so few that each may be tried for every pack
def test_no_two_packs_would_fit_into_one(case: tuple[Integers, Integers, int]) -> None:
    places, weights, capacity = case
    lightest = sorted(int(weights[pack].sum()) for pack in fill_packs(places, weights, capacity))
    assert sum(lightest[:2]) > capacity or len(lightest) < 2


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), num_packs=st.integers(1, 4), size=st.integers(2, 6))
def test_what_fills_a_pack_exactly_is_found(seed: int, num_packs: int, size: int) -> None:
    """Packs cut at random, mixed with samples that are all too heavy to go with anything."""
    random = np.random.default_rng(seed)
    cuts = np.sort(random.choice(np.arange(1, 4096), size=size - 1, replace=False))
    parts = np.diff([0, *cuts, 4096])
    weights = np.concatenate([parts, np.full(num_packs, 4096)])
    packs = fill_packs(random.permutation(len(weights)), weights, 4096)
    assert len(packs) == num_packs + 1


def test_a_pack_takes_as_many_small_samples_as_fit() -> None:
    weights = np.array([3896, *[1] * 200])
    [pack] = fill_packs(np.arange(201), weights, 4096)
    assert sorted(pack) == list(range(201))


@pytest.mark.parametrize("num_samples", [100, 1000, 5000, 60_000])
@pytest.mark.parametrize("capacity", [2048, 4096, 8192])
def test_packing_costs_at_most_one_percent_of_the_steps(num_samples: int, capacity: int) -> None:
    groups, weights = realistic(num_samples)
    order = Case(groups, weights, capacity, NUM_LANES, num_epochs=1, seed=5).order()
    ideal = -(-int(weights.sum()) // (NUM_LANES * capacity))
    assert ideal <= order.num_steps <= 1.01 * ideal + 1


@pytest.mark.parametrize("num_image_tokens", [0, 256, 576])
def test_packs_of_4096_tokens_are_99_percent_full(num_image_tokens: int) -> None:
    groups, weights = realistic(60_000)
    weights = (weights + num_image_tokens).clip(max=2048)
    order = Case(groups, weights, MAX_TOKENS, NUM_LANES, num_epochs=1, seed=5).order()
    assert weights.sum() / (order.num_steps * NUM_LANES * MAX_TOKENS) >= 0.99
