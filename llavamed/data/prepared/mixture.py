"""The prepared datasets that a stage trains on, read as one."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llavamed.data.feed.order import Share
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.processor.images import ImageSettings, Pixels


@dataclass(frozen=True)
class Mixture:
    """Datasets of one folder, so of one tokenizer and one image size, with one index over all."""

    datasets: tuple[PreparedDataset, ...]
    passes: tuple[float, ...] = (1.0,)
    """How often an epoch passes over each."""

    @property
    def num_samples(self) -> int:
        """Samples of all datasets."""
        return sum(dataset.num_samples for dataset in self.datasets)

    @property
    def shares(self) -> list[Share]:
        """What `order_stage` must know of the datasets."""
        sizes = (dataset.index.num_rows for dataset in self.datasets)
        return [Share(size, passes) for size, passes in zip(sizes, self.passes, strict=True)]

    @property
    def images(self) -> ImageSettings:
        """How the images were made."""
        return self.datasets[0].images

    @property
    def template_hash(self) -> str:
        """Of the chat template that made the tokens."""
        return str(self.datasets[0].manifest["made_from"]["template"])

    @property
    def num_image_tokens(self) -> int:
        """Tokens an image takes."""
        return self.datasets[0].num_image_tokens

    @property
    def image_token_id(self) -> int:
        """The token an image is a run of."""
        return int(self.datasets[0].manifest["image_token_id"])

    @property
    def pad_token_id(self) -> int:
        """The token that fills a row."""
        return int(self.datasets[0].manifest["pad_token_id"])

    def pixels(self, stored: bytes) -> Pixels:
        """An image as a shard holds it -> uint8 array of shape [size, size, 3]."""
        return self.datasets[0].pixels(stored)

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """A column of the joined index as integers."""
        return np.concatenate([dataset.column(name) for dataset in self.datasets])

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """For each sample the number of its row group, counted over all datasets."""
        numbers = [dataset.groups for dataset in self.datasets]
        return np.concatenate(
            [own + first for own, first in zip(numbers, self._first_groups, strict=True)]
        )

    def read_group(self, group: int, columns: list[str]) -> pa.Table:
        """Read a row group by its number. Raises: DataError, when its shard is damaged."""
        number = int(np.searchsorted(self._first_groups, group, side="right")) - 1
        dataset, sample = self.datasets[number], int(self._first_samples[group])
        return dataset.read_row_group(
            int(self._shards[sample]), int(self._row_groups[sample]), columns
        )

    def check_shards(self) -> None:
        """Raise DataError unless every shard is there."""
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
