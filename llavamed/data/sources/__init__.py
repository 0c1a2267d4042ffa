"""Read samples from datasets in the formats they are published in, one module for each format.

Every format implements `Source`: `rows` lists, `parse` interprets, `load_image` fetches. `rows`
runs in one process, so it streams, costs little, and only gives the places of large values. The
other two run in parallel, fetch from these places, and may reject a single sample with
`SampleError`.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from llavamed.config.sources import (
    LlavaJson,
    Parquet,
    PathVqa,
    Phantoms,
    PmcVqa,
    Read,
    Scans,
    Slake,
    VqaRad,
    WebDataset,
)
from llavamed.data.record import Record
from llavamed.data.sources.pictures import embedded_picture


class Source(Protocol):
    """A dataset in the format it was published in. Opening one reads nothing."""

    def count(self) -> int:
        """Return the number of rows, unusable ones included."""

    def content_hash(self) -> str:
        """Return a hash of the listing, without the images, that is equal for equal content."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the raw rows, JSON-serialisable, in the order of the source.

        The quarantine names a row by its `id` if `parse` rejects it.
        """

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one raw row. Raises: SampleError."""

    def load_image(self, reference: str) -> bytes:
        """Fetch the encoded bytes of an image.

        Raises:
            SampleError: `missing_image`, and other reasons of the format.
        """


def fetch_image(source: Source, reference: str) -> bytes:
    """Return the encoded bytes of an image, from its row if that holds them, else from the source.

    Raises:
        SampleError: `missing_image`, `unsafe_path` or `corrupt_image`.
    """
    picture = embedded_picture(reference)
    return source.load_image(reference) if picture is None else picture


def open_source(read: Read) -> Source:
    """Open the source that a dataset's `read` section describes."""
    from llavamed.data.sources.llava_json import LlavaJsonSource
    from llavamed.data.sources.parquet import ParquetSource
    from llavamed.data.sources.path_vqa import PathVqaSource
    from llavamed.data.sources.phantoms import PhantomSource
    from llavamed.data.sources.pmc_vqa import PmcVqaSource
    from llavamed.data.sources.scans import ScansSource
    from llavamed.data.sources.slake import SlakeSource
    from llavamed.data.sources.vqa_rad import VqaRadSource
    from llavamed.data.sources.webdataset import WebDatasetSource

    match read:
        case Phantoms():
            return PhantomSource(**read.model_dump(exclude={"source"}))
        case LlavaJson():
            return LlavaJsonSource(read)
        case Scans():
            return ScansSource(read)
        case VqaRad():
            return VqaRadSource(read)
        case Slake():
            return SlakeSource(read)
        case PathVqa():
            return PathVqaSource(read)
        case PmcVqa():
            return PmcVqaSource(read)
        case Parquet():
            return ParquetSource(read)
        case WebDataset():
            return WebDatasetSource(read)
