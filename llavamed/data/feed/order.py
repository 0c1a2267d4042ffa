"""Which samples make which step: pure integers, known before training starts.

An epoch reads row groups in a seeded order, the visits of several datasets spread evenly among each
other. Their samples are cut into as many runs of equal weight as a step has packs, one a lane: the
lanes end level, and only a row group on a cut is read twice. A lane shuffles within a window of its
row groups and packs what it finds there. Step k takes the k-th pack of every lane, and a lane that
ran out gives an empty one, so each sample is seen exactly as often as it should be, the tail
included. Rank r of R reads lanes r, r + R, ...: the samples of a step do not depend on the number
of workers, and (epoch, step) is the whole position.

A sample weighs its tokens, or 1 when packing is off; a pack holds up to `capacity` of that.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from llavamed.data.feed.packing import Integers, fill_packs
from llavamed.errors import DataError

WINDOW_ROW_GROUPS = 8
"""Row groups a lane shuffles and packs together: more mix better and hold more in memory."""

_EMPTY: Integers = np.empty(0, dtype=np.int64)


class Share(NamedTuple):
    """One dataset's part of the index."""

    num_samples: int
    passes: float = 1.0
    """How often an epoch passes over it. Half a pass takes one half now and the other next time."""


@dataclass(frozen=True)
class EpochOrder:
    """One epoch, as a list of samples and the places in it that make each pack."""

    samples: Integers
    """Positions in the index, in the order their row groups are read."""
    visits: Integers
    """For each of them the number of the visit to a row group that reads it."""
    lanes: tuple[tuple[Integers, ...], ...]
    """For each lane its packs, each an array of places in `samples`."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the epoch."""
        return max(len(packs) for packs in self.lanes)

    def places(self, lane: int, step: int) -> Integers:
        """Places in `samples` of a lane at a step; none when the lane ran out."""
        packs = self.lanes[lane] if lane < len(self.lanes) else ()
        return packs[step] if step < len(packs) else _EMPTY

    def pack(self, lane: int, step: int) -> Integers:
        """Samples of a lane at a step; none when the lane ran out."""
        return self.samples[self.places(lane, step)]


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
    shares: Sequence[Share] | None = None,
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
        shares: The datasets that the index joins, in its order; by default one, passed over once.

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
    shares = shares or [Share(len(weights))]
    epochs: list[EpochOrder] = []
    steps = 0
    while len(epochs) < num_epochs if max_steps is None else steps < max_steps:
        samples, visits = _mix(groups, shares, seed=seed, epoch=len(epochs))
        random = _generator(seed, len(epochs))
        lanes = _pack_lanes(weights[samples], visits, num_lanes, capacity, random)
        epochs.append(EpochOrder(samples, visits, lanes))
        steps += epochs[-1].num_steps
    if not steps:
        passes = ", ".join(str(share.passes) for share in shares)
        raise DataError(
            f"data={passes}: {num_epochs} epochs of so few passes hold not one of "
            f"{len(weights)} samples; raise the passes, or num_train_epochs"
        )
    return StageOrder(tuple(epochs), steps if max_steps is None else max_steps)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _mix(
    groups: Integers, shares: Sequence[Share], *, seed: int, epoch: int
) -> tuple[Integers, Integers]:
    """An epoch's samples in reading order, and for each the number of its visit.

    The visits of every dataset are spaced evenly over the epoch, so that each stretch of it holds
    the datasets in their proportion.
    """
    samples, labels, times = [], [], []
    first, num_visits = 0, 0
    for number, share in enumerate(shares):
        own = groups[first : first + share.num_samples]
        chosen, visits = _stretch(own, share.passes, seed=seed, dataset=number, epoch=epoch)
        count = int(visits.max(initial=-1)) + 1
        phase = _generator(seed, epoch, number).random()
        samples.append(chosen + first)
        labels.append(visits + num_visits)
        times.append((visits + phase) / max(1, count))
        first, num_visits = first + share.num_samples, num_visits + count
    by_time = np.argsort(np.concatenate(times), kind="stable")
    in_turn = np.concatenate(labels)[by_time]
    return np.concatenate(samples)[by_time], np.cumsum(np.diff(in_turn, prepend=in_turn[:1]) != 0)


def _stretch(
    groups: Integers, passes: float, *, seed: int, dataset: int, epoch: int
) -> tuple[Integers, Integers]:
    """What an epoch takes of a dataset: samples, and the visit to a row group that reads each.

    Passes follow each other without end, each in an order of its own, and epoch after epoch takes
    the next stretch of them: so over epochs no sample is ahead of another by more than one pass.
    """
    size = len(groups)
    start, stop = (round(number * passes * size) for number in (epoch, epoch + 1))
    by_group = np.argsort(groups, kind="stable")
    members = np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1)
    samples, visits = [_EMPTY], [_EMPTY]
    for turn in range(start // size, -(-stop // size)):
        order = _generator(seed, dataset, turn, 0).permutation(len(members))
        part = slice(max(0, start - turn * size), stop - turn * size)
        samples.append(np.concatenate([members[group] for group in order])[part])
        lengths = [len(members[group]) for group in order]
        visits.append(np.repeat(turn * len(members) + np.arange(len(members)), lengths)[part])
    numbers = np.unique(np.concatenate(visits), return_inverse=True)[1]
    return np.concatenate(samples), numbers.astype(np.int64)


def _pack_lanes(
    weights: Integers,
    visits: Integers,
    num_lanes: int,
    capacity: int,
    random: np.random.Generator,
) -> tuple[tuple[Integers, ...], ...]:
    """Cut an epoch's samples into lanes of equal weight, and pack each; gives places."""
    run = (np.cumsum(weights) - weights) * num_lanes // max(1, int(weights.sum()))
    runs = np.split(np.arange(len(weights)), np.searchsorted(run, np.arange(1, num_lanes)))
    lanes: list[tuple[Integers, ...]] = [()] * num_lanes
    for number, lane in enumerate(_lanes_side_by_side(num_lanes)):
        windows = _windows(runs[number], visits, first=1 + number % WINDOW_ROW_GROUPS)
        lanes[lane] = tuple(_pack_lane(windows, weights, capacity, random))
    return tuple(lanes)


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


def _windows(places: Integers, visits: Integers, *, first: int) -> list[Integers]:
    """A lane's places, `WINDOW_ROW_GROUPS` visits at a time, after `first` of them.

    Lanes whose first windows differ do not all ask for their next window at the same step.
    """
    starts = np.flatnonzero(np.diff(visits[places], prepend=-1))
    return np.split(places, starts[first::WINDOW_ROW_GROUPS])


def _pack_lane(
    windows: Sequence[Integers], weights: Integers, capacity: int, random: np.random.Generator
) -> list[Integers]:
    """Pack window after window; a window's emptiest pack goes back into the next one."""
    packs: list[Integers] = []
    left_over = _EMPTY
    for window in windows:
        places = random.permutation(np.concatenate([left_over, window]))
        filled = fill_packs(places, weights, capacity)
        filled.sort(key=lambda pack: int(weights[pack].sum()))
        left_over = filled.pop(0) if filled else _EMPTY
        packs.extend(filled[i] for i in random.permutation(len(filled)))
    if len(left_over):
        packs.append(left_over)
    return packs
