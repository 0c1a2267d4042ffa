"""A prepared dataset as it lies in storage: shards, index, manifest, quarantine.

`manifest.json` is written last: a folder without it is not a dataset, whatever else lies there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.data.images import ImageSettings
from llavamed.errors import DataError
from llavamed.storage import MANIFEST, Location, readable_errors

INDEX = "index.parquet"
QUARANTINE = "quarantine.parquet"
SCHEMA_VERSION = 1


def shard_name(number: int) -> str:
    """Path of a shard within the dataset."""
    return f"shards/{number:06d}.parquet"


@dataclass(frozen=True)
class PreparedDataset:
    """A complete dataset; the index is read on first use."""

    location: Location
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """The dataset's name, as the config calls it."""
        return self.location.name

    @property
    def num_samples(self) -> int:
        """Samples that may be trained on."""
        return int(self.manifest["num_samples"])

    @property
    def num_image_tokens(self) -> int:
        """Tokens an image takes."""
        return int(self.manifest["num_image_tokens"])

    @property
    def images(self) -> ImageSettings:
        """How its images were made."""
        return ImageSettings(**{**self.manifest["images"]})

    @cached_property
    def index(self) -> pa.Table:
        """`INDEX_SCHEMA`, in shard order."""
        return (self.location / INDEX).read_table()

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """A column of the index as integers."""
        return self.index.column(name).to_numpy().astype(np.int64)

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """For each sample the number of its row group, counted over all shards."""
        both = self.column("shard") * (int(self.column("row_group").max(initial=0)) + 1)
        return np.unique(both + self.column("row_group"), return_inverse=True)[1].astype(np.int64)

    def read_row_group(self, shard: int, row_group: int, columns: list[str]) -> pa.Table:
        """Read one row group.

        Raises:
            DataError: The shard is missing or damaged.
        """
        place = self.location / shard_name(shard)
        try:
            with (
                readable_errors(place, "read"),
                # Without a cache: fsspec's would read tens of megabytes past each row group.
                place.fs.open(place.path, "rb", cache_type="none") as raw,
                _damage_as_data_error(f"{place}: shard {shard} of dataset {self.name}"),
                pq.ParquetFile(raw, pre_buffer=True, page_checksum_verification=True) as file,
            ):
                return file.read_row_group(row_group, columns=columns)
        except FileNotFoundError as error:
            raise DataError(
                f"{place}: shard {shard} of dataset {self.name} is missing; prepare "
                "the dataset again"
            ) from error

    def check_shards(self) -> None:
        """Raise DataError unless every shard the index names is there."""
        there = set((self.location / "shards").children())
        wanted = [shard_name(int(number)) for number in np.unique(self.column("shard"))]
        missing = [name for name in wanted if name.rpartition("/")[2] not in there]
        if missing:
            raise DataError(
                f"{self.location}: {len(missing)} of {len(wanted)} shards are missing, the first "
                f"is {missing[0]}; prepare the dataset again"
            )


def open_prepared(location: Location) -> PreparedDataset:
    """Open a dataset. Raises: DataError, when it is not there or was never finished."""
    try:
        manifest = (location / MANIFEST).read_json()
    except FileNotFoundError as error:
        raise DataError(
            f"{location}: no prepared dataset there ({MANIFEST} is missing); run `llavamed prepare`"
        ) from error
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            f"{location}: schema_version={manifest['schema_version']}, this program reads "
            f"{SCHEMA_VERSION}; prepare the dataset again"
        )
    return PreparedDataset(location, manifest)


@contextmanager
def _damage_as_data_error(shard: str) -> Iterator[None]:
    """Tell what Arrow cannot parse from what a filesystem cannot read; both may be an OSError."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        reason = " ".join(str(error).split())
        raise DataError(f"{shard} is damaged ({reason}); prepare the dataset again") from error
