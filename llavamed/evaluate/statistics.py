"""Intervals and tests for scores of questions that share images.

Questions about one image are right or wrong together, so an interval that takes them for
independent is too narrow. Everything here resamples, or flips, whole clusters: the items that
share an image. Results depend on the seed and on the items, not on the items' order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtrit

CONFIDENCE = 0.95
"""Nominal coverage of an interval."""
NUM_RESAMPLES = 2_000
NUM_FLIPS = 9_999
_FEW = 10
"""Nearly all values are equal if fewer than this differ from the most frequent one."""
_CHUNK = 1 << 20
"""Random numbers drawn at a time, which bounds memory."""

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval: `low <= value <= high`."""

    value: float
    low: float
    high: float


def cluster_key(image: str, id: str) -> str:
    """Return the cluster of an item: the items of its image, or itself where it has none."""
    return f"image {image}" if image else f"item {id}"


def cluster_indices(keys: Sequence[str]) -> Indices:
    """Number the clusters: items of equal keys get the same number, from 0 on, in sorted order."""
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def mean_intervals(
    scores: Floats, clusters: Indices, *, bounds: tuple[float, float] = (0.0, 1.0), seed: int = 0
) -> list[Estimate]:
    """Estimate the mean of each row of scores.

    The interval is a bootstrap over clusters. A share (all scores 0 or 1) with fewer than ten right
    or ten wrong answers gets Wilson's interval instead, because a bootstrap of such rare events is
    too narrow; there a cluster counts as one observation, the most that clustering can cost.

    Args:
        scores: Within the bounds, shape (rows, items).
        clusters: Number of each item's cluster, shape (items,).
        bounds: Lowest and highest possible score.
        seed: Seed for the resamples; every row gets the same ones.
    """
    num_clusters = len(np.unique(clusters))
    estimates = _bootstrap(scores, clusters, bounds, seed)
    for row, values in enumerate(scores):
        if bounds == (0.0, 1.0) and _nearly_all_equal(values, (0.0, 1.0)):
            estimates[row] = wilson_interval(float(values.mean()), num_clusters)
    return estimates


def _nearly_all_equal(values: Floats, outcomes: Sequence[float]) -> bool:
    """Tell whether all values are among these outcomes, and nearly all are the same one."""
    _, counts = np.unique(values, return_counts=True)
    return bool(np.isin(values, outcomes).all()) and len(values) - counts.max() < _FEW


def difference_intervals(
    first: Floats, others: Floats, clusters: Indices, *, seed: int = 0
) -> list[Estimate]:
    """Estimate the mean difference of each row of `others` to `first`, item by item.

    The interval is a bootstrap over clusters. Where every difference is -1, 0 or 1 and fewer than
    ten differ from the most frequent one, it is Agresti and Min's interval instead, with each
    cluster as one observation: two runs that agree on twenty questions may differ on the next one.

    Args:
        first: Scores between 0 and 1, shape (items,), or (rows, items) to pair the rows.
        others: Scores of the same items, shape (rows, items).
        clusters: Number of each item's cluster, shape (items,).
        seed: Seed for the resamples; every row gets the same ones.
    """
    differences = others - first
    estimates = _bootstrap(differences, clusters, (-1.0, 1.0), seed)
    for row, values in enumerate(differences):
        if _nearly_all_equal(values, (-1.0, 0.0, 1.0)):
            estimates[row] = matched_interval(
                float((values > 0).mean()), float((values < 0).mean()), len(np.unique(clusters))
            )
    return estimates


def _bootstrap(
    values: Floats, clusters: Indices, bounds: tuple[float, float], seed: int
) -> list[Estimate]:
    """Estimate means by expanded percentile intervals of a bootstrap over clusters.

    Plain percentiles are too narrow for few clusters. The expanded ones take the probability at
    which a normal distribution is as wide as Student's t with the unbiased variance. A single
    cluster says nothing of the spread, so its interval is all that is possible.

    Source: Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), section on the
    expanded percentile interval; clusters as in Field and Welsh, "Bootstrapping clustered data"
    (2007).
    """
    num_clusters = len(np.unique(clusters))
    means = values.mean(axis=1)
    if num_clusters == 1:
        low, high = (np.full(len(means), bound) for bound in bounds)
    else:
        quantile = stdtrit(num_clusters - 1, (1 - CONFIDENCE) / 2)
        tail = float(ndtr(quantile * np.sqrt(num_clusters / (num_clusters - 1))))
        low, high = np.quantile(_resampled_means(values, clusters, seed), [tail, 1 - tail], axis=0)
    # Rounding alone may put the bounds of equal values next to them.
    return [
        Estimate(float(mean), float(min(mean, below)), float(max(mean, above)))
        for mean, below, above in zip(means, low, high, strict=True)
    ]


def _resampled_means(values: Floats, clusters: Indices, seed: int) -> Floats:
    """Draw clusters with replacement; return means over their items, shape (resamples, rows)."""
    _, codes, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    num_clusters = len(sizes)
    totals = np.stack(
        [np.bincount(codes, weights=row, minlength=num_clusters) for row in values], axis=1
    )
    rng = np.random.default_rng(seed)
    means = np.empty((NUM_RESAMPLES, len(values)))
    for start, stop in _chunks(NUM_RESAMPLES, num_clusters):
        drawn = rng.integers(num_clusters, size=(stop - start, num_clusters))
        drawn += num_clusters * np.arange(stop - start)[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means[start:stop] = (times @ totals) / (times @ sizes)[:, None]
    return means


def _chunks(total: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK // width)
    for start in range(0, total, step):
        yield start, min(start + step, total)


def wilson_interval(share: float, total: float, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate a share of `total` independent observations; stays honest at shares of 0 and 1.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    square = float(ndtri((1 + confidence) / 2)) ** 2
    center = (share + square / (2 * total)) / (1 + square / total)
    variance = share * (1 - share) / total + square / (4 * total**2)
    half = float(np.sqrt(square * variance)) / (1 + square / total)
    return _around(share, center, half, 0.0)


def matched_interval(gained: float, lost: float, total: float) -> Estimate:
    """Estimate the difference of two shares of the same `total` independent observations.

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched
    proportions" (2005): half an observation is added to each of the four outcomes.

    Args:
        gained: Share of the observations that only the second run has right.
        lost: Share of those that only the first run has right.
        total: Number of observations.
    """
    center = (gained - lost) * total / (total + 2)
    variance = ((gained + lost) * total + 1) / (total + 2) - center**2
    half = float(ndtri((1 + CONFIDENCE) / 2) * np.sqrt(variance / (total + 2)))
    return _around(gained - lost, center, half, -1.0)


def _around(value: float, center: float, half: float, lowest: float) -> Estimate:
    """Return an interval that contains the value, from the lowest possible one to 1."""
    return Estimate(
        value, max(lowest, min(value, center - half)), min(1.0, max(value, center + half))
    )


def sign_flip_test(differences: Floats, clusters: Indices) -> float:
    """Test whether paired differences are zero on average; return the two-sided p-value.

    If the two runs were alike, each cluster could as well have had the opposite difference. All
    sign patterns are counted where there are no more than `NUM_FLIPS` of them, otherwise as many
    random ones, to which the observed one is added so that p is never 0.

    Source: Fisher, "The Design of Experiments" (1935), section 21; the added one by Phipson and
    Smyth, "Permutation P-values Should Never Be Zero" (2010).
    """
    totals: Floats = np.bincount(clusters, weights=differences).astype(np.float64)
    totals = totals[np.abs(totals) > _rounding(totals)]
    num_clusters = len(totals)
    least = abs(totals.sum()) - _rounding(totals)
    if 2**num_clusters <= NUM_FLIPS:
        patterns = np.arange(2**num_clusters)[:, None] >> np.arange(num_clusters) & 1
        return float(np.mean(np.abs((2.0 * patterns - 1) @ totals) >= least))
    rng = np.random.default_rng(0)
    as_extreme = 0
    for start, stop in _chunks(NUM_FLIPS, num_clusters):
        signs = 2.0 * rng.integers(2, size=(stop - start, num_clusters)) - 1
        as_extreme += int(np.count_nonzero(np.abs(signs @ totals) >= least))
    return (as_extreme + 1) / (NUM_FLIPS + 1)


def _rounding(totals: Floats) -> float:
    """Return a difference that rounding alone can make in a sum of these numbers."""
    return 1e-12 * max(1.0, float(np.abs(totals).sum()))


def mcnemar_test(first: Floats, second: Floats) -> float | None:
    """Test whether two runs are right equally often; return the exact two-sided p-value.

    It takes all items for independent, so with several questions an image its p-value is too small;
    `sign_flip_test` is not deceived. None where a score is neither 0 nor 1.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions"
    (1947); the exact form is a binomial test of the items that only one run has right.
    """
    if not np.isin([first, second], (0.0, 1.0)).all():
        return None
    only_first = int(np.count_nonzero(first > second))
    only_second = int(np.count_nonzero(second > first))
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests, so that one false alarm among all is as rare as stated.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    given: NDArray[Any] = np.asarray(p_values, dtype=float)
    order = np.argsort(given, kind="stable")
    factors = np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * given[order]))
    return [float(p) for p in adjusted]
