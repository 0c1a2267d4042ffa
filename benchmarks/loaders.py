"""The loaders that are compared: each makes the same batches of the same samples, shuffled alike.

Ours shuffles whole row groups over the epoch and samples within 8 of them, 512 samples; so does
the torch `DataLoader` here. webdataset, Hugging Face's streams and Ray Data shuffle files and then
a buffer of 512 samples. All normalise by the same function and pad to the longest of 16 samples.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pandas  # noqa: F401  pyarrow imports it on first use, and imports are not what is timed
import pyarrow as pa
import pyarrow.dataset  # the same
import pyarrow.parquet as pq
import torch
import webdataset as wds

from llavamed.data.feed.loader import StageLoader
from llavamed.data.feed.order import WINDOW_ROW_GROUPS, order_stage
from llavamed.data.prepared.dataset import PreparedDataset, open_prepared
from llavamed.data.prepared.mixture import Mixture
from llavamed.processor.images import from_planes, normalize_pixels
from llavamed.processor.turns import IGNORE_INDEX
from llavamed.storage.location import locate

BATCH = 16
BUFFER = 512
COLUMNS = ["pixels", "input_ids", "labels"]

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""input_ids [B, T] int64, targets [B, T] int64, pixel_values [B, 3, S, S] float32."""
Sample = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.uint8]]
"""input_ids, labels, pixels [S, S, 3]."""


class Collate:
    """Collate samples into tensors in the same way for every peer."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self.images = dataset.images
        self.pad_token = dataset.manifest.pad_token_id

    def __call__(self, samples: Sequence[Sample]) -> Tensors:
        """Pad on the right and normalize."""
        length = max(len(input_ids) for input_ids, _, _ in samples)
        input_ids = np.full((len(samples), length), self.pad_token, dtype=np.int64)
        targets = np.full((len(samples), length), IGNORE_INDEX, dtype=np.int64)
        for number, (ids, labels, _) in enumerate(samples):
            input_ids[number, : len(ids)] = ids
            targets[number, : len(labels) - 1] = labels[1:]
        return (
            torch.from_numpy(input_ids),
            torch.from_numpy(targets),
            torch.from_numpy(normalize_pixels([image for _, _, image in samples], self.images)),
        )

    def sample(self, input_ids: Any, labels: Any, pixels: Any) -> Sample:
        """Return a sample of raw columns."""
        return np.asarray(input_ids), np.asarray(labels), from_planes(pixels, self.images.size)

    def samples(self, table: pa.Table) -> list[Sample]:
        """Return all samples of a table, without an object for each token or a copy of pixels."""
        columns = {name: table.column(name).combine_chunks() for name in COLUMNS}
        lists = [columns[name] for name in ("input_ids", "labels")]
        parts = [
            np.split(c.flatten().to_numpy(), c.value_lengths().to_numpy().cumsum()[:-1])
            for c in lists
        ]
        pixels = columns["pixels"].flatten()
        return [
            self.sample(ids, labels, pixels[number].as_buffer())
            for number, (ids, labels) in enumerate(zip(*parts, strict=True))
        ]


def ours(folder: Path) -> Iterator[Tensors]:
    """Load with `StageLoader`, as one worker with one lane."""
    data = Mixture((open_prepared(locate(str(folder / "prepared"))),))
    groups = data.groups
    order = order_stage(
        groups, np.ones_like(groups), seed=0, num_lanes=1, capacity=BATCH, num_epochs=1
    )
    for (batch,) in StageLoader(data, order, rank=0, world_size=1, packing=False).steps():
        yield batch.input_ids, batch.targets, batch.pixel_values


class _RowGroups(torch.utils.data.Dataset[Sample]):
    """A map-style dataset, which keeps the row groups that were used last."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self.collate = Collate(dataset)
        self.folder = Path(dataset.location.path) / "shards"
        self.shards = sorted(self.folder.iterdir())
        self.places = [
            (int(s), int(g), int(r))
            for s, g, r in zip(
                *(dataset.column(name) for name in ("shard", "row_group", "row")), strict=True
            )
        ]
        self.read = lru_cache(WINDOW_ROW_GROUPS + 1)(self._read)

    def _read(self, shard: int, row_group: int) -> list[Sample]:
        with pq.ParquetFile(self.shards[shard], page_checksum_verification=True) as file:
            return self.collate.samples(file.read_row_group(row_group, columns=COLUMNS))

    def __getitem__(self, number: int) -> Sample:
        shard, row_group, row = self.places[number]
        return self.read(shard, row_group)[row]


def _window_batches(groups: npt.NDArray[np.int64], num_streams: int) -> list[list[int]]:
    """Batches of windows of 8 row groups; streams take turns, so that each worker has its own."""
    random = np.random.default_rng(0)
    order = random.permutation(np.unique(groups))
    streams: list[list[list[int]]] = []
    for mine in np.array_split(order, num_streams):
        samples = [
            random.permutation(np.flatnonzero(np.isin(groups, mine[i : i + WINDOW_ROW_GROUPS])))
            for i in range(0, len(mine), WINDOW_ROW_GROUPS)
        ]
        together = np.concatenate(samples).tolist()
        streams.append([together[i : i + BATCH] for i in range(0, len(together), BATCH)])
    longest = max(len(stream) for stream in streams)
    return [stream[i] for i in range(longest) for stream in streams if i < len(stream)]


def torch_loader(folder: Path, num_workers: int) -> Iterator[Tensors]:
    """`DataLoader` over the row groups of the same shards, whose checksums it verifies as ours."""
    dataset = open_prepared(locate(str(folder / "prepared")))
    yield from torch.utils.data.DataLoader(
        _RowGroups(dataset),
        batch_sampler=_window_batches(dataset.groups, max(1, num_workers)),
        collate_fn=Collate(dataset),
        num_workers=num_workers,
    )


def webdataset(folder: Path) -> Iterator[Tensors]:
    """Tars of raw pixels and JSON."""
    collate = Collate(open_prepared(locate(str(folder / "prepared"))))

    def decode(entry: dict[str, Any]) -> Sample:
        tokens = json.loads(entry["json"])
        return collate.sample(tokens["input_ids"], tokens["labels"], entry["pixels"])

    tars = sorted(str(path) for path in (folder / "tars").iterdir())
    yield from (
        wds.WebDataset(tars, shardshuffle=len(tars), seed=0)
        .shuffle(BUFFER)
        .map(decode)
        .batched(BATCH, collation_fn=collate)
    )


def hf_stream(folder: Path) -> Iterator[Tensors]:
    """Hugging Face datasets, streaming the same Parquet files through a shuffle buffer."""
    collate = Collate(open_prepared(locate(str(folder / "prepared"))))
    stream = datasets.load_dataset(
        "parquet", data_files=_shards(folder), split="train", streaming=True, columns=COLUMNS
    )
    rows = stream.shuffle(seed=0, buffer_size=BUFFER).with_format("numpy")
    for rows_of_batch in rows.iter(BATCH):
        yield collate(
            [
                collate.sample(ids, labels, images[0])
                for images, ids, labels in zip(*(rows_of_batch[c] for c in COLUMNS), strict=True)
            ]
        )


def hf_map(folder: Path) -> Iterator[Tensors]:
    """Hugging Face datasets, memory-mapped: any sample at any time, uncompressed on disk."""
    collate = Collate(open_prepared(locate(str(folder / "prepared"))))
    rows = convert_for_hf(folder).shuffle(seed=0).with_format("arrow")
    for start in range(0, len(rows), BATCH):
        yield collate(collate.samples(rows[start : start + BATCH]))


def convert_for_hf(folder: Path) -> Any:
    """The memory-mapped copy of the shards; made on first use, which is not measured."""
    return datasets.load_dataset(
        "parquet",
        data_files=_shards(folder),
        split="train",
        columns=COLUMNS,
        cache_dir=str(folder / "hf"),
    )


def ray_data(folder: Path) -> Iterator[Tensors]:
    """Ray Data's `iter_torch_batches` over the same shards; Ray is already running."""
    import ray

    collate = Collate(open_prepared(locate(str(folder / "prepared"))))

    def to_tensors(columns: dict[str, Any]) -> Tensors:
        return collate(
            [
                collate.sample(ids, labels, images[0])
                for images, ids, labels in zip(*(columns[c] for c in COLUMNS), strict=True)
            ]
        )

    yield from ray.data.read_parquet(
        _shards(folder), columns=COLUMNS, shuffle="files"
    ).iter_torch_batches(
        batch_size=BATCH,
        local_shuffle_buffer_size=BUFFER,
        collate_fn=to_tensors,
        prefetch_batches=2,
    )


def _shards(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "prepared" / "shards").iterdir())


MAPPED = "HF datasets, memory-mapped"
LOADERS: dict[str, Callable[[Path], Iterator[Tensors]]] = {
    "ours": ours,
    "torch DataLoader, 0 workers": lambda folder: torch_loader(folder, 0),
    "torch DataLoader, 2 workers": lambda folder: torch_loader(folder, 2),
    "webdataset": webdataset,
    "HF datasets, streaming": hf_stream,
    MAPPED: hf_map,
    "Ray Data": ray_data,
}
