"""The `data` section: which datasets there are and how they are prepared."""

from typing import Annotated, Literal

from pydantic import Field

from llavamed.config.section import Fraction, Name, Section
from llavamed.config.sources import Read
from llavamed.errors import ConfigError


class Declared(Section):
    """What is known of a dataset that is not prepared yet; only `plan` reads it."""

    num_samples: Annotated[int, Field(ge=1)]
    """Samples."""
    mean_text_tokens: Annotated[float, Field(gt=0)]
    """Tokens a sample beside its images."""
    mean_supervised_tokens: Annotated[float, Field(gt=0)]
    """Tokens a sample that are trained."""


class Dataset(Section):
    """One dataset to prepare."""

    read: Read
    """Where the samples come from."""
    max_bad_fraction: Fraction = 0.01
    """Preparing fails when a larger part of the samples had to be quarantined."""
    drop_duplicates: bool = False
    """Quarantine samples with the same images and words as an earlier one; else only count them."""
    declared: Declared | None = None
    """Stands in for the prepared dataset while planning."""


class Data(Section):
    """How datasets are prepared."""

    directory: str | None = None
    """URI of the folder with the prepared datasets; none: `datasets` below `storage`."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Most tokens of a sample, its image tokens included. Longer text is cut, images never."""
    store_images: Literal["pixels", "original"] = "pixels"
    """`pixels` at training resolution, ready to use; `original` keeps the encoded file."""
    image_backend: Literal["exact", "fast"] = "exact"
    """`exact` resizes as transformers does, to the bit; `fast` makes two or three times the pixels
    a second, of which 0.2 % are a grey level off, never more than two (measured on radiology)."""
    rows_per_shard: Annotated[int, Field(ge=1)] = 1024
    """Samples a Parquet file."""
    row_group_size: Annotated[int, Field(ge=1)] = 64
    """Samples a row group: what is read and shuffled as one."""
    datasets: dict[Name, Dataset]
    """By name, which stages and the evaluation refer to."""

    def check_name(self, name: str, option: str = "dataset") -> None:
        """Raise ConfigError unless there is a dataset of this name."""
        if name not in self.datasets:
            known = ", ".join(self.datasets)
            raise ConfigError(f"{option}={name}: is not in data.datasets; use one of: {known}")
