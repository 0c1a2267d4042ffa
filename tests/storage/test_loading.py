"""A rank's batches: what the order says, with the contents the shards hold, and no more memory."""

import io
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from aiobotocore.client import AioBaseClient
from botocore.client import BaseClient
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from llavamed.data.feed import loader
from llavamed.data.feed.loader import READ_AHEAD_STEPS, READ_THREADS, Batch
from llavamed.data.feed.order import WINDOW_ROW_GROUPS, StageOrder
from llavamed.data.feed.packing import Integers
from llavamed.data.prepared.dataset import PreparedDataset, shard_name
from llavamed.data.record import SHARD_SCHEMA
from llavamed.errors import DataError, StorageError
from llavamed.processor.images import from_planes, normalize_pixels
from llavamed.processor.turns import IGNORE_INDEX
from llavamed.storage.location import Location, locate
from tests.support.samples_held import SamplesHeld
from tests.support.small_datasets import (
    IMAGE_TOKEN,
    IMAGES,
    NUM_IMAGE_TOKENS,
    PAD_TOKEN,
    SIZE,
    Prepared,
    prepare,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(str(tmp_path_factory.mktemp("prepared") / "figures"), 330)


def check_contents(batch: Batch, rows: list[dict[str, Any]], *, packing: bool) -> None:
    """The batch holds these samples, each in its place, and nothing that trains beside them."""
    assert batch.sample_ids == tuple(row["id"] for row in rows)
    assert batch.num_tokens == sum(len(row["input_ids"]) for row in rows)
    rest_is_trained = batch.targets != IGNORE_INDEX
    start = 0
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        place = (0, slice(start, start + length)) if packing else (number, slice(length))
        start += length
        assert batch.input_ids[place].tolist() == row["input_ids"]
        assert batch.targets[place].tolist() == [*row["labels"][1:], IGNORE_INDEX]
        assert batch.position_ids[place].tolist() == list(range(length))
        rest_is_trained[place] = False
    assert not rest_is_trained.any()
    raw = [pixels for row in rows for pixels in row["pixels"]] or [bytes(SIZE * SIZE)]
    pixels = [from_planes(image, SIZE) for image in raw]
    np.testing.assert_array_equal(batch.pixel_values.numpy(), normalize_pixels(pixels, IMAGES))
    assert batch.pixel_values.dtype == torch.float32
    assert (batch.input_ids == IMAGE_TOKEN).sum() == NUM_IMAGE_TOKENS * len(raw)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_the_ranks_together_get_the_samples_of_every_step(
    prepared: Prepared, world_size: int, packing: bool
) -> None:
    order = prepared.order(packing=packing)
    for rank in range(world_size):
        loader = prepared.loader(order, rank=rank, world_size=world_size, packing=packing)
        steps = list(loader.steps())
        assert len(steps) == order.num_steps
        for step, batches in enumerate(steps):
            packs = order.samples(step)[rank::world_size]
            for batch, pack in zip(batches, packs, strict=True):
                check_contents(batch, [prepared.rows[i] for i in pack.tolist()], packing=packing)


def test_original_images_are_decoded_to_the_same_pixels(tmp_path: Path) -> None:
    prepared = prepare(str(tmp_path / "originals"), 60, encoded=True)
    order = prepared.order(num_epochs=1)
    for step, batches in enumerate(prepared.loader(order).steps()):
        for batch, pack in zip(batches, order.samples(step), strict=True):
            check_contents(batch, [prepared.rows[i] for i in pack.tolist()], packing=True)


def test_without_packing_rows_are_padded_on_the_right(prepared: Prepared) -> None:
    order = prepared.order(packing=False)
    batch = next(prepared.loader(order, packing=False).steps())[0]
    lengths = [len(prepared.rows[i]["input_ids"]) for i in order.samples(0)[0]]
    assert batch.input_ids.shape == (3, max(lengths))
    for number, length in enumerate(lengths):
        assert set(batch.input_ids[number, length:].tolist()) <= {PAD_TOKEN}
        assert batch.position_ids[number].tolist() == list(range(max(lengths)))


@pytest.mark.parametrize("start", [1, 9, 13, "epoch", "last"])
def test_a_resumed_stage_gets_exactly_the_rest(prepared: Prepared, start: int | str) -> None:
    order = prepared.order()
    first = {"epoch": order.epochs[0].num_steps, "last": order.num_steps - 1}.get(start, start)
    loader = prepared.loader(order, rank=1, world_size=2)
    whole = [[batch.sample_ids for batch in batches] for batches in loader.steps()]
    rest = [[batch.sample_ids for batch in batches] for batches in loader.steps(first)]
    assert rest == whole[first:]


def test_a_stage_of_max_steps_ends_inside_an_epoch(prepared: Prepared) -> None:
    whole = prepared.order(num_epochs=1)
    cut = StageOrder(whole.epochs, num_steps=3)
    assert len(list(prepared.loader(cut).steps())) == 3


def test_an_empty_pack_is_one_blank_image_that_trains_nothing(tmp_path: Path) -> None:
    prepared = prepare(str(tmp_path / "few"), 5)
    order = prepared.order(num_epochs=1)
    (batches,) = prepared.loader(order).steps()
    empty = [batch for batch in batches if not batch.sample_ids]
    assert len(empty) >= 3
    for batch in empty:
        check_contents(batch, [], packing=True)
        assert batch.input_ids.tolist() == [[IMAGE_TOKEN] * NUM_IMAGE_TOKENS]


def test_a_rank_without_any_sample_keeps_step(tmp_path: Path) -> None:
    prepared = prepare(str(tmp_path / "few"), 5)
    order = prepared.order(num_epochs=2)
    idle = [rank for rank in range(8) if not len(order.samples(0)[rank])]
    for rank in idle:
        steps = list(prepared.loader(order, rank=rank, world_size=8).steps())
        assert [[batch.sample_ids for batch in batches] for batches in steps] == [[()], [()]]
    assert len(idle) >= 3


@pytest.mark.parametrize("packing", [True, False])
def test_samples_without_images_get_a_blank_one(tmp_path: Path, packing: bool) -> None:
    prepared = prepare(str(tmp_path / "text"), 60, num_images=(0,))
    order = prepared.order(packing=packing, num_epochs=1)
    for batch in next(prepared.loader(order, packing=packing).steps()):
        rows = [row for row in prepared.rows if row["id"] in batch.sample_ids]
        rows.sort(key=lambda row: batch.sample_ids.index(row["id"]))
        check_contents(batch, rows, packing=packing)
        last = batch.input_ids[-1, -NUM_IMAGE_TOKENS:] if packing else batch.input_ids[-1, :4]
        assert last.tolist() == [IMAGE_TOKEN] * NUM_IMAGE_TOKENS


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    prepared = prepare(str(tmp_path / "figures"), 330)
    (tmp_path / "figures" / shard_name(3)).unlink()
    with pytest.raises(DataError, match=r"000003\.parquet: shard 3 of dataset figures is missing"):
        list(prepared.loader(prepared.order()).steps())


@pytest.mark.parametrize("damage", ["truncated", "emptied", "one bit", "header", "footer"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    prepared = prepare(str(tmp_path / "figures"), 330)
    shard = tmp_path / "figures" / shard_name(3)
    data = bytearray(shard.read_bytes())
    column = pq.ParquetFile(shard).metadata.row_group(2).column(1)  # pixels
    page = column.dictionary_page_offset or column.data_page_offset
    data = {
        "truncated": data[: len(data) // 2],
        "emptied": data[:0],
        "one bit": data[: page + 300] + bytes([data[page + 300] ^ 1]) + data[page + 301 :],
        "header": data[:page] + bytes(8) + data[page + 8 :],
        "footer": data[:-300] + bytes(250) + data[-50:],
    }[damage]
    shard.write_bytes(data)
    message = r"000003\.parquet: shard 3 of dataset figures is damaged \(.+\); prepare the dataset"
    with pytest.raises(DataError, match=message):
        list(prepared.loader(prepared.order()).steps())


class BrokenStore(LocalFileSystem):
    """A store that opens a file and then fails to read it."""

    cachable = False
    protocol = "broken"

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def open(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
        file = io.BytesIO(Path(path).read_bytes())
        file.read = self._fail  # type: ignore[method-assign]
        file.readinto = self._fail  # type: ignore[method-assign]
        return file

    def _fail(self, *_: Any) -> bytes:
        raise self.error


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), TimeoutError("no answer")])
def test_a_store_that_fails_is_not_called_a_damaged_shard(
    prepared: Prepared, error: OSError
) -> None:
    location = Location(BrokenStore(error), prepared.dataset.location.path)
    with pytest.raises(StorageError, match=re.escape(f"read it: {type(error).__name__}: {error}")):
        PreparedDataset(location, {}).read_row_group(0, 0, ["id"])


def test_a_disk_that_fails_is_not_called_a_damaged_shard(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = BrokenStore(OSError(5, "Input/output error"))
    monkeypatch.setattr(pa, "OSFile", broken.open)
    with pytest.raises(StorageError, match=r"read it: OSError: .*Input/output error"):
        prepared.dataset.read_row_group(0, 0, ["id"])


def wait_for_threads_to_end(before: set[threading.Thread]) -> None:
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not set(threading.enumerate()) - before


def test_nothing_else_is_read_before_the_first_batch_is_made(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of later steps would take their time from it, a fifth of a second on one processor."""
    order = prepared.order(num_lanes=1, packing=False)
    groups = prepared.dataset.groups
    wanted = {int(group) for group in groups[order.samples(0)[0]]}
    loader = prepared.loader(order, packing=False)
    asked: set[int] = set()
    asked_before_pixels: list[set[int]] = []
    read, pixels = loader.read, PreparedDataset.pixels

    def counted_read(samples: Integers) -> Any:
        asked.add(int(groups[samples[0]]))
        time.sleep(0.1)  # in which the other threads begin what they have been given
        return read(samples)

    def noted_pixels(dataset: PreparedDataset, stored: pa.Buffer) -> Any:
        asked_before_pixels.append(set(asked))
        return pixels(dataset, stored)

    loader.read = counted_read  # type: ignore[method-assign]
    monkeypatch.setattr(PreparedDataset, "pixels", noted_pixels)
    steps = loader.steps()
    next(steps)
    steps.close()
    assert asked_before_pixels[0] == wanted


def test_threads_end_when_the_consumer_stops(prepared: Prepared) -> None:
    before = set(threading.enumerate())
    steps = prepared.loader(prepared.order()).steps()
    next(steps)
    assert {"loader"} <= {thread.name for thread in set(threading.enumerate()) - before}
    steps.close()
    wait_for_threads_to_end(before)


def test_an_error_while_reading_reaches_the_consumer_at_its_step(prepared: Prepared) -> None:
    before = set(threading.enumerate())
    order = prepared.order(num_lanes=1, num_epochs=1)
    loader = prepared.loader(order)
    broken = int(prepared.dataset.groups[order.samples(order.num_steps - 1)[0][0]])
    read = loader.read

    def read_or_fail(samples: Integers) -> Any:
        if broken in prepared.dataset.groups[samples]:
            raise MemoryError("no room for the row group")
        return read(samples)

    loader.read = read_or_fail  # type: ignore[method-assign]
    taken: list[list[Batch]] = []
    with pytest.raises(MemoryError, match="no room for the row group"):
        taken.extend(loader.steps())
    assert len(taken) > order.num_steps // 2
    wait_for_threads_to_end(before)


@pytest.mark.parametrize("num_samples", [1500, 4500])
def test_samples_held_are_those_of_a_window_a_lane(tmp_path: Path, num_samples: int) -> None:
    prepared = prepare(str(tmp_path / "figures"), num_samples, num_images=(0,))
    loader = prepared.loader(prepared.order(num_lanes=2))
    held = SamplesHeld(loader)
    for _ in loader.steps():
        pass
    assert held.now == 0
    window = WINDOW_ROW_GROUPS * 8  # samples
    ahead = (READ_AHEAD_STEPS + 1) * 16  # steps may reach into the next window
    assert held.most <= 2 * (window + ahead)


@pytest.mark.parametrize("num_samples", [500, 1500])
def test_row_groups_held_are_those_of_two_windows_a_lane(tmp_path: Path, num_samples: int) -> None:
    """A row group stays until its last sample is used, while the next window is read."""
    prepared = prepare(str(tmp_path / "figures"), num_samples, num_images=(20,))
    rows = prepared.rows[:8]
    group = sum(len(image) for row in rows for image in row["pixels"])
    before, most = pa.total_allocated_bytes(), 0
    for (batch,) in prepared.loader(prepared.order(num_lanes=1, num_epochs=1)).steps():
        used = pa.total_allocated_bytes() - before - 4 * batch.pixel_values.numel()
        most = max(most, used)
    ahead = READ_AHEAD_STEPS + READ_THREADS
    assert group < most <= (2 * WINDOW_ROW_GROUPS + ahead) * group


@given(
    rows=st.lists(st.lists(st.binary(max_size=5), max_size=3), max_size=9),
    cut=st.integers(0, 9),
    start=st.integers(0, 9),
)
def test_buffers_are_the_values_of_each_list(rows: list[list[bytes]], cut: int, start: int) -> None:
    values = pa.array(rows, pa.list_(pa.binary()))
    column = pa.chunked_array([values[:cut], values[cut:]]).slice(min(start, len(rows)))
    found = [[buffer.to_pybytes() for buffer in row] for row in loader._buffers(column)]
    assert found == column.to_pylist()


@given(
    rows=st.lists(st.lists(st.integers(-100, 2**31 - 1), max_size=4), max_size=9),
    cut=st.integers(0, 9),
    start=st.integers(0, 9),
)
def test_values_are_those_of_each_list(rows: list[list[int]], cut: int, start: int) -> None:
    values = pa.array(rows, pa.list_(pa.int32()))
    column = pa.chunked_array([values[:cut], values[cut:]]).slice(min(start, len(rows)))
    assert [found.tolist() for found in loader._values(column)] == column.to_pylist()


def test_it_reads_from_s3(s3_uri: str) -> None:
    prepared = prepare(f"{s3_uri}/loading/figures", 120)
    order = prepared.order(num_epochs=1)
    for step, batches in enumerate(prepared.loader(order).steps()):
        for batch, pack in zip(batches, order.samples(step), strict=True):
            check_contents(batch, [prepared.rows[i] for i in pack.tolist()], packing=True)


def test_of_a_shard_on_s3_only_the_row_group_is_fetched(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object store bills and waits for every byte that is read ahead and thrown away."""
    place = locate(f"{s3_uri}/loading/large")
    pixels = np.random.default_rng(0).integers(0, 256, size=(8, 500_000), dtype=np.uint8)
    rows = [{"id": str(i), "pixels": [image.tobytes()]} for i, image in enumerate(pixels)]
    (place / shard_name(0)).write_table(pa.Table.from_pylist(rows, SHARD_SCHEMA), row_group_size=1)
    fetched: list[int] = []

    def count(client: type, method: str) -> None:
        call = getattr(client, method)

        def counted_call(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
            asked = arguments.get("Range", "bytes=0-0").removeprefix("bytes=").partition("-")
            fetched.append(int(asked[2]) + 1 - int(asked[0]))
            return call(self, operation, arguments)

        monkeypatch.setattr(client, method, counted_call)

    for client in (BaseClient, AioBaseClient):  # that of ranges, and that of s3fs
        count(client, "_make_api_call")
    dataset = PreparedDataset(place, {})
    for number, num_bytes in ((2, 700_000), (5, 501_000)):  # the footer is not read again
        fetched.clear()
        table = dataset.read_row_group(0, number, ["id", "pixels"])
        assert table.column("pixels")[0].as_py() == rows[number]["pixels"]
        assert 500_000 < sum(fetched) < num_bytes
    assert len(fetched) == 1  # nor is the size of the shard asked for
