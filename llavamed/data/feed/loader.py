"""While training: a rank's steps -> batches, by Arrow reads ahead of use. Needs no Ray.

The order says which samples a rank needs and when; their row groups are read a few steps ahead by
threads, and each sample is kept until its step. On average that is half a shuffle window a lane:
memory is bounded by the lanes, not by the data. Shapes: R rows (samples, or one pack), T tokens, I
images of S x S pixels.
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

from llavamed.data.feed.order import EpochOrder, StageOrder
from llavamed.data.feed.packing import Integers
from llavamed.data.prepared.mixture import Mixture
from llavamed.processor.images import Pixels, normalize
from llavamed.processor.turns import IGNORE_INDEX

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
    images: list[bytes]  # as stored; its own copy, which does not keep its row group in memory


_Reads = dict[int, Future[dict[int, _Sample]]]
"""By visit, the samples of a row group that are still to come, by their position in the index."""


@dataclass(frozen=True)
class _Pack:
    samples: Integers
    visits: Integers  # for each sample, which visit reads its row group


@dataclass(frozen=True)
class _Step:
    packs: list[_Pack]  # one for each of the rank's lanes
    reads: _Reads  # being read or held, of the whole epoch


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
                yield [self._collate(pack, step.reads) for pack in step.packs]
        finally:
            readers.shutdown(cancel_futures=True)

    def _start_reads(self, start: int, readers: ThreadPoolExecutor) -> Iterator[_Step]:
        """The steps from `start`; a step's row groups are being read once it is taken."""
        while start < self.order.num_steps:
            place = self.order.position(start)
            epoch = self.order.epochs[place.epoch]
            stop = min(epoch.num_steps, place.step + self.order.num_steps - start)
            steps = range(place.step, stop)
            wanted = _by_visit(epoch, [epoch.places(n, step) for step in steps for n in self.lanes])
            reads: _Reads = {}
            for step in steps:
                packs = [self._pack(epoch, lane, step) for lane in self.lanes]
                for visit in np.unique(np.concatenate([pack.visits for pack in packs])).tolist():
                    if visit in wanted:
                        reads[visit] = readers.submit(self._read, wanted.pop(visit))
                yield _Step(packs, reads)
            start += len(steps)

    def _pack(self, epoch: EpochOrder, lane: int, step: int) -> _Pack:
        places = epoch.places(lane, step)
        return _Pack(epoch.samples[places], epoch.visits[places])

    def _read(self, samples: Integers) -> dict[int, _Sample]:
        """Read a row group and keep these of its samples."""
        table = self.data.read_group(int(self.data.groups[samples[0]]), _COLUMNS)
        ids, images = table.column("id"), table.column("pixels")
        input_ids, lengths = _flat(table.column("input_ids"))
        labels, _ = _flat(table.column("labels"))
        ends = np.cumsum(lengths)
        targets = np.roll(labels, -1)
        targets[ends[lengths > 0] - 1] = IGNORE_INDEX
        parts = [np.split(values, ends[:-1]) for values in (input_ids, targets)]
        return {
            sample: _Sample(
                id=ids[row].as_py(),
                input_ids=parts[0][row],
                targets=parts[1][row],
                images=images[row].as_py(),
            )
            for sample, row in zip(samples.tolist(), self._rows[samples].tolist(), strict=True)
        }

    def _collate(self, pack: _Pack, reads: _Reads) -> Batch:
        samples = []
        for sample, visit in zip(pack.samples.tolist(), pack.visits.tolist(), strict=True):
            coming = reads[visit].result()
            samples.append(coming.pop(sample))
            if not coming:
                del reads[visit]
        num_tokens = sum(len(sample.input_ids) for sample in samples)
        ids = tuple(sample.id for sample in samples)
        images = [self.data.pixels(image) for sample in samples for image in sample.images]
        if not images:
            # Every rank must run the tower in every forward pass, or ZeRO-3 waits for ever.
            size = self.data.images.size
            images = [np.zeros((size, size, 3), dtype=np.uint8)]
            samples.append(self._blank())
        rows = [samples] if self.packing else [[sample] for sample in samples]
        return collate(rows, images, self.data, sample_ids=ids, num_tokens=num_tokens)

    def _blank(self) -> _Sample:
        """The tokens of an image, which train nothing."""
        count = self.data.num_image_tokens
        return _Sample(
            id="",
            input_ids=np.full(count, self.data.image_token_id),
            targets=np.full(count, IGNORE_INDEX),
            images=[],
        )


def _by_visit(epoch: EpochOrder, packs: list[Integers]) -> dict[int, Integers]:
    """The samples of these packs, each an array of places, by the visit that reads them."""
    places = np.concatenate(packs)
    in_order = places[np.argsort(epoch.visits[places], kind="stable")]
    numbers, first = np.unique(epoch.visits[in_order], return_index=True)
    samples = np.split(epoch.samples[in_order], first)[1:]
    return dict(zip(numbers.tolist(), samples, strict=True))


def _flat(column: pa.ChunkedArray) -> tuple[Integers, Integers]:
    """The values of a column's lists, one after another, and the lists' lengths."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy()
    return lists.flatten().to_numpy().astype(np.int64), lengths.astype(np.int64)


def collate(
    rows: Sequence[Sequence[_Sample]],
    images: Sequence[Pixels],
    data: Mixture,
    *,
    sample_ids: tuple[str, ...],
    num_tokens: int,
) -> Batch:
    """Join samples to rows, padded on the right to the longest, where no token attends to it.

    `images` are those of all samples, in their order.
    """
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
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        position_ids=torch.from_numpy(position_ids),
        pixel_values=torch.from_numpy(normalize(images, data.images)),
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
