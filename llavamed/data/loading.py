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

from llavamed.data.images import Pixels, normalize, to_pixels
from llavamed.data.order import Integers, StageOrder
from llavamed.data.prepared import PreparedDataset
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
class _Step:
    packs: list[Integers]  # one for each of the rank's lanes
    tables: _Tables  # row groups being read or held, of the whole epoch
    last_used: list[int]  # row groups that no later step of the epoch needs


class StageLoader:
    """Batches of one rank, from any step on."""

    def __init__(
        self,
        dataset: PreparedDataset,
        order: StageOrder,
        *,
        rank: int,
        world_size: int,
        packing: bool,
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.packing = packing
        self.lanes = range(rank, len(order.epochs[0].lanes), world_size)
        self._rows = dataset.column("row")
        first = np.unique(dataset.groups, return_index=True)[1]
        self._shards = dataset.column("shard")[first]
        self._row_groups = dataset.column("row_group")[first]

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
                for group in step.last_used:
                    del step.tables[group]
        finally:
            readers.shutdown(cancel_futures=True)

    def _start_reads(self, start: int, readers: ThreadPoolExecutor) -> Iterator[_Step]:
        """The steps from `start`; a step's row groups are being read once it is taken."""
        groups = self.dataset.groups
        while start < self.order.num_steps:
            place = self.order.position(start)
            epoch = self.order.epochs[place.epoch]
            stop = min(epoch.num_steps, place.step + self.order.num_steps - start)
            packs = [
                [epoch.pack(lane, step) for lane in self.lanes] for step in range(place.step, stop)
            ]
            used = [np.unique(groups[np.concatenate(lanes)]).tolist() for lanes in packs]
            last = {group: step for step, needed in enumerate(used) for group in needed}
            tables: _Tables = {}
            for step, needed in enumerate(used):
                for group in needed:
                    if group not in tables:  # what was dropped is never needed again
                        tables[group] = readers.submit(self._read, group)
                yield _Step(packs[step], tables, [group for group in needed if last[group] == step])
            start += len(packs)

    def _read(self, group: int) -> pa.Table:
        shard, row_group = int(self._shards[group]), int(self._row_groups[group])
        return self.dataset.read_row_group(shard, row_group, _COLUMNS)

    def _collate(self, pack: Integers, tables: _Tables) -> Batch:
        groups = self.dataset.groups[pack].tolist()
        samples = [
            self._sample(tables[group].result(), row)
            for group, row in zip(groups, self._rows[pack].tolist(), strict=True)
        ]
        num_tokens = sum(len(sample.input_ids) for sample in samples)
        ids = tuple(sample.id for sample in samples)
        if not any(sample.pixels for sample in samples):
            # Every rank must run the tower in every forward pass, or ZeRO-3 waits for ever.
            samples.append(self._blank())
        rows = [samples] if self.packing else [[sample] for sample in samples]
        return collate(rows, self.dataset, sample_ids=ids, num_tokens=num_tokens)

    def _sample(self, table: pa.Table, row: int) -> _Sample:
        labels = table.column("labels")[row].values.to_numpy().astype(np.int64)
        return _Sample(
            id=table.column("id")[row].as_py(),
            input_ids=table.column("input_ids")[row].values.to_numpy().astype(np.int64),
            targets=np.append(labels[1:], IGNORE_INDEX),
            pixels=[self._pixels(image) for image in table.column("pixels")[row]],
        )

    def _pixels(self, image: pa.BinaryScalar) -> Pixels:
        if self.dataset.manifest["store_images"] == "original":
            return to_pixels(image.as_py(), self.dataset.images)
        size = self.dataset.images.size
        return np.frombuffer(image.as_buffer(), dtype=np.uint8).reshape(size, size, 3)  # no copy

    def _blank(self) -> _Sample:
        size, count = self.dataset.images.size, self.dataset.num_image_tokens
        image_token = int(self.dataset.manifest["image_token_id"])
        return _Sample(
            id="",
            input_ids=np.full(count, image_token),
            targets=np.full(count, IGNORE_INDEX),
            pixels=[np.zeros((size, size, 3), dtype=np.uint8)],
        )


def collate(
    rows: Sequence[Sequence[_Sample]],
    dataset: PreparedDataset,
    *,
    sample_ids: tuple[str, ...],
    num_tokens: int,
) -> Batch:
    """Join samples to rows, padded on the right to the longest, where no token attends to it."""
    length = max(sum(len(sample.input_ids) for sample in row) for row in rows)
    input_ids = np.full((len(rows), length), int(dataset.manifest["pad_token_id"]), dtype=np.int64)
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
        pixel_values=torch.from_numpy(normalize(pixels, dataset.images)),
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
