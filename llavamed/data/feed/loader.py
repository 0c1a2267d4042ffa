"""Load the batches of one rank during training. This needs no Ray.

The order says which samples a rank needs at which step. Threads read their row groups a few steps
ahead, and a row group stays in memory until the step of its last sample, which is about one
shuffle window per lane. So memory grows with the number of lanes and not with the data. Shapes: R
rows (samples, or one pack), T tokens, I images in N tiles of S x S pixels; without tiling, N is I.
"""

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from llavamed.data.feed.order import EpochOrder, StageOrder
from llavamed.data.feed.packing import Integers
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import DataError
from llavamed.processor.image_files import Pixels
from llavamed.processor.images import model_inputs
from llavamed.processor.turns import IGNORE_INDEX

READ_AHEAD_STEPS = 4
READ_THREADS = 4
_COLUMNS = ["id", "pixels", "input_ids", "labels"]
_TENSORS = ("input_ids", "targets", "supervised", "position_ids", "pixel_values")
"""The tensors of a batch."""
_Tokens = npt.NDArray[np.int32 | np.int64]
"""The tokens of a sample as its shard stores them, or those of a blank image."""


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward pass.

    `targets[r, t]` is the token that position t of row r must predict, or `IGNORE_INDEX` where
    nothing is trained; `supervised` holds the t where some row is trained, or else the first.
    `position_ids` restart at 0 with each sample of a pack. They or
    `sample_lengths`, which count the padding of a row to its last sample, keep the samples apart.
    """

    input_ids: torch.Tensor  # [R, T] int64
    targets: torch.Tensor  # [R, T] int64
    supervised: torch.Tensor  # [columns] int64, ascending
    position_ids: torch.Tensor  # [R, T] int64
    sample_lengths: tuple[tuple[int, ...], ...]  # of each row, T in all
    pixel_values: torch.Tensor  # [N, 3, S, S] float32
    image_sizes: torch.Tensor  # [I, 2] int64, height and width; on the CPU, where models read it
    sample_ids: tuple[str, ...]
    num_tokens: int  # without padding and blank images

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on a device."""
        return replace(
            self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        )

    def pinned(self) -> "Batch":
        """Return the same batch in pinned memory, from which a GPU copies asynchronously."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})


@dataclass(slots=True, weakref_slot=True)
class _Sample:
    """A sample as its shard stores it: views of the row group, since a copy needs new memory."""

    id: str
    input_ids: _Tokens
    labels: _Tokens
    images: list[pa.Buffer]


_Reads = dict[int, Future[dict[int, _Sample]]]
"""By visit, the samples of a row group that are still needed, by their position in the index."""


@dataclass(frozen=True)
class _Pack:
    samples: Integers
    visits: Integers  # for each sample, which visit reads its row group


@dataclass(frozen=True)
class _Step:
    packs: list[_Pack]  # one for each of the rank's lanes
    reads: _Reads  # all reads of the epoch that are running or not used up


class StageLoader:
    """Yields the batches of one rank, starting at any step."""

    def __init__(
        self,
        data: Mixture,
        order: StageOrder,
        *,
        rank: int,
        world_size: int,
        packing: bool,
        row_tokens: int = 0,
        pins: bool = False,
    ) -> None:
        """Set up the loader of one rank.

        Args:
            packing: Whether the samples of a pass make one row, or one row each.
            row_tokens: Minimum number of tokens of a row, to which it is padded.
            pins: Whether batches are in pinned memory, which needs CUDA.
        """
        self.data = data
        self.order = order
        self.packing = packing
        self._row_tokens = row_tokens
        self._pins = pins
        num_lanes = len(order.epochs[0].lanes)
        # If the lanes are not a multiple of the ranks, some ranks get one more that is always
        # empty.
        self.lanes = range(rank, num_lanes + -num_lanes % world_size, world_size)
        self._rows = data.column("row")

    def steps(self, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each step from `start` to the last; a thread prepares them ahead."""
        return _ahead(self._steps(start), depth=2)

    def _steps(self, start: int) -> Generator[list[Batch], None, None]:
        readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="reader")
        try:
            coming = self._start_reads(start, readers)
            # The first step comes alone, because other reads would take time from it.
            ahead = deque(islice(coming, 1))
            while ahead:
                step = ahead.popleft()
                batches = [self._collate(pack, step.reads) for pack in step.packs]
                yield [batch.pinned() for batch in batches] if self._pins else batches
                ahead.extend(islice(coming, READ_AHEAD_STEPS + 1 - len(ahead)))
        finally:
            readers.shutdown(cancel_futures=True)

    def _start_reads(self, start: int, readers: ThreadPoolExecutor) -> Iterator[_Step]:
        """Yield the steps from `start` on, after starting to read the row groups of each."""
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
                        reads[visit] = readers.submit(self.read, wanted.pop(visit))
                yield _Step(packs, reads)
            start += len(steps)

    def _pack(self, epoch: EpochOrder, lane: int, step: int) -> _Pack:
        places = epoch.places(lane, step)
        return _Pack(epoch.samples[places], epoch.visits[places])

    def read(self, samples: Integers) -> dict[int, _Sample]:
        """Read a row group and return the wanted samples of it; `steps` calls it in threads.

        Args:
            samples: int64 positions in the index, all of one row group.
        """
        table = self.data.read_group(int(self.data.groups[samples[0]]), _COLUMNS)
        names, images = table.column("id").to_pylist(), _buffers(table.column("pixels"))
        input_ids, labels = (_values(table.column(name)) for name in ("input_ids", "labels"))
        rows = list(zip(names, input_ids, labels, images, strict=True))
        return {
            sample: _Sample(*rows[row])
            for sample, row in zip(samples.tolist(), self._rows[samples].tolist(), strict=True)
        }

    def _collate(self, pack: _Pack, reads: _Reads) -> Batch:
        visits = pack.visits.tolist()
        read = {visit: reads[visit].result() for visit in set(visits)}
        samples = [
            read[visit].pop(sample)
            for sample, visit in zip(pack.samples.tolist(), visits, strict=True)
        ]
        for visit, rest in read.items():
            if not rest:
                del reads[visit]
        num_tokens = sum(len(sample.input_ids) for sample in samples)
        ids = tuple(sample.id for sample in samples)
        images = [self.data.pixels(image) for sample in samples for image in sample.images]
        if not images:
            # Every rank must run the tower in every forward pass, or ZeRO-3 waits forever.
            size = self.data.images.size
            images = [np.zeros((size, size, 3), dtype=np.uint8)]
            samples.append(self._blank(self.data.tiling.num_tokens((size, size))))
        self._check_image_tokens(samples, images)
        rows = [samples] if self.packing else [[sample] for sample in samples]
        return collate(
            rows,
            images,
            self.data,
            sample_ids=ids,
            num_tokens=num_tokens,
            row_tokens=self._row_tokens,
        )

    def _check_image_tokens(self, samples: list[_Sample], images: list[Pixels]) -> None:
        """Raise DataError if the samples have places for more or fewer images."""
        tokens = np.concatenate([sample.input_ids for sample in samples])
        found = np.count_nonzero(tokens == self.data.image_token_id)
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        needed = sum(map(self.data.tiling.num_tokens, sizes))
        if found != needed:
            names = ", ".join(sample.id for sample in samples)
            raise DataError(
                f"samples=[{names}]: have {found} tokens of images, and {needed} are needed; "
                "prepare the dataset again under another name"
            )

    def _blank(self, count: int) -> _Sample:
        """Return the tokens of one blank image, none of which is trained."""
        return _Sample(
            id="",
            input_ids=np.full(count, self.data.image_token_id),
            labels=np.full(count, IGNORE_INDEX),
            images=[],
        )


def _by_visit(epoch: EpochOrder, packs: list[Integers]) -> dict[int, Integers]:
    """Return the samples of these packs (arrays of places) by the visit that reads them."""
    places = np.concatenate(packs)
    in_order = places[np.argsort(epoch.visits[places], kind="stable")]
    numbers, first = np.unique(epoch.visits[in_order], return_index=True)
    samples = np.split(epoch.samples[in_order], first)[1:]
    return dict(zip(numbers.tolist(), samples, strict=True))


def _values(column: pa.ChunkedArray) -> list[_Tokens]:
    """Return the values of each list of a column of lists of integers, without a copy."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy()
    ends = np.cumsum(lists.value_lengths().to_numpy()).tolist()
    return [values[start:end] for start, end in pairwise([0, *ends])]


def _buffers(column: pa.ChunkedArray) -> list[list[pa.Buffer]]:
    """Return the values of each list of a column of lists of binaries, without a copy."""
    found = []
    for lists in column.chunks:
        values = lists.flatten()
        _, offsets, data = values.buffers()
        bounds = np.frombuffer(offsets, dtype=np.int32)[values.offset :].tolist()
        parts = [data.slice(start, end - start) for start, end in pairwise(bounds)]
        ends = [0, *np.cumsum(lists.value_lengths()).tolist()]
        found += [parts[start:end] for start, end in pairwise(ends)]
    return found


def collate(
    rows: Sequence[Sequence[_Sample]],
    images: Sequence[Pixels],
    data: Mixture,
    *,
    sample_ids: tuple[str, ...],
    num_tokens: int,
    row_tokens: int = 0,
) -> Batch:
    """Collate samples into a batch whose rows are padded on the right to the longest row.

    Attention is causal, so no token sees the padding behind it.

    Args:
        rows: The samples of each row: several in a pack, otherwise one.
        images: The pixels of all samples, uint8, in their order.
        data: The datasets, for the padding token and the image settings.
        sample_ids: Ids of the samples, for error messages.
        num_tokens: Tokens of the samples, without padding and blank images.
        row_tokens: Tokens that rows have at least.
    """
    lengths = [[len(sample.input_ids) for sample in row] for row in rows]
    length = max(row_tokens, *map(sum, lengths))
    input_ids = np.full((len(rows), length), data.pad_token_id, dtype=np.int64)
    targets = np.full((len(rows), length), IGNORE_INDEX, dtype=np.int64)
    position_ids = np.empty((len(rows), length), dtype=np.int64)
    position_ids[:] = positions = np.arange(length)
    for number, row in enumerate(rows):
        start = 0
        for sample, count in zip(row, lengths[number], strict=True):
            stop = start + count
            input_ids[number, start:stop] = sample.input_ids
            targets[number, start : max(start, stop - 1)] = sample.labels[1:]
            if start:
                position_ids[number, start:stop] = positions[:count]
            start = stop
        lengths[number][-1] += length - start  # the padding
    pixel_values, image_sizes = model_inputs(images, data.images)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        supervised=torch.from_numpy(supervised_columns(targets)),
        position_ids=torch.from_numpy(position_ids),
        sample_lengths=tuple(map(tuple, lengths)),
        pixel_values=torch.from_numpy(pixel_values),
        image_sizes=torch.from_numpy(image_sizes),
        sample_ids=sample_ids,
        num_tokens=num_tokens,
    )


def supervised_columns(targets: Integers) -> Integers:
    """Return the columns of `targets` [R, T] in which a row is trained, or [0] without any.

    The batch holds them so that they need not be searched for on the device. There is always one,
    because all workers must make the same calls even for an empty pack.
    """
    columns = np.flatnonzero((targets != IGNORE_INDEX).any(axis=0))
    return columns if len(columns) else np.zeros(1, dtype=np.int64)


def _ahead(items: Generator[list[Batch], None, None], depth: int) -> Iterator[list[Batch]]:
    """Yield the same items, made up to `depth` ahead by a thread that ends after its consumer."""
    made: queue.SimpleQueue[list[Batch] | BaseException | None] = queue.SimpleQueue()
    room: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one True for each place, then False

    def run() -> None:
        try:
            with closing(items):
                while room.get():
                    made.put(item := next(items, None))
                    if item is None:
                        return
        except BaseException as error:
            made.put(error)

    for _ in range(depth):
        room.put(True)
    threading.Thread(target=run, name="loader", daemon=True).start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.put(True)
            yield item
    finally:
        room.put(False)
