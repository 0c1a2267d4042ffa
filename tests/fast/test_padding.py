"""The longest of a few samples, as planned from a declaration, is the one that drawing gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.model.cost.padding import lognormal_lengths, longest_moment, padded_packs

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("number", [1, 2, 8, 32])
@pytest.mark.parametrize("spread", [0.0, 0.3, 0.6, 1.2])
@pytest.mark.parametrize("image_tokens", [0, 576])
def test_padding_is_what_a_simulation_finds(number, spread, image_tokens):
    mean, limit = 150, 2048
    sigma = np.sqrt(np.log1p(spread**2))
    draws = RANDOM.lognormal(np.log(mean) - sigma**2 / 2, sigma, size=(40_000, number))
    longest = np.minimum(image_tokens + draws, limit).max(axis=1)
    lengths = np.minimum(image_tokens + lognormal_lengths(mean, spread), limit)
    weights = np.ones_like(lengths)
    # The worst seen of both is 1 % and 2 %: the noise of 40,000 draws and the cut-off tails.
    assert longest_moment(lengths, weights, number) == pytest.approx(longest.mean(), rel=0.02)
    squared = longest_moment(lengths, weights, number, power=2)
    assert squared == pytest.approx((longest**2).mean(), rel=0.05)


@given(st.floats(1, 1e4), st.floats(0, 3))
def test_lengths_have_the_mean_and_the_longest_of_one_is_it(mean, spread):
    lengths = lognormal_lengths(mean, spread)
    assert lengths.mean() == pytest.approx(mean)
    assert longest_moment(lengths, np.ones_like(lengths), 1) == pytest.approx(mean)


def test_of_two_datasets_the_longer_one_decides():
    lengths, weights = np.array([10.0, 100.0]), np.array([3.0, 1.0])
    assert longest_moment(lengths, weights, 1) == pytest.approx(32.5)
    assert longest_moment(lengths, weights, 2) == pytest.approx(100 - 90 * 0.75**2)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), max_size=6), st.integers(0, 3))
def test_padded_packs_have_the_lengths_that_the_loader_gives_them(packs, num_empty):
    room = 45
    given_lengths = [(*pack[:-1], room - sum(pack[:-1])) for pack in packs]  # as `sample_lengths`
    given_lengths += [(room,)] * num_empty
    tokens, squared = padded_packs([np.array(p) for p in packs], len(packs) + num_empty, room)
    assert tokens == sum(map(sum, given_lengths))
    assert squared == sum(length**2 for pack in given_lengths for length in pack)
