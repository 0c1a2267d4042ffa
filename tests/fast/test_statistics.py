"""Intervals contain what they estimate as often as they say, also where questions share images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llavamed.evaluate.statistics import (
    cluster_indices,
    difference_intervals,
    holm,
    matched_interval,
    mcnemar_test,
    mean_intervals,
    sign_flip_test,
    wilson_interval,
)

SCORE = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
ITEMS = st.lists(st.tuples(SCORE, SCORE, st.integers(0, 12)), min_size=1, max_size=60)
FEW = settings(max_examples=60, deadline=None)


def columns(items):
    first, second, images = zip(*items, strict=True)
    clusters = cluster_indices([f"image {image:03}" for image in images])
    return np.array(first), np.array(second), clusters


def bounds(estimate):
    return (estimate.value, estimate.low, estimate.high)


def correlated_answers(rng, num_images=40, questions=5):
    """Right or wrong answers; images differ in difficulty, the expected share is 0.6."""
    easiness = rng.beta(0.9, 0.6, size=(num_images, 1))
    answers = (rng.random((num_images, questions)) < easiness).astype(float)
    return answers.ravel(), np.repeat(np.arange(num_images), questions)


@FEW
@given(ITEMS)
def test_an_interval_contains_the_mean_and_stays_within_what_is_possible(items):
    first, second, clusters = columns(items)
    [found] = mean_intervals(first[None], clusters)
    assert found.value == pytest.approx(first.mean())
    assert -1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12
    [difference] = difference_intervals(first, second[None], clusters)
    assert difference.value == pytest.approx((second - first).mean())
    assert -1 - 1e-12 <= difference.low <= difference.value <= difference.high <= 1 + 1e-12


@FEW
@given(ITEMS, st.randoms(use_true_random=False))
def test_the_order_of_items_changes_nothing(items, random):
    shuffled = random.sample(items, len(items))
    results = []
    for order in (items, shuffled):
        first, second, clusters = columns(order)
        [mean] = mean_intervals(first[None], clusters)
        [difference] = difference_intervals(first, second[None], clusters)
        p_value = sign_flip_test(second - first, clusters)
        results.append([*bounds(mean), *bounds(difference), p_value])
    assert results[0] == pytest.approx(results[1], abs=1e-9)


@FEW
@given(ITEMS)
def test_exchanging_two_runs_negates_the_difference_and_keeps_the_p_values(items):
    first, second, clusters = columns(items)
    [there] = difference_intervals(first, second[None], clusters)
    [back] = difference_intervals(second, first[None], clusters)
    assert bounds(there) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-9)
    flips = [sign_flip_test(d, clusters) for d in (second - first, first - second)]
    assert flips[0] == pytest.approx(flips[1], abs=1e-3)
    assert mcnemar_test(first, second) == mcnemar_test(second, first)


@FEW
@given(ITEMS)
def test_a_run_does_not_differ_from_itself(items):
    first, _, clusters = columns(items)
    [found] = difference_intervals(first, first[None], clusters)
    assert found.value == 0
    assert sign_flip_test(first - first, clusters) == 1
    assert mcnemar_test(first, first) in {1, None}


@FEW
@given(ITEMS)
def test_rows_are_estimated_as_if_each_were_alone(items):
    first, second, clusters = columns(items)
    together = mean_intervals(np.stack([first, second]), clusters)
    alone = [mean_intervals(row[None], clusters)[0] for row in (first, second)]
    assert [bounds(each) for each in together] == [pytest.approx(bounds(each)) for each in alone]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=30).filter(lambda v: np.std(v) > 0.05))
def test_more_images_make_an_interval_narrower(scores):
    widths = []
    for times in (1, 4, 16):
        values = np.tile(scores, times)
        [found] = mean_intervals(values[None], np.arange(len(values)))
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]


def test_more_questions_of_the_same_images_make_it_no_narrower():
    values = np.random.default_rng(0).random(30)
    once, often = (
        mean_intervals(np.repeat(values, times)[None], np.repeat(np.arange(30), times))
        for times in (1, 8)
    )
    assert bounds(often[0]) == pytest.approx(bounds(once[0]))


def coverage(draw, repeats=200):
    """The share of 95 % intervals that contain the expected share of 0.6."""
    rng, hits = np.random.default_rng(1), 0
    for seed in range(repeats):
        values, clusters = draw(rng)
        [found] = mean_intervals(values[None], clusters, seed=seed)
        hits += found.low <= 0.6 <= found.high
    return hits / repeats


def test_clustered_intervals_cover_correlated_questions_and_naive_ones_do_not():
    def naive(rng):
        values, _ = correlated_answers(rng)
        return values, np.arange(len(values))

    assert 0.92 <= coverage(correlated_answers) <= 0.98
    assert coverage(naive, repeats=80) <= 0.85


@pytest.mark.parametrize("num_images", [5, 10, 30])
def test_intervals_of_few_images_cover_too(num_images):
    def draw(rng):
        return rng.beta(3, 2, size=num_images), np.arange(num_images)

    assert 0.91 <= coverage(draw) <= 0.99


def test_clustering_adds_what_the_cluster_robust_error_adds():
    values, clusters = correlated_answers(np.random.default_rng(2))
    [found] = mean_intervals(values[None], clusters)
    residuals = np.bincount(clusters, weights=values - values.mean())
    error = np.sqrt((residuals**2).sum()) / len(values)
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)


def test_one_image_says_nothing_of_the_spread():
    [found] = mean_intervals(np.array([[0.4, 0.6]]), np.zeros(2, int))
    assert bounds(found) == (0.5, 0, 1)
    [difference] = difference_intervals(np.zeros(2), np.array([[0.4, 0.6]]), np.zeros(2, int))
    assert bounds(difference) == (0.5, -1, 1)


def test_a_rare_outcome_gets_wilsons_interval_over_the_images():
    values = np.ones((1, 60))
    [found] = mean_intervals(values, np.arange(60) // 3)
    assert bounds(found) == bounds(wilson_interval(1.0, 20))
    assert found.low < 0.9


def test_runs_that_agree_on_few_questions_may_still_differ():
    right, clusters = np.ones(60), np.arange(60) // 3
    [same] = difference_intervals(right, right[None], clusters)
    assert bounds(same) == bounds(matched_interval(0, 0, 20))
    assert same.low < -0.05 < 0.05 < same.high
    [other] = difference_intervals(np.zeros(60), right[None], clusters)
    assert bounds(other) == bounds(matched_interval(1, 0, 20))
    assert other.low < 0.9


def test_a_matched_interval_is_walds_with_half_an_observation_more_of_each_kind():
    gained, lost, neither = 4.5, 1.5, 26.0
    values = np.repeat([1.0, -1.0, 0.0], [9, 3, 52])  # the same shares in whole numbers
    total = gained + lost + neither
    half = stats.norm.ppf(0.975) * values.std() / np.sqrt(total)
    found = matched_interval(4 / 30, 1 / 30, 30)
    assert bounds(found) == pytest.approx((0.1, values.mean() - half, values.mean() + half))


@pytest.mark.parametrize(
    ("num_images", "gained", "lost"), [(3, 0.3, 0.1), (60, 0.03, 0), (30, 1, 0)]
)
def test_intervals_of_rare_differences_cover(num_images, gained, lost):
    rng, hits = np.random.default_rng(4), 0
    for seed in range(200):
        drawn = rng.random(num_images)
        second = np.where(drawn < gained, 1.0, 0.0)
        first = np.where((drawn >= gained) & (drawn < gained + lost), 1.0, 0.0)
        [found] = difference_intervals(first, second[None], np.arange(num_images), seed=seed)
        hits += found.low <= gained - lost <= found.high
    assert hits / 200 >= 0.93


@given(st.integers(0, 50), st.integers(1, 50), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilsons_interval_is_scipys(right, wrong, confidence):
    total = right + wrong
    found = wilson_interval(right / total, total, confidence)
    expected = stats.binomtest(right, total).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_mcnemars_test_is_scipys_binomial_test(only_first, only_second, both):
    first = np.repeat([1.0, 0.0, 1.0], [only_first, only_second, both])
    second = np.repeat([0.0, 1.0, 1.0], [only_first, only_second, both])
    discordant = only_first + only_second
    expected = stats.binomtest(only_first, discordant).pvalue if discordant else 1
    assert mcnemar_test(first, second) == pytest.approx(expected, abs=1e-12)


def test_mcnemars_test_gives_the_known_value():
    first, second = np.repeat([1.0, 0.0], [12, 25]), np.repeat([0.0, 1.0], [12, 25])
    assert mcnemar_test(first, second) == pytest.approx(0.0470, abs=1e-4)
    assert mcnemar_test(np.array([0.5]), np.array([1.0])) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=2, max_size=9))
def test_few_flips_are_counted_exactly_as_scipy_does(eighths):
    differences = np.array(eighths) / 8
    expected = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    found = sign_flip_test(differences, np.arange(len(differences)))
    assert found == pytest.approx(min(1, expected), abs=1e-12)


def test_many_flips_are_drawn_and_give_the_p_value_of_the_exact_test():
    values = np.random.default_rng(3).normal(0.3, 1, 40)
    found = sign_flip_test(values, np.arange(40))
    assert found == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert sign_flip_test(np.ones(40), np.arange(40)) == 1 / 10_000


def test_flips_are_of_images_not_of_questions():
    values = np.ones(40)
    assert sign_flip_test(values, np.arange(40) // 10) == pytest.approx(2 / 2**4)


P_VALUES = st.lists(st.floats(0, 1), max_size=12)


@given(P_VALUES)
def test_holms_adjustment_raises_every_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(given_ <= found <= 1 for given_, found in zip(p_values, adjusted, strict=True))
    by_size = [found for _, found in sorted(zip(p_values, adjusted, strict=True))]
    assert by_size == sorted(by_size)
    largest = [min(1, len(p_values) * p) for p in p_values]
    assert all(found <= most for found, most in zip(adjusted, largest, strict=True))


def test_holms_adjustment_gives_the_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
