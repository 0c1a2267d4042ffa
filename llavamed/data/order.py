"""Which samples make which step: pure integers, known before training starts.

A step is `num_lanes` packs. The seeded permutation of an epoch's row groups is cut into as many
runs of equal weight, one a lane: the lanes end level, and only a row group on a cut is read twice.
A lane shuffles within a window of its row groups and packs what it finds there. Step k takes the
k-th pack of every lane, and a lane that ran out gives an empty one, so each sample is seen exactly
once an epoch, the tail included. Rank r of R reads lanes r, r + R, ...: the samples of a step do
not depend on the number of workers, and (epoch, step) is the whole position.

A sample weighs its tokens, or 1 when packing is off; a pack holds up to `capacity` of that.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from llavamed.errors import DataError

Integers = npt.NDArray[np.int64]

WINDOW_ROW_GROUPS = 8
"""Row groups a lane shuffles and packs together: more mix better and hold more in memory."""

_EMPTY: Integers = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class EpochOrder:
    """One epoch: for each lane its packs, each an array of positions in the index."""

    lanes: tuple[tuple[Integers, ...], ...]

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the epoch."""
        return max(len(packs) for packs in self.lanes)

    def pack(self, lane: int, step: int) -> Integers:
        """Samples of a lane at a step; empty when the lane ran out."""
        packs = self.lanes[lane]
        return packs[step] if step < len(packs) else _EMPTY


@dataclass(frozen=True)
class StepPosition:
    """Where a global step lies: `epoch` and the `step` within it, both from 0."""

    epoch: int
    step: int


@dataclass(frozen=True)
class StageOrder:
    """Every step of a stage."""

    epochs: tuple[EpochOrder, ...]
    num_steps: int

    def position(self, global_step: int) -> StepPosition:
        """The place of an optimizer step, counted from 0."""
        if not 0 <= global_step < self.num_steps:
            raise IndexError(f"global_step={global_step}: the stage has {self.num_steps} steps")
        epoch = bisect.bisect_right(self._starts, global_step) - 1
        return StepPosition(epoch, global_step - self._starts[epoch])

    @cached_property
    def _starts(self) -> list[int]:
        """The first global step of each epoch."""
        return [0, *accumulate(order.num_steps for order in self.epochs[:-1])]

    def samples(self, global_step: int) -> tuple[Integers, ...]:
        """The packs of a step, one a lane."""
        place = self.position(global_step)
        order = self.epochs[place.epoch]
        return tuple(order.pack(lane, place.step) for lane in range(len(order.lanes)))

    def sums(self, values: Integers) -> Integers:
        """For each step the sum of a per-sample value, e.g. its supervised tokens."""
        return np.array(
            [
                sum(int(values[pack].sum()) for pack in self.samples(k))
                for k in range(self.num_steps)
            ],
            dtype=np.int64,
        )


def order_stage(
    groups: Integers,
    weights: Integers,
    *,
    seed: int,
    num_lanes: int,
    capacity: int,
    num_epochs: int,
    max_steps: int | None = None,
) -> StageOrder:
    """Order all epochs of a stage; with `max_steps` epochs are cut, or repeated, to that number.

    Args:
        groups: The row group of each sample, in index order.
        weights: What each sample weighs.
        seed: Another seed gives another order of the same samples.
        num_lanes: Packs a step.
        capacity: Weight a pack holds.
        num_epochs: Passes over the samples.
        max_steps: Exact number of optimizer steps, or none for whole epochs.

    Raises:
        DataError: There are no samples, or one weighs more than a pack holds.
    """
    if not len(weights):
        raise DataError("samples=0: a stage needs at least one; look at quarantine.parquet")
    if weights.max() > capacity:
        longest = int(weights.max())
        count = int((weights > capacity).sum())
        raise DataError(
            f"max_tokens={capacity}: {count} samples are longer, the longest has {longest} tokens; "
            f"raise max_tokens to {longest}, or prepare with a lower data.max_length"
        )
    epochs: list[EpochOrder] = []
    steps = 0
    while len(epochs) < num_epochs if max_steps is None else steps < max_steps:
        epoch = order_epoch(
            groups, weights, seed=seed, epoch=len(epochs), num_lanes=num_lanes, capacity=capacity
        )
        epochs.append(epoch)
        steps += epoch.num_steps
    return StageOrder(tuple(epochs), steps if max_steps is None else max_steps)


def order_epoch(
    groups: Integers, weights: Integers, *, seed: int, epoch: int, num_lanes: int, capacity: int
) -> EpochOrder:
    """Order one epoch; see `order_stage` for the arguments."""
    random = np.random.default_rng([seed, epoch])
    members = np.split(
        np.argsort(groups, kind="stable"), np.flatnonzero(np.diff(np.sort(groups))) + 1
    )
    shuffled = np.concatenate([members[i] for i in random.permutation(len(members))])
    before = np.cumsum(weights[shuffled]) - weights[shuffled]
    run = before * num_lanes // max(1, int(weights.sum()))
    lanes: list[tuple[Integers, ...]] = [()] * num_lanes
    for number, lane in enumerate(_lanes_side_by_side(num_lanes)):
        samples = shuffled[run == number]
        windows = _windows(samples, groups, first=1 + number % WINDOW_ROW_GROUPS)
        lanes[lane] = tuple(_pack_lane(windows, weights, capacity, random))
    return EpochOrder(tuple(lanes))


def _lanes_side_by_side(num_lanes: int) -> list[int]:
    """The lanes so that those one worker reads follow each other, whatever the number of workers.

    Runs that follow each other share a row group at the cut; when one worker reads both, it is read
    once. Splitting by the prime factors of the number of lanes, one after another, keeps the lanes
    r, r + R, ... together for each R that is a product of the first factors.
    """
    parts = [list(range(num_lanes))]
    factor = 2
    while len(parts) < num_lanes:
        if len(parts[0]) % factor:
            factor += 1
        else:
            parts = [part[start::factor] for part in parts for start in range(factor)]
    return [lane for part in parts for lane in part]


def _windows(samples: Integers, groups: Integers, *, first: int) -> list[Integers]:
    """A lane's samples, `WINDOW_ROW_GROUPS` row groups at a time, after `first` of them.

    Lanes whose first windows differ do not all ask for their next window at the same step.
    """
    starts = np.flatnonzero(np.diff(groups[samples], prepend=-1))
    return np.split(samples, starts[first::WINDOW_ROW_GROUPS])


def _pack_lane(
    windows: Sequence[Integers], weights: Integers, capacity: int, random: np.random.Generator
) -> list[Integers]:
    """Pack window after window; a window's emptiest pack goes back into the next one."""
    packs: list[Integers] = []
    left_over = _EMPTY
    for window in windows:
        samples = random.permutation(np.concatenate([left_over, window]))
        filled = _best_fit(samples, weights, capacity)
        filled.sort(key=lambda pack: int(weights[pack].sum()))
        left_over = filled.pop(0) if filled else _EMPTY
        packs.extend(filled[i] for i in random.permutation(len(filled)))
    if len(left_over):
        packs.append(left_over)
    return packs


def _best_fit(samples: Integers, weights: Integers, capacity: int) -> list[Integers]:
    """Best-fit decreasing: each sample, the heaviest first, into the fullest pack that holds it."""
    heaviest_first = samples[np.argsort(-weights[samples], kind="stable")]
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # sorted (room left, pack)
    for sample, weight in zip(
        heaviest_first.tolist(), weights[heaviest_first].tolist(), strict=True
    ):
        place = bisect.bisect_left(room, (weight, -1))
        if place == len(room):
            packs.append([sample])
            bisect.insort(room, (capacity - weight, len(packs) - 1))
        else:
            left, pack = room.pop(place)
            packs[pack].append(sample)
            bisect.insort(room, (left - weight, pack))
    return [np.array(pack, dtype=np.int64) for pack in packs]
