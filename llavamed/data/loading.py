"""While training: a rank's steps -> batches, by Arrow reads ahead of use. Needs no Ray.

The order says which row groups a rank needs and when; they are read a few steps ahead by threads,
kept until their last use in the epoch and dropped. Memory is bounded by the lanes' shuffle windows,
not by the data. Shapes: R rows (samples, or one pack), T tokens, I images of S x S pixels.
"""

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import torch

from llavamed.data.images import Pixels, normalize
from llavamed.data.mixture import Mixture
from llavamed.data.order import EpochOrder, StageOrder
from llavamed.data.packing import Integers
from llavamed.data.sample import IGNORE_INDEX

READ_AHEAD_STEPS = 4
READ_THREADS = 4
_COLUMNS = ["id", "pixels", "input_ids", "labels"]


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    `targets[t]` is the token that position t must predict, `IGNORE_INDEX` where none is trained;
    `position_ids` restart at each sample of a pack, which is what keeps samples apart.
    """

    input_ids: torch.Tensor  # [R, T] int64
    targets: torch.Tensor  # [R, T] int64
    position_ids: torch.Tensor  # [R, T] int64
    pixel_values: torch.Tensor  # [I, 3, S, S] float32
    sample_ids: tuple[str, ...]
    num_tokens: int  # of samples: neither padding nor a blank image

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        names = ("input_ids", "targets", "position_ids", "pixel_values")
        return replace(
            self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names}
        )


@dataclass(frozen=True)
class _Sample:
    id: str
    input_ids: Integers
    targets: Integers
    pixels: list[Pixels]


_Tables = dict[int, Future[pa.Table]]


@dataclass(frozen=True)
class _Pack:
    samples: Integers
    visits: Integers  # for each sample, which visit reads its row group


@dataclass(frozen=True)
class _Step:
    packs: list[_Pack]  # one for each of the rank's lanes
    tables: _Tables  # row groups being read or held, of the whole epoch, by visit
    last_used: list[int]  # visits that no later step of the epoch needs


class StageLoader:
    """Batches of one rank, from any step on."""

    def __init__(
        self,
        data: Mixture,
        order: StageOrder,
        *,
        rank: int,
        world_size: int,
        packing: bool,
    ) -> None:
        self.data = data
        self.order = order
        self.packing = packing
        num_lanes = len(order.epochs[0].lanes)
        # Where the lanes do not come out even, some ranks have one more, which is always empty.
        self.lanes = range(rank, num_lanes + -num_lanes % world_size, world_size)
        self._rows = data.column("row")

    def steps(self, start: int = 0) -> Iterator[list[Batch]]:
        """The batches of each step from `start` to the end, made ahead in a thread."""
        return _ahead(self._steps(start), depth=2)

    def _steps(self, start: int) -> Generator[list[Batch], None, None]:
        readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="reader")
        try:
            coming = self._start_reads(start, readers)
            ahead = deque(islice(coming, READ_AHEAD_STEPS))
            while ahead:
                ahead.extend(islice(coming, 1))
                step = ahead.popleft()
                yield [self._collate(pack, step.tables) for pack in step.packs]
                for visit in step.last_used:
                    del step.tables[visit]
        finally:
            readers.shutdown(cancel_futures=True)

    def _start_reads(self, start: int, readers: ThreadPoolExecutor) -> Iterator[_Step]:
        """The steps from `start`; a step's row groups are being read once it is taken."""
        while start < self.order.num_steps:
            place = self.order.position(start)
            epoch = self.order.epochs[place.epoch]
            stop = min(epoch.num_steps, place.step + self.order.num_steps - start)
            packs = [
                [self._pack(epoch, lane, step) for lane in self.lanes]
                for step in range(place.step, stop)
            ]
            used = [
                np.unique(np.concatenate([p.visits for p in lanes])).tolist() for lanes in packs
            ]
            last = {visit: step for step, needed in enumerate(used) for visit in needed}
            groups = dict(zip(epoch.visits, self.data.groups[epoch.samples], strict=True))
            tables: _Tables = {}
            for step, needed in enumerate(used):
                for visit in needed:
                    if visit not in tables:  # what was dropped is never needed again
                        tables[visit] = readers.submit(self._read, int(groups[visit]))
                yield _Step(packs[step], tables, [visit for visit in needed if last[visit] == step])
            start += len(packs)

    def _pack(self, epoch: EpochOrder, lane: int, step: int) -> _Pack:
        places = epoch.places(lane, step)
        return _Pack(epoch.samples[places], epoch.visits[places])

    def _read(self, group: int) -> pa.Table:
        return self.data.read_group(group, _COLUMNS)

    def _collate(self, pack: _Pack, tables: _Tables) -> Batch:
        samples = [
            self._sample(tables[visit].result(), row)
            for visit, row in zip(
                pack.visits.tolist(), self._rows[pack.samples].tolist(), strict=True
            )
        ]
        num_tokens = sum(len(sample.input_ids) for sample in samples)
        ids = tuple(sample.id for sample in samples)
        if not any(sample.pixels for sample in samples):
            # Every rank must run the tower in every forward pass, or ZeRO-3 waits for ever.
            samples.append(self._blank())
        rows = [samples] if self.packing else [[sample] for sample in samples]
        return collate(rows, self.data, sample_ids=ids, num_tokens=num_tokens)

    def _sample(self, table: pa.Table, row: int) -> _Sample:
        labels = table.column("labels")[row].values.to_numpy().astype(np.int64)
        return _Sample(
            id=table.column("id")[row].as_py(),
            input_ids=table.column("input_ids")[row].values.to_numpy().astype(np.int64),
            targets=np.append(labels[1:], IGNORE_INDEX),
            pixels=[self.data.pixels(image.as_buffer()) for image in table.column("pixels")[row]],
        )

    def _blank(self) -> _Sample:
        size, count = self.data.images.size, self.data.num_image_tokens
        return _Sample(
            id="",
            input_ids=np.full(count, self.data.image_token_id),
            targets=np.full(count, IGNORE_INDEX),
            pixels=[np.zeros((size, size, 3), dtype=np.uint8)],
        )


def collate(
    rows: Sequence[Sequence[_Sample]],
    data: Mixture,
    *,
    sample_ids: tuple[str, ...],
    num_tokens: int,
) -> Batch:
    """Join samples to rows, padded on the right to the longest, where no token attends to it."""
    length = max(sum(len(sample.input_ids) for sample in row) for row in rows)
    input_ids = np.full((len(rows), length), data.pad_token_id, dtype=np.int64)
    targets = np.full((len(rows), length), IGNORE_INDEX, dtype=np.int64)
    position_ids = np.zeros((len(rows), length), dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for sample in row:
            stop = start + len(sample.input_ids)
            input_ids[number, start:stop] = sample.input_ids
            targets[number, start:stop] = sample.targets
            position_ids[number, start:stop] = np.arange(stop - start)
            start = stop
        position_ids[number, start:] = np.arange(start, length)
    pixels = np.stack([image for row in rows for sample in row for image in sample.pixels])
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        position_ids=torch.from_numpy(position_ids),
        pixel_values=torch.from_numpy(normalize(pixels, data.images)),
        sample_ids=sample_ids,
        num_tokens=num_tokens,
    )


def _ahead(items: Generator[list[Batch], None, None], depth: int) -> Iterator[list[Batch]]:
    """The same items, made up to `depth` ahead by a thread, which ends when the consumer does."""
    made: queue.Queue[list[Batch] | BaseException | None] = queue.Queue(depth)
    gone = threading.Event()

    def put(item: list[Batch] | BaseException | None) -> None:
        while not gone.is_set():
            with suppress(queue.Full):
                made.put(item, timeout=0.2)
                return

    def run() -> None:
        try:
            with closing(items):
                for item in items:
                    put(item)
                    if gone.is_set():
                        return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=run, name="loader", daemon=True).start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()
