"""The `data` section: which datasets there are and how they are prepared."""

from typing import Annotated, Literal

from pydantic import Field

from llavamed.config.section import Count, Fraction, Name, Section
from llavamed.config.sources import Read
from llavamed.errors import ConfigError


class Declared(Section):
    """Facts about a dataset that is not prepared yet, used by `plan` only."""

    num_samples: Annotated[int, Field(ge=1, le=10**12)]
    """Number of samples."""
    mean_text_tokens: Annotated[float, Field(gt=0, le=1e9)]
    """Mean number of tokens per sample, without those of its images."""
    mean_supervised_tokens: Annotated[float, Field(gt=0, le=1e9)]
    """Mean number of tokens per sample that contribute to the loss."""
    mean_images: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Mean number of images per sample; 0 for samples of text alone."""
    text_tokens_spread: Annotated[float, Field(ge=0, le=10)] = 0.6
    """Standard deviation of the text tokens divided by their mean. It decides how much padding
    costs when `packing` is off. Lengths are assumed to be lognormal; 0.6 is typical of captions and
    dialogues, and 0 means that all samples are equally long."""


class Dataset(Section):
    """One dataset to prepare."""

    read: Read
    """Source of the samples."""
    max_bad_fraction: Fraction = 0.01
    """Maximum fraction of samples that may be quarantined before the preparation fails."""
    drop_duplicates: bool = False
    """Quarantine samples whose pixels and words equal those of an earlier sample; case, spacing and
    punctuation do not count. By default they are only counted."""
    declared: Declared | None = None
    """Facts about the dataset that `plan` uses until it is prepared."""


class Data(Section):
    """How datasets are prepared."""

    directory: str | None = None
    """URI of the folder for prepared datasets. By default the folder `datasets` in `storage`."""
    max_length: Annotated[int, Field(ge=16, le=2**20)] = 2048
    """Maximum number of tokens per sample, image tokens included. Longer text is truncated; images
    never are."""
    store_images: Literal["pixels", "original"] = "pixels"
    """How images are stored: `pixels` at training resolution, ready to use, or the `original`
    encoded file."""
    image_backend: Literal["exact", "fast"] = "exact"
    """How images are resized: `exact` gives the same bits as transformers and prepares 1.7 to 1.9
    times as many images per CPU-second; `fast` prepares 4.8 to 5.7 times as many, and at most 0.3 %
    of its values differ by one or two grey levels in photographs and scans, and by up to 30 where
    neighbouring pixels jump between black and white (benchmarks/results/prepare_images.json)."""
    rows_per_shard: Count = 1024
    """Number of samples per Parquet file."""
    row_group_size: Count = 64
    """Number of samples per Parquet row group, the unit of reading and shuffling."""
    datasets: dict[Name, Dataset]
    """Datasets by name. Stages and evaluations refer to these names."""

    def check_name(self, name: str, option: str = "dataset") -> None:
        """Raise ConfigError unless there is a dataset of this name."""
        if name not in self.datasets:
            known = ", ".join(self.datasets)
            raise ConfigError(f"{option}={name}: is not in data.datasets; use one of: {known}")
