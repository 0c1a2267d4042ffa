"""Read the prepared datasets of a stage as one."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.processor.image_files import Pixels
from llavamed.processor.images import ImageSettings
from llavamed.processor.tiles import Tiling


class Share(NamedTuple):
    """One dataset's share of a joint index."""

    num_samples: int
    passes: float = 1.0
    """Number of passes over it in an epoch. At 0.5, an epoch takes one half and the next the
    other."""


@dataclass(frozen=True)
class Mixture:
    """Datasets of one folder, and thus of one tokenizer and image size, under one joint index."""

    datasets: tuple[PreparedDataset, ...]
    passes: tuple[float, ...] = (1.0,)
    """Number of passes over each dataset in an epoch."""

    @property
    def num_samples(self) -> int:
        """The number of samples of all datasets."""
        return sum(dataset.num_samples for dataset in self.datasets)

    @property
    def shares(self) -> list[Share]:
        """The share of each dataset in the index, for `order_stage`."""
        sizes = (dataset.index.num_rows for dataset in self.datasets)
        return [Share(size, passes) for size, passes in zip(sizes, self.passes, strict=True)]

    @property
    def images(self) -> ImageSettings:
        """The settings the images were made with."""
        return self.datasets[0].images

    @property
    def template_hash(self) -> str:
        """The hash of the chat template that made the tokens."""
        return self.datasets[0].manifest.made_from.template

    @property
    def tiling(self) -> Tiling:
        """How images are cut into tiles."""
        return self.datasets[0].tiling

    @property
    def image_token_id(self) -> int:
        """The id of the token that is repeated for an image."""
        return self.datasets[0].manifest.image_token_id

    @property
    def pad_token_id(self) -> int:
        """The id of the token that pads a row."""
        return self.datasets[0].manifest.pad_token_id

    def pixels(self, stored: pa.Buffer | bytes) -> Pixels:
        """Convert a stored image to pixels that `llavamed.processor.images.cut` takes."""
        return self.datasets[0].pixels(stored)

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of the joint index as an int64 array of shape [samples]."""
        return np.concatenate([dataset.column(name) for dataset in self.datasets])

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """The row group of each sample, numbered over all datasets: int64, [samples]."""
        numbers = [dataset.groups for dataset in self.datasets]
        return np.concatenate(
            [own + first for own, first in zip(numbers, self._first_groups, strict=True)]
        )

    def read_group(self, group: int, columns: list[str]) -> pa.Table:
        """Read a row group by its number in `groups`. Raises: DataError."""
        number = int(np.searchsorted(self._first_groups, group, side="right")) - 1
        dataset, sample = self.datasets[number], int(self._first_samples[group])
        return dataset.read_row_group(
            int(self._shards[sample]), int(self._row_groups[sample]), columns
        )

    def check_shards(self) -> None:
        """Raise DataError unless every shard exists."""
        for dataset in self.datasets:
            dataset.check_shards()

    @cached_property
    def _first_groups(self) -> npt.NDArray[np.int64]:
        counts = [int(dataset.groups.max(initial=-1)) + 1 for dataset in self.datasets]
        return np.cumsum([0, *counts[:-1]])

    @cached_property
    def _first_samples(self) -> npt.NDArray[np.int64]:
        return np.unique(self.groups, return_index=True)[1]

    @cached_property
    def _shards(self) -> npt.NDArray[np.int64]:
        return self.column("shard")

    @cached_property
    def _row_groups(self) -> npt.NDArray[np.int64]:
        return self.column("row_group")
