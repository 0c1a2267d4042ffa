"""Where samples come from: one file a format, all behind `Source`.

`rows` lists, `parse` understands, `load_image` fetches. The first runs in one process and must be
cheap and stream, so it names the places of what is large; the other two run in parallel, fetch
from those places, and may refuse a single sample with `SampleError`.
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
    Slake,
    VqaRad,
    WebDataset,
)
from llavamed.data.record import Record
from llavamed.data.sources.pictures import embedded_picture


class Source(Protocol):
    """A dataset in the format it was published in. To open one reads nothing."""

    def count(self) -> int:
        """How many rows there are, the unusable ones included."""

    def content_hash(self) -> str:
        """A hash of what is listed, equal for equal content; of the listing, not of the images."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Stream the raw rows, JSON-serialisable, in the source's own order.

        The `id` of a row is what the quarantine calls it when `parse` refuses it.
        """

    def parse(self, row: dict[str, Any]) -> Record:
        """Understand one raw row. Raises: SampleError."""

    def load_image(self, reference: str) -> bytes:
        """Fetch the encoded bytes of an image. Raises: SampleError("missing_image", ...)."""


def fetch_image(source: Source, reference: str) -> bytes:
    """The encoded bytes of an image, which the row may have held itself.

    Raises:
        SampleError: `missing_image`, `unsafe_path` or `corrupt_image`.
    """
    picture = embedded_picture(reference)
    return source.load_image(reference) if picture is None else picture


def open_source(read: Read) -> Source:
    """The source that a dataset's `read` section describes."""
    from llavamed.data.sources import phantoms
    from llavamed.data.sources.llava_json import LlavaJsonSource
    from llavamed.data.sources.parquet import ParquetSource
    from llavamed.data.sources.path_vqa import PathVqaSource
    from llavamed.data.sources.pmc_vqa import PmcVqaSource
    from llavamed.data.sources.slake import SlakeSource
    from llavamed.data.sources.vqa_rad import VqaRadSource
    from llavamed.data.sources.webdataset import WebDatasetSource

    match read:
        case Phantoms():
            return phantoms.Phantoms(**read.model_dump(exclude={"source"}))
        case LlavaJson():
            return LlavaJsonSource(read)
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
