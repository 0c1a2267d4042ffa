"""The order: every sample once an epoch, whatever the data, the packs and the workers."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavamed.data.feed.order import EpochOrder, StageOrder, StepPosition, order_stage
from llavamed.data.feed.packing import Integers
from llavamed.errors import DataError

NUM_LANES = 16
MAX_TOKENS = 4096


@dataclass(frozen=True)
class Case:
    """A random dataset and how it is ordered."""

    groups: Integers
    weights: Integers
    capacity: int
    num_lanes: int
    num_epochs: int
    seed: int

    def order(self, **changes: int) -> StageOrder:
        arguments = {
            "seed": self.seed,
            "num_lanes": self.num_lanes,
            "capacity": self.capacity,
            "num_epochs": self.num_epochs,
        }
        return order_stage(self.groups, self.weights, **(arguments | changes))


def draw_groups(random: np.random.Generator, num_samples: int, group_size: int) -> Integers:
    """Row groups of random sizes, each in one piece, as they lie in the index."""
    sizes = random.integers(1, 2 * group_size, size=num_samples)
    return np.repeat(np.arange(num_samples), sizes)[:num_samples]


def draw_weights(random: np.random.Generator, kind: str, num_samples: int, top: int) -> Integers:
    weights = {
        "equal": np.full(num_samples, max(1, top // 3)),
        "uniform": random.integers(1, top + 1, size=num_samples),
        "heavy tail": top // (1 + random.geometric(0.3, size=num_samples)),
        "rare giants": np.where(random.random(num_samples) < 0.05, top, 1),
        "over half": random.integers(top // 2 + 1, top + 1, size=num_samples),
        "full": np.full(num_samples, top),
    }
    return weights[kind].clip(1, top).astype(np.int64)


KINDS = ["equal", "uniform", "heavy tail", "rare giants", "over half", "full"]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_samples = draw(st.one_of(st.integers(1, 40), st.integers(1, 2000)))
    capacity = draw(st.integers(1, 5000))
    return Case(
        groups=draw_groups(random, num_samples, draw(st.integers(1, 128))),
        weights=draw_weights(random, draw(st.sampled_from(KINDS)), num_samples, capacity),
        capacity=capacity,
        num_lanes=draw(st.integers(1, 16)),
        num_epochs=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


def realistic(num_samples: int, group_size: int = 64) -> tuple[Integers, Integers]:
    """Row groups and token counts like those of real dialogues about a figure: 656 on average."""
    random = np.random.default_rng(0)
    lengths = random.lognormal(np.log(656) - 0.45**2 / 2, 0.45, size=num_samples)
    groups = np.arange(num_samples) // group_size
    return groups.astype(np.int64), lengths.clip(32, 2048).astype(np.int64)


def samples_of(packs: tuple[Integers, ...]) -> list[int]:
    return np.concatenate([np.empty(0, dtype=np.int64), *packs]).tolist()


def lanes_of(epoch: EpochOrder) -> list[Integers]:
    """All samples of each lane."""
    return [epoch.samples[samples_of(packs)] for packs in epoch.lanes]


def loads(epoch: EpochOrder, weights: Integers) -> list[int]:
    return [int(weights[samples].sum()) for samples in lanes_of(epoch)]


def same(one: StageOrder, other: StageOrder) -> bool:
    return [[pack.tolist() for pack in one.samples(step)] for step in range(one.num_steps)] == [
        [pack.tolist() for pack in other.samples(step)] for step in range(other.num_steps)
    ]


@settings(max_examples=150)
@given(case=cases())
def test_every_sample_is_in_one_pack_of_an_epoch_and_no_pack_is_over_full(case: Case) -> None:
    order = case.order()
    assert len(order.epochs) == case.num_epochs
    step = 0
    for epoch in order.epochs:
        seen = []
        for _ in range(epoch.num_steps):
            packs = order.samples(step)
            assert len(packs) == case.num_lanes
            assert max(int(case.weights[pack].sum()) for pack in packs) <= case.capacity
            seen += samples_of(packs)
            step += 1
        assert sorted(seen) == list(range(len(case.weights)))
    assert step == order.num_steps


@settings(max_examples=100)
@given(case=cases())
def test_lanes_end_level_and_share_only_the_row_groups_at_their_cuts(case: Case) -> None:
    for epoch in case.order().epochs:
        share = case.weights.sum() / case.num_lanes
        assert max(abs(load - share) for load in loads(epoch, case.weights)) <= case.weights.max()
        reads = sum(len(np.unique(case.groups[samples])) for samples in lanes_of(epoch))
        assert reads <= len(np.unique(case.groups)) + case.num_lanes - 1
        assert all(len(pack) for packs in epoch.lanes for pack in packs)


@settings(max_examples=40)
@given(case=cases())
def test_the_same_arguments_give_the_same_order(case: Case) -> None:
    order = case.order()
    np.random.seed(0)
    assert same(order, case.order())


def test_the_order_is_the_one_that_earlier_versions_made() -> None:
    """A change here breaks the resume of every run that is under way."""
    order = order_stage(
        np.arange(12) // 3,
        np.array([5, 2, 3, 4, 1, 5, 2, 2, 3, 1, 4, 4]),
        seed=7,
        num_lanes=2,
        capacity=8,
        num_epochs=1,
    )
    steps = [[pack.tolist() for pack in order.samples(step)] for step in range(order.num_steps)]
    assert steps == [[[10, 11], [0, 8]], [[5, 4, 9], [7, 2, 1]], [[3], [6]]]


@settings(max_examples=30)
@given(case=cases())
def test_an_epoch_holds_three_numbers_a_sample_and_one_a_pack(case: Case) -> None:
    """Every worker holds it for a whole stage, so an object for each pack would be too much."""
    for epoch in case.order().epochs:
        held = [epoch.samples, epoch.visits]
        for lane in epoch.lanes:
            held += [lane.places, lane.starts]
        num_packs = sum(len(lane) for lane in epoch.lanes)
        numbers = 3 * len(case.weights) + num_packs + case.num_lanes
        assert sum(array.nbytes for array in held) == 8 * numbers
        assert all(array.base is None or array.base.nbytes == array.nbytes for array in held)


def test_seeds_and_epochs_change_the_order() -> None:
    groups, weights = realistic(500, group_size=16)
    case = Case(groups, weights, MAX_TOKENS, 4, num_epochs=2, seed=1)
    one, other = case.order(), case.order(seed=2)
    assert not same(one, other)
    first, second = (StageOrder((epoch,), epoch.num_steps) for epoch in one.epochs)
    assert not same(first, second)
    in_lane = [sorted(lanes_of(order.epochs[0])[0]) for order in (one, other)]
    assert in_lane[0] != in_lane[1]


def test_samples_of_distant_row_groups_share_packs() -> None:
    groups, weights = realistic(6400)
    epoch = Case(groups, weights, MAX_TOKENS, 2, num_epochs=1, seed=1).order().epochs[0]
    distinct = [len(np.unique(groups[epoch.samples[pack]])) / len(pack) for pack in epoch.lanes[0]]
    assert np.mean(distinct) > 0.6


@pytest.mark.parametrize("num_workers", [1, 2, 4, 8])
def test_a_step_has_the_same_samples_for_any_number_of_workers(num_workers: int) -> None:
    groups, weights = realistic(3000)
    order = Case(groups, weights, MAX_TOKENS, NUM_LANES, num_epochs=1, seed=3).order()
    epoch = order.epochs[0]
    for step in range(order.num_steps):
        shares = [
            [epoch.pack(lane, step) for lane in range(rank, NUM_LANES, num_workers)]
            for rank in range(num_workers)
        ]
        assert len({len(share) for share in shares}) == 1
        together = [pack for share in shares for pack in share]
        assert sorted(samples_of(tuple(together))) == sorted(samples_of(order.samples(step)))


@settings(max_examples=60)
@given(
    num_samples=st.integers(1, 2000),
    micro_batch_size=st.integers(1, 16),
    num_lanes=st.integers(1, 16),
    group_size=st.integers(1, 100),
    seed=st.integers(0, 1000),
)
def test_without_packing_all_steps_but_the_last_are_full(
    num_samples: int, micro_batch_size: int, num_lanes: int, group_size: int, seed: int
) -> None:
    groups = draw_groups(np.random.default_rng(seed), num_samples, group_size)
    ones = np.ones(num_samples, dtype=np.int64)
    order = Case(groups, ones, micro_batch_size, num_lanes, num_epochs=2, seed=seed).order()
    global_batch_size = num_lanes * micro_batch_size
    assert order.num_steps == 2 * -(-num_samples // global_batch_size)
    for epoch in order.epochs:
        for step in range(epoch.num_steps - 1):
            packs = [epoch.pack(lane, step) for lane in range(num_lanes)]
            assert {len(pack) for pack in packs} == {micro_batch_size}


@settings(max_examples=30)
@given(
    num_workers=st.sampled_from([1, 2, 4, 8]),
    groups_a_worker=st.integers(10, 30),
    seed=st.integers(0, 1000),
)
def test_workers_hardly_read_a_row_group_twice(
    num_workers: int, groups_a_worker: int, seed: int
) -> None:
    num_groups = num_workers * groups_a_worker
    groups, weights = realistic(16 * num_groups, group_size=16)
    order = Case(groups, weights, MAX_TOKENS, NUM_LANES, num_epochs=1, seed=seed).order()
    reads = 0
    for rank in range(num_workers):
        lanes = lanes_of(order.epochs[0])[rank::num_workers]
        reads += len(np.unique(groups[np.concatenate(lanes)]))
    assert reads <= 1.1 * num_groups


def test_position_counts_steps_through_the_epochs() -> None:
    groups, weights = realistic(300)
    order = Case(groups, weights, MAX_TOKENS, 4, num_epochs=3, seed=0).order()
    first, second, third = (epoch.num_steps for epoch in order.epochs)
    assert order.num_steps == first + second + third
    assert order.position(0) == StepPosition(epoch=0, step=0)
    assert order.position(first - 1) == StepPosition(epoch=0, step=first - 1)
    assert order.position(first) == StepPosition(epoch=1, step=0)
    assert order.position(first + second) == StepPosition(epoch=2, step=0)
    assert order.position(order.num_steps - 1) == StepPosition(epoch=2, step=third - 1)


@pytest.mark.parametrize("global_step", [-1, 10, 11])
def test_position_refuses_a_step_the_stage_does_not_have(global_step: int) -> None:
    groups, weights = realistic(3000)
    order = order_stage(
        groups, weights, seed=0, num_lanes=4, capacity=2048, num_epochs=1, max_steps=10
    )
    with pytest.raises(IndexError, match=f"global_step={global_step}: the stage has 10 steps"):
        order.position(global_step)


@pytest.mark.parametrize("max_steps", [1, 7, 26, 27, 28, 200])
def test_max_steps_cuts_or_repeats_the_epochs(max_steps: int) -> None:
    groups, weights = realistic(300)
    case = Case(groups, weights, 2048, 4, num_epochs=1, seed=0)
    whole, order = case.order(num_epochs=30), case.order(max_steps=max_steps)
    assert order.num_steps == max_steps
    assert len(order.epochs) == order.position(max_steps - 1).epoch + 1
    for step in range(max_steps):
        assert samples_of(order.samples(step)) == samples_of(whole.samples(step))


def test_sums_adds_up_the_samples_of_each_step() -> None:
    groups, weights = realistic(300)
    order = Case(groups, weights, 2048, 4, num_epochs=2, seed=0).order()
    sums = order.sums(weights)
    assert len(sums) == order.num_steps
    assert sums[3] == weights[samples_of(order.samples(3))].sum()
    assert sums.sum() == 2 * weights.sum()


def test_no_samples_are_refused() -> None:
    nothing = np.empty(0, dtype=np.int64)
    with pytest.raises(DataError, match=r"samples=0: .* at least one; look at quarantine.parquet"):
        order_stage(nothing, nothing, seed=0, num_lanes=1, capacity=8, num_epochs=1)


def test_samples_longer_than_a_pack_are_refused() -> None:
    message = r"max_tokens=8: 2 samples are longer, the longest has 10 tokens; raise .* to 10"
    weights = np.array([3, 9, 10, 8])
    with pytest.raises(DataError, match=message):
        order_stage(np.zeros(4, int), weights, seed=0, num_lanes=1, capacity=8, num_epochs=1)
