"""The loaders that are compared: each makes the same batches of the same samples, shuffled alike.

Ours shuffles whole row groups over the epoch and samples within 8 of them, 512 samples; so does
the torch `DataLoader` here. webdataset, Hugging Face's streams and Ray Data shuffle files and then
a buffer of 512 samples; litdata shuffles its chunks and then a window of its own choice. All
normalise by the same function and pad to the longest of 16 samples.

Each loader takes a root, which is a local folder, or an `s3://` URI for those of `ON_S3`.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pandas  # noqa: F401  pyarrow imports it on first use, and imports are not what is timed
import pyarrow as pa
import pyarrow.dataset  # the same
import pyarrow.fs
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
        parts = []
        for name in ("input_ids", "labels"):
            values = columns[name].flatten().to_numpy()
            ends = columns[name].value_lengths().to_numpy().cumsum().tolist()
            # Not numpy.split, which takes several times as long.
            parts.append([values[start:end] for start, end in pairwise([0, *ends])])
        pixels = columns["pixels"].flatten()
        return [
            self.sample(ids, labels, pixels[number].as_buffer())
            for number, (ids, labels) in enumerate(zip(*parts, strict=True))
        ]


def ours(root: str) -> Iterator[Tensors]:
    """Load with `StageLoader`, as one worker with one lane."""
    data = Mixture((_prepared(root),))
    groups = data.groups
    order = order_stage(
        groups, np.ones_like(groups), seed=0, num_lanes=1, capacity=BATCH, num_epochs=1
    )
    for (batch,) in StageLoader(data, order, rank=0, world_size=1, packing=False).steps():
        yield batch.input_ids, batch.targets, batch.pixel_values


class _RowGroups(torch.utils.data.Dataset[Sample]):
    """A map-style dataset, which keeps the row groups that were used last.

    Arrow reads them, from S3 too, by its own client in C++. Footers are kept as ours are.
    """

    def __init__(self, dataset: PreparedDataset, root: str) -> None:
        self.collate = Collate(dataset)
        self.shards = _shards(root)
        self.files = _arrow_files(root)
        self.footers: dict[int, pq.FileMetaData] = {}
        self.places = [
            (int(s), int(g), int(r))
            for s, g, r in zip(
                *(dataset.column(name) for name in ("shard", "row_group", "row")), strict=True
            )
        ]
        self.read = lru_cache(WINDOW_ROW_GROUPS + 1)(self._read)

    def _read(self, shard: int, row_group: int) -> list[Sample]:
        with pq.ParquetFile(
            self.files.open_input_file(self.shards[shard]),
            metadata=self.footers.get(shard),
            pre_buffer=True,
            page_checksum_verification=True,
        ) as file:
            self.footers[shard] = file.metadata
            return self.collate.samples(file.read_row_group(row_group, columns=COLUMNS))

    def __getitem__(self, number: int) -> Sample:
        shard, row_group, row = self.places[number]
        return self.read(shard, row_group)[row]


def _window_batches(groups: npt.NDArray[np.int64], num_streams: int) -> list[list[int]]:
    """Return batches of windows of 8 row groups. Streams take turns: each worker has its own."""
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


def torch_loader(root: str, num_workers: int) -> Iterator[Tensors]:
    """Load with `DataLoader` over the row groups of the same shards, with checksums as ours."""
    dataset = _prepared(root)
    yield from torch.utils.data.DataLoader(
        _RowGroups(dataset, root),
        batch_sampler=_window_batches(dataset.groups, max(1, num_workers)),
        collate_fn=Collate(dataset),
        num_workers=num_workers,
    )


def webdataset(root: str) -> Iterator[Tensors]:
    """Load tars of raw pixels and JSON, which curl reads from S3, as webdataset does with URLs."""
    collate = Collate(_prepared(root))

    def decode(entry: dict[str, Any]) -> Sample:
        tokens = json.loads(entry["json"])
        return collate.sample(tokens["input_ids"], tokens["labels"], entry["pixels"])

    folder = locate(f"{root}/tars")
    tars = [str(folder / name) for name in folder.children()]
    if root.startswith("s3://"):
        tars = [tar.replace("s3:/", os.environ["AWS_ENDPOINT_URL"]) for tar in tars]
    yield from (
        wds.WebDataset(tars, shardshuffle=len(tars), seed=0)
        .shuffle(BUFFER)
        .map(decode)
        .batched(BATCH, collation_fn=collate)
    )


def litdata(root: str) -> Iterator[Tensors]:
    """Load litdata's chunks through a folder on the disk, which is empty at the start."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    # Its client takes servers without TLS only if it is told to, for which there is no setting.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    collate = Collate(_prepared(root))

    def decode(entry: dict[str, Any]) -> Sample:
        # Copied, because what it hands over is gone when its chunk is deleted.
        return collate.sample(
            entry["input_ids"].copy(), entry["labels"].copy(), bytes(entry["pixels"])
        )

    with tempfile.TemporaryDirectory() as cache:
        stream = StreamingDataset(
            f"{root}/litdata", cache_dir=cache, shuffle=True, seed=0, transform=decode
        )
        yield from StreamingDataLoader(stream, batch_size=BATCH, collate_fn=collate)


def hf_stream(root: str) -> Iterator[Tensors]:
    """Load with Hugging Face datasets, which streams the same files through a shuffle buffer."""
    collate = Collate(_prepared(root))
    shards = [f"s3://{name}" if root.startswith("s3://") else name for name in _shards(root)]
    stream = datasets.load_dataset(
        "parquet", data_files=shards, split="train", streaming=True, columns=COLUMNS
    )
    rows = stream.shuffle(seed=0, buffer_size=BUFFER).with_format("numpy")
    for rows_of_batch in rows.iter(BATCH):
        yield collate(
            [
                collate.sample(ids, labels, images[0])
                for images, ids, labels in zip(*(rows_of_batch[c] for c in COLUMNS), strict=True)
            ]
        )


def hf_map(root: str) -> Iterator[Tensors]:
    """Load with Hugging Face datasets from a memory-mapped, uncompressed copy on the disk."""
    collate = Collate(_prepared(root))
    rows = convert_for_hf(root).shuffle(seed=0).with_format("arrow")
    for start in range(0, len(rows), BATCH):
        yield collate(collate.samples(rows[start : start + BATCH]))


def convert_for_hf(root: str) -> Any:
    """Return the memory-mapped copy of the shards, made on first use, which is not measured."""
    return datasets.load_dataset(
        "parquet",
        data_files=_shards(root),
        split="train",
        columns=COLUMNS,
        cache_dir=f"{root}/hf",
    )


def ray_data(root: str) -> Iterator[Tensors]:
    """Load with Ray Data's `iter_torch_batches` over the same shards; Ray is already running."""
    import ray

    collate = Collate(_prepared(root))

    def to_tensors(columns: dict[str, Any]) -> Tensors:
        return collate(
            [
                collate.sample(ids, labels, images[0])
                for images, ids, labels in zip(*(columns[c] for c in COLUMNS), strict=True)
            ]
        )

    yield from ray.data.read_parquet(
        _shards(root), columns=COLUMNS, shuffle="files", filesystem=_arrow_files(root)
    ).iter_torch_batches(
        batch_size=BATCH,
        local_shuffle_buffer_size=BUFFER,
        collate_fn=to_tensors,
        prefetch_batches=2,
    )


def _prepared(root: str) -> PreparedDataset:
    return open_prepared(locate(f"{root}/prepared"))


def _shards(root: str) -> list[str]:
    """Return the shards by the paths that Arrow's filesystems know."""
    folder = locate(f"{root}/prepared/shards")
    return [(folder / name).path for name in folder.children()]


def _arrow_files(root: str) -> pyarrow.fs.FileSystem:
    if root.startswith("s3://"):
        return pyarrow.fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"])
    return pyarrow.fs.LocalFileSystem()


MAPPED = "HF datasets, memory-mapped"
RAY = "Ray Data"
FORKING = "torch DataLoader, 2 workers"
LOADERS: dict[str, Callable[[str], Iterator[Tensors]]] = {
    "ours": ours,
    "torch DataLoader, 0 workers": lambda root: torch_loader(root, 0),
    FORKING: lambda root: torch_loader(root, 2),
    "webdataset": webdataset,
    "litdata": litdata,
    "HF datasets, streaming": hf_stream,
    MAPPED: hf_map,
    RAY: ray_data,
}
ON_S3 = tuple(name for name in LOADERS if name not in {MAPPED, FORKING})
"""Those that are measured on S3 too: a copy on the disk is not there, and Arrow's client may not be
taken into a process that is forked."""
