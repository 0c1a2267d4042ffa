"""Read and write a prepared dataset: shards, index, content hashes, quarantine and manifest.

`manifest.json` is written last, and a folder without it is not a dataset. Samples that are removed
later stay in the shards and are never read. Removing them writes a new index, content and
quarantine under new names, to which the manifest's `revision` points. So a single write makes the
change, and an interruption leaves the dataset as it was.
"""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.data.record import NUM_TILES
from llavamed.errors import DamagedFileError, DataError
from llavamed.processor.image_files import Pixels
from llavamed.processor.images import ImageSettings, from_planes, to_pixels
from llavamed.processor.tiles import Tiling
from llavamed.storage.lease import Lease, hold_lease
from llavamed.storage.location import MANIFEST, Location
from llavamed.storage.manifest import DatasetManifest, read

PROCESSOR = "processor"
"""Name of the folder next to the datasets that holds their shared processor."""

INDEX = "index.parquet"
CONTENT = "content.parquet"
QUARANTINE = "quarantine.parquet"

MAX_FOOTERS = 256
"""Footers that a process keeps of a dataset, to ask an object store for row groups only. They are
those of the shards that it reads first; the footers of others are read with each row group."""


def shard_name(number: int) -> str:
    """Return the path of a shard within the dataset."""
    return f"shards/{number:06d}.parquet"


def write_shard(place: Location, number: int, table: pa.Table, row_group_size: int) -> None:
    """Write a shard, uncompressed, into a dataset's folder.

    A shard is written once and read every epoch, and decompression would take a quarter of the
    reading time. Storing one channel of grey images saves more than zstd on three (60 images of
    VQA-RAD at 224 pixels: 50 kB each, not 73). On colour images zstd would save 15 %.
    """
    shard = place / shard_name(number)
    shard.write_table(table, row_group_size=row_group_size, compression="none")


def revised(name: str, revision: int) -> str:
    """Return the name of the index, content or quarantine table after `revision` removals."""
    return name if not revision else name.replace(".", f"-{revision}.")


def hold_datasets(folder: Location) -> AbstractContextManager[Lease]:
    """Hold the lease on a folder of datasets, so that no other run writes there.

    Raises:
        LeaseError: Another run is preparing or changing datasets there.
        StorageError: The folder cannot be written.
    """
    return hold_lease(folder, hint="set data.directory to another folder")


@dataclass(frozen=True)
class PreparedDataset:
    """A complete dataset. The index is read on first use."""

    location: Location
    manifest: DatasetManifest

    @property
    def name(self) -> str:
        """The dataset's name in the config."""
        return self.location.name

    @property
    def num_samples(self) -> int:
        """The number of samples, without quarantined and removed ones."""
        return self.manifest.num_samples

    @property
    def tiling(self) -> Tiling:
        """How its images are cut into tiles."""
        images = self.images
        return Tiling(images.size, self.manifest.num_image_tokens, images.grid_pinpoints)

    @cached_property
    def images(self) -> ImageSettings:
        """The settings its images were made with."""
        return ImageSettings(**self.manifest.made_from.images.model_dump())

    @property
    def revision(self) -> int:
        """The number of times samples were removed."""
        return self.manifest.revision

    def read(self, name: str) -> pa.Table:
        """Read the current `INDEX`, `CONTENT` or `QUARANTINE` table. Raises: DataError."""
        place = self.location / revised(name, self.revision)
        try:
            return place.read_table()
        except FileNotFoundError as error:
            raise DataError(f"{place}: is missing; prepare the dataset again") from error

    @cached_property
    def index(self) -> pa.Table:
        """The table of `INDEX_SCHEMA`, in shard order."""
        return self.read(INDEX)

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of the index as an int64 array of shape [samples].

        If the model cuts no images into tiles, `num_tiles` is the number of images.
        """
        if name == NUM_TILES and name not in self.index.column_names:
            name = "num_images"
        return self.index.column(name).to_numpy().astype(np.int64)

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """The row group of each sample, numbered over all shards: int64, [samples]."""
        both = self.column("shard") * (int(self.column("row_group").max(initial=0)) + 1)
        return np.unique(both + self.column("row_group"), return_inverse=True)[1].astype(np.int64)

    def row_groups(self) -> list[tuple[int, int]]:
        """Return the distinct pairs of shard and row group, in index order."""
        places = zip(self.column("shard").tolist(), self.column("row_group").tolist(), strict=True)
        return list(dict.fromkeys(places))

    def read_samples(self, shard: int, row_group: int, columns: list[str]) -> pa.Table:
        """Read one row group without its removed samples. Raises: DataError."""
        here = (self.column("shard") == shard) & (self.column("row_group") == row_group)
        return self.read_row_group(shard, row_group, columns).take(self.column("row")[here])

    def read_row_group(self, shard: int, row_group: int, columns: list[str]) -> pa.Table:
        """Read one row group as it is stored, with removed samples. Raises: DataError."""
        place = self.location / shard_name(shard)

        def read(raw: BinaryIO) -> pa.Table:
            with pq.ParquetFile(
                raw,
                metadata=footer,
                # One request for all columns, where a request is slow.
                pre_buffer=not place.is_local,
                page_checksum_verification=True,
            ) as file:
                if footer is None and len(self._footers) < MAX_FOOTERS:
                    self._footers[shard] = file.metadata, raw.seek(0, os.SEEK_END)
                return file.read_row_group(row_group, columns=columns, use_threads=False)

        footer, size = self._footers.get(shard, (None, None))
        try:
            return place.read_parquet(read, size=size)
        except DamagedFileError as error:
            raise DataError(
                f"{place}: shard {shard} of dataset {self.name} is damaged ({error.reason}); "
                "prepare the dataset again"
            ) from error
        except FileNotFoundError as error:
            raise DataError(
                f"{place}: shard {shard} of dataset {self.name} is missing; prepare "
                "the dataset again"
            ) from error

    @cached_property
    def _footers(self) -> dict[int, tuple[pq.FileMetaData, int]]:
        """The footers of the shards that were read first, and the sizes of these in bytes."""
        return {}

    def pixels(self, stored: pa.Buffer | bytes) -> Pixels:
        """Convert a stored image to pixels that `llavamed.processor.images.cut` takes."""
        if self._holds_files:
            return to_pixels(bytes(stored), self.images)
        return from_planes(stored, self.images.size)

    @cached_property
    def _holds_files(self) -> bool:
        """Whether shards hold the bytes of image files and not pixels."""
        return self.manifest.made_from.store_images == "original"

    def check_shards(self) -> None:
        """Raise DataError unless every shard of the index exists."""
        there = set((self.location / "shards").children())
        wanted = [shard_name(int(number)) for number in np.unique(self.column("shard"))]
        missing = [name for name in wanted if name.rpartition("/")[2] not in there]
        if missing:
            raise DataError(
                f"{self.location}: {len(missing)} of {len(wanted)} shards are missing, the first "
                f"is {missing[0]}; prepare the dataset again"
            )


def open_prepared(location: Location) -> PreparedDataset:
    """Open a dataset.

    Raises:
        DataError: The dataset is absent, was never finished or has another schema version.
    """
    try:
        manifest = read(DatasetManifest, location)
    except FileNotFoundError as error:
        raise DataError(
            f"{location}: no prepared dataset there ({MANIFEST} is missing); run `llavamed prepare`"
        ) from error
    return PreparedDataset(location, manifest)
