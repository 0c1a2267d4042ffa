"""Count the padding of batches, from the expected longest sample, and of packs, from their room."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

NUM_QUANTILES = 2000


def padded_packs(
    packs: Sequence[NDArray[np.integer[Any]]], number: int, room: int
) -> tuple[float, float]:
    """Return the tokens of packs that are padded to their room, and the sum of squared lengths.

    As in the loader, padding makes the last sample of a pack longer, and an empty pack is padding.

    Args:
        packs: The lengths of the samples of each pack that is not empty, in tokens.
        number: Packs, with the empty ones.
        room: Tokens of a pack.
    """
    squared = float((number - len(packs)) * room**2)
    for lengths in packs:
        longer = room - float(lengths[:-1].sum())
        squared += float((lengths[:-1] ** 2).sum()) + longer**2
    return float(number * room), squared


def lognormal_lengths(mean: float, spread: float) -> Floats:
    """Return equally likely lengths of a lognormal distribution, in ascending order.

    Args:
        mean: Mean length, in tokens.
        spread: Standard deviation divided by the mean.

    Returns:
        float64 array of shape [NUM_QUANTILES].
    """
    sigma = np.sqrt(np.log1p(spread**2))
    levels = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    normal = np.array([NormalDist().inv_cdf(level) for level in levels.tolist()])
    lengths = np.exp(sigma * normal)
    return mean * lengths / lengths.mean()


def longest_moment(lengths: Floats, weights: Floats, number: int, power: int = 1) -> float:
    """Return the expected power of the longest of some samples drawn at random.

    Args:
        lengths: The lengths that occur, in tokens, of shape [lengths].
        weights: The frequency of each length, in any unit, of the same shape.
        number: Samples drawn.
        power: 1 for the expected length, 2 for the expected square of it.
    """
    ascending = np.argsort(lengths)
    shares = np.cumsum(weights[ascending]) / weights.sum()
    chances = np.diff(shares**number, prepend=0.0)
    return float((lengths[ascending] ** power * chances).sum())
