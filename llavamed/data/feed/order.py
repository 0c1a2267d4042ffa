"""Decide which samples make up which step, in pure integers, before training starts.

An epoch reads row groups in a seeded order, with the visits of several datasets spread evenly. The
samples are cut into runs of equal weight, one run per lane, so that all lanes end at about the same
step and only row groups on a cut are read twice. Each lane shuffles within a window of its row
groups and packs the samples of the window. Step k takes the k-th pack of every lane, and an empty
pack from a lane that has run out, so each sample is seen exactly as often as it should be, the tail
included. Rank r of R reads lanes r, r + R, ...: the samples of a step do not depend on the number
of workers, and (epoch, step) is the whole position.

The weight of a sample is its number of tokens, or 1 without packing; a pack holds up to `capacity`.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import overload

import numpy as np

from llavamed.data.feed.packing import Integers, fill_packs
from llavamed.data.prepared.mixture import Share
from llavamed.errors import DataError

WINDOW_ROW_GROUPS = 8
"""Number of row groups that a lane shuffles and packs at once; more mix better and take more
memory."""

_EMPTY: Integers = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Lane(Sequence[Integers]):
    """The packs of a lane, each an int64 array of places in `EpochOrder.samples`.

    An array for each pack would take three times the memory of what it holds.
    """

    places: Integers
    """int64 places of all packs, one pack after another."""
    starts: Integers
    """int64 array of shape [packs + 1], where each pack starts in `places`, and the end."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, step: int) -> Integers: ...

    @overload
    def __getitem__(self, step: slice) -> list[Integers]: ...

    def __getitem__(self, step: int | slice) -> Integers | list[Integers]:
        if isinstance(step, slice):
            return [self[number] for number in range(*step.indices(len(self)))]
        number = range(len(self))[step]
        return self.places[self.starts[number] : self.starts[number + 1]]


_NO_PACKS = Lane(_EMPTY, np.zeros(1, dtype=np.int64))


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch: a list of samples, and the places in it that form each pack."""

    samples: Integers
    """int64 positions in the index, in the order their row groups are read."""
    visits: Integers
    """For each of them, the number of the visit to a row group that reads it: int64."""
    lanes: tuple[Sequence[Integers], ...]
    """The packs of each lane, each an int64 array of places in `samples`."""

    @property
    def num_steps(self) -> int:
        """The number of optimizer steps in the epoch."""
        return max(len(packs) for packs in self.lanes)

    def places(self, lane: int, step: int) -> Integers:
        """Return the places in `samples` of a lane's pack at a step; none after its last pack."""
        packs: Sequence[Integers] = self.lanes[lane] if lane < len(self.lanes) else ()
        return packs[step] if step < len(packs) else _EMPTY

    def pack(self, lane: int, step: int) -> Integers:
        """Return the samples of a lane's pack at a step; none after its last pack."""
        return self.samples[self.places(lane, step)]


@dataclass(frozen=True)
class StepPosition:
    """The position of a global step: its `epoch`, and its `step` within the epoch, both from 0."""

    epoch: int
    step: int


@dataclass(frozen=True)
class StageOrder:
    """The order of all steps of a stage."""

    epochs: tuple[EpochOrder, ...]
    num_steps: int

    def position(self, global_step: int) -> StepPosition:
        """Return the position of an optimizer step, counted from 0."""
        if not 0 <= global_step < self.num_steps:
            raise IndexError(f"global_step={global_step}: the stage has {self.num_steps} steps")
        epoch = bisect.bisect_right(self._starts, global_step) - 1
        return StepPosition(epoch, global_step - self._starts[epoch])

    @cached_property
    def _starts(self) -> list[int]:
        """The first global step of each epoch."""
        return [0, *accumulate(order.num_steps for order in self.epochs[:-1])]

    def samples(self, global_step: int) -> tuple[Integers, ...]:
        """Return the packs of a step, one for each lane, as positions in the index."""
        place = self.position(global_step)
        order = self.epochs[place.epoch]
        return tuple(order.pack(lane, place.step) for lane in range(len(order.lanes)))

    def sums(self, values: Integers) -> Integers:
        """Sum a value of each sample, such as its supervised tokens, over each step.

        Args:
            values: int64 array of shape [samples].

        Returns:
            int64 array of shape [steps].
        """
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
    """Order all epochs of a stage.

    Args:
        groups: int64 array of shape [samples], the row group of each sample, in index order.
        weights: int64 array of shape [samples], the weight of each sample.
        num_lanes: Packs in a step.
        capacity: The weight that a pack holds.
        num_epochs: Passes over the samples.
        max_steps: The exact number of optimizer steps; epochs are cut or repeated to reach it. Or
            None for `num_epochs` complete epochs.
        shares: The datasets that the index joins, in index order. By default one, passed over once.

    Raises:
        DataError: There are no samples, or a sample weighs more than a pack holds.
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
            f"data={passes}: {num_epochs} epochs with so few passes contain none of "
            f"{len(weights)} samples; raise the passes, or num_train_epochs"
        )
    return StageOrder(tuple(epochs), steps if max_steps is None else max_steps)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _mix(
    groups: Integers, shares: Sequence[Share], *, seed: int, epoch: int
) -> tuple[Integers, Integers]:
    """Return an epoch's samples in reading order, and the number of each sample's visit.

    The visits of every dataset are spaced evenly over the epoch, so that each stretch of it holds
    the datasets in proportion.
    """
    visits: list[Integers] = []
    times = []
    first = 0
    for number, share in enumerate(shares):
        own = groups[first : first + share.num_samples]
        stretch = _stretch(own, share.passes, seed=seed, dataset=number, epoch=epoch)
        phase = _generator(seed, epoch, number).random()
        visits.extend(visit + first for visit in stretch)
        times.append((np.arange(len(stretch)) + phase) / max(1, len(stretch)))
        first += share.num_samples
    in_turn = [visits[number] for number in np.argsort(np.concatenate(times), kind="stable")]
    lengths = [len(visit) for visit in in_turn]
    return np.concatenate([_EMPTY, *in_turn]), np.repeat(np.arange(len(lengths)), lengths)


def _stretch(
    groups: Integers, passes: float, *, seed: int, dataset: int, epoch: int
) -> list[Integers]:
    """Return an epoch's visits to row groups of a dataset: the samples that each one reads.

    The dataset is passed over again and again, each time in another order, and every epoch takes
    the next stretch of this sequence. So no sample is ever more than one pass ahead of another.
    """
    size = len(groups)
    start, stop = (round(number * passes * size) for number in (epoch, epoch + 1))
    by_group = np.argsort(groups, kind="stable")
    members = np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1)
    visits: list[Integers] = []
    for turn in range(start // size, -(-stop // size)):
        order = _generator(seed, dataset, turn, 0).permutation(len(members))
        place = turn * size
        for group in order:
            visit = members[group][max(0, start - place) : max(0, stop - place)]
            place += len(members[group])
            if len(visit):
                visits.append(visit)
    return visits


def _pack_lanes(
    weights: Integers, visits: Integers, num_lanes: int, capacity: int, random: np.random.Generator
) -> tuple[Lane, ...]:
    """Cut an epoch into lanes of equal weight and pack each lane."""
    before = np.cumsum(weights) - weights
    total = int(weights.sum())
    shares = [-(-number * total // num_lanes) for number in range(1, num_lanes)]
    cuts = [0, *np.searchsorted(before, shares).tolist(), len(weights)]
    lanes: dict[int, Lane] = {}
    for number, lane in enumerate(_lanes_side_by_side(num_lanes)):
        if cuts[number] == cuts[number + 1]:
            lanes[lane] = _NO_PACKS
            continue
        run = np.arange(cuts[number], cuts[number + 1])
        windows = _windows(run, visits, first=1 + number % WINDOW_ROW_GROUPS)
        lanes[lane] = _pack_lane(windows, weights, capacity, random)
    return tuple(lanes[lane] for lane in range(num_lanes))


def _lanes_side_by_side(num_lanes: int) -> list[int]:
    """Return the lanes in an order that keeps the lanes of one worker together.

    Consecutive runs share a row group at their cut, which is read once if one worker reads both
    runs. Splitting by the prime factors of the number of lanes, one after another, keeps the lanes
    r, r + R, ... together for each number of workers R that is a product of the first factors.
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
    """Split a lane's places into `first` visits and then `WINDOW_ROW_GROUPS` visits at a time.

    Lanes with first windows of different size do not all read their next window at the same step.
    """
    starts = np.flatnonzero(np.diff(visits[places], prepend=-1))
    return np.split(places, starts[first::WINDOW_ROW_GROUPS])


def _pack_lane(
    windows: Sequence[Integers], weights: Integers, capacity: int, random: np.random.Generator
) -> Lane:
    """Pack window after window, and put the emptiest pack of each window back into the next one."""
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
    places = np.concatenate([_EMPTY, *packs])
    return Lane(places, np.cumsum([0, *(len(pack) for pack in packs)]))
