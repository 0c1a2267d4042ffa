"""Turn one chunk of a source's listing into one shard: fetch, decode, validate, tokenize, write.

Ray Data distributes this work over the cluster; the module itself needs no Ray.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from llavamed.config.run import RunConfig
from llavamed.data.prepared.content import hash_content, hash_image, hash_pixels
from llavamed.data.prepared.dataset import write_shard
from llavamed.data.prepared.sample_tables import SampleTables
from llavamed.data.record import (
    CONTENT_SCHEMA,
    INDEX_SCHEMA,
    NUM_TILES,
    QUARANTINE_SCHEMA,
    SHARD_SCHEMA,
    TILED_INDEX_SCHEMA,
    ContentHashes,
    ContentRow,
    QuarantineRow,
    Record,
    ShardRow,
    check_record,
    quarantine_row,
)
from llavamed.data.sources import fetch_image, open_source
from llavamed.errors import DataError, LlavaMedError, SampleError
from llavamed.processor.build import image_settings, load_processor, tiling
from llavamed.processor.encode import encode
from llavamed.processor.image_files import decode, read_size
from llavamed.processor.images import fit, to_planes
from llavamed.processor.templates import get_template, left_out, marks_of_turns
from llavamed.processor.turns import IGNORE_INDEX
from llavamed.storage.fetch import fetch_once
from llavamed.storage.location import locate

MAX_UNREAD_KEYS = 50
"""Maximum number of unread keys to report for a shard, most frequent first."""


MAX_GROUP_BYTES = (1 << 31) - (1 << 20)
"""Maximum number of bytes of images in a row group; Arrow can write more but cannot read it."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a source's listing that becomes one shard."""

    dataset: str
    shard: int
    first_row: int
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class ShardReport:
    """The outcome of each sample of a chunk."""

    dataset: str
    tables: SampleTables
    unread_keys: dict[str, int] = field(default_factory=dict)
    """Keys and parts of samples that are not read, with the number of samples that have them."""
    spelled_tokens: dict[str, int] = field(default_factory=dict)
    """Special tokens and stop words that texts spell out, with the number of samples."""


class _Sample(NamedTuple):
    """A usable sample."""

    row: ShardRow
    hashes: ContentHashes
    counts: dict[str, int]
    """Its numbers of cut tokens and of tiles, by their names in the index."""


class ShardWriter:
    """Writes shards. Each worker creates one, so that the tokenizer is loaded once."""

    def __init__(self, config: RunConfig, processor: str) -> None:
        self._config = config
        self._processor = load_processor(Path(fetch_once(processor)))
        self._images = image_settings(self._processor, config.data.image_backend)
        self._tiling = tiling(self._processor)
        self._template = get_template(config.model.template)
        self._special = marks_of_turns(self._template, self._processor.tokenizer)
        self._sources = {
            name: open_source(dataset.read) for name, dataset in config.data.datasets.items()
        }

    def write(self, chunk: Chunk) -> ShardReport:
        """Write the shard of a chunk, unless no sample is usable, and report on each sample."""
        source = self._sources[chunk.dataset]
        good: list[_Sample] = []
        content: list[ContentRow] = []
        bad: list[QuarantineRow] = []
        unread: Counter[str] = Counter()
        spelled: Counter[str] = Counter()
        for number, row in enumerate(chunk.rows, start=chunk.first_row):
            name = str(row.get("id", ""))
            unread_here: set[str] = set()
            try:
                record = source.parse(row)
                name = record.id
                sample = self._make_sample(chunk.dataset, record, unread_here.add)
            except SampleError as error:
                bad.append(quarantine_row(chunk.dataset, number, name, error))
            except (LlavaMedError, OSError, MemoryError):
                raise  # not the fault of this sample
            except Exception as error:
                failed = SampleError("failed", f"{type(error).__name__}: {error}")
                bad.append(quarantine_row(chunk.dataset, number, name, failed))
            else:
                unread.update(unread_here.union(record.unread_keys))
                spelled.update({m for turn in record.turns for m in self._special(turn.text)})
                good.append(sample)
                content.append({"row": number, "id": sample.row["id"], **sample.hashes})
        size = self._config.data.row_group_size
        if good:
            folder = locate(self._config.datasets_directory) / chunk.dataset
            table = shard_table([sample.row for sample in good], size)
            write_shard(folder, chunk.shard, table, size)
        tables = SampleTables(
            index=self._index(chunk.shard, good),
            content=pa.Table.from_pylist(content, CONTENT_SCHEMA),
            quarantine=pa.Table.from_pylist(bad, QUARANTINE_SCHEMA),
        )
        commonest = dict(unread.most_common(MAX_UNREAD_KEYS))
        return ShardReport(chunk.dataset, tables, commonest, dict(spelled))

    def _index(self, shard: int, samples: list[_Sample]) -> pa.Table:
        """Return the rows of the index for all samples of a shard."""
        size = self._config.data.row_group_size
        rows = [
            {
                "shard": shard,
                "row_group": number // size,
                "row": number % size,
                "num_tokens": len(row["input_ids"]),
                # The first label belongs to no prediction.
                "num_supervised": sum(label != IGNORE_INDEX for label in row["labels"][1:]),
                "num_images": len(row["pixels"]),
                **counts,
            }
            for number, (row, _, counts) in enumerate(samples)
        ]
        schema = TILED_INDEX_SCHEMA if self._tiling.pinpoints else INDEX_SCHEMA
        return pa.Table.from_pylist(rows, schema)

    def _make_sample(
        self, dataset: str, record: Record, on_unread: Callable[[str], None]
    ) -> _Sample:
        """Make the tokens and pixels of a record. Raises: SampleError.

        Args:
            dataset: Name of the dataset, from whose source images are fetched.
            on_unread: Called with each part of the dialogue or of an image that is not read.
        """
        check_record(record)
        for part in left_out(record.turns, self._template):
            on_unread(part)
        fetch = cache(partial(fetch_image, self._sources[dataset]))
        sizes = []
        if self._tiling.pinpoints:  # otherwise the size of an image does not matter
            sizes = [read_size(fetch(reference)) for reference in record.images]
        encoded = encode(
            record.turns,
            template=self._template,
            tokenizer=self._processor.tokenizer,
            num_image_tokens=[self._tiling.num_tokens(size) for size in sizes]
            if self._tiling.pinpoints
            else self._tiling.num_tile_tokens,
            max_length=self._config.data.max_length,
        )
        encoded.check_supervised()
        images = [self._image(fetch(reference), on_unread) for reference in record.images]
        row: ShardRow = {
            "id": record.id,
            "pixels": [data for data, *_ in images],
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "turns": [
                {"role": turn.role, "text": turn.text, "trained": turn.trained}
                for turn in record.turns
            ],
            "domain": record.domain,
            "answer_type": record.answer_type,
            "question_type": record.question_type,
            "source": dataset,
            "pmid": record.pmid,
            "licence": record.licence,
        }
        hashes = hash_content(
            record.turns,
            image_hashes=[seen for _, seen, _ in images],
            pixel_hashes=[exact for _, _, exact in images],
        )
        num_tiles = sum(self._tiling.num_tiles(size) for size in sizes)
        counts = {"num_truncated": encoded.num_truncated, NUM_TILES: num_tiles}
        return _Sample(row, hashes, counts)

    def _image(self, data: bytes, on_unread: Callable[[str], None]) -> tuple[bytes, bytes, bytes]:
        """Return the stored bytes of an image, and the hashes of its look and of its pixels."""
        # Decode the image even if its file is stored as it is, to find unreadable ones now.
        decoded = decode(data, on_unread)
        if decoded.shape[:2] == (1, 1):
            raise SampleError("corrupt_image", "1x1 pixels, which stand for a missing picture")
        pixels = fit(decoded, self._images)
        stored = data if self._config.data.store_images == "original" else to_planes(pixels)
        return stored, hash_image(pixels), hash_pixels(pixels)


def shard_table(samples: list[ShardRow], row_group_size: int) -> pa.Table:
    """Build a table of `SHARD_SCHEMA` one row group at a time: an Arrow array holds at most 2 GiB.

    Raises:
        DataError: A row group would be too large to be read again.
    """
    parts = []
    for start in range(0, len(samples), row_group_size):
        part = samples[start : start + row_group_size]
        size = sum(len(image) for sample in part for image in sample["pixels"])
        if size > MAX_GROUP_BYTES:
            fitting = max(1, len(part) * MAX_GROUP_BYTES // size // 2)
            raise DataError(
                f"data.row_group_size={row_group_size}: {len(part)} samples hold {size:,} bytes of "
                f"images, and Arrow reads {MAX_GROUP_BYTES:,} at once; set it to {fitting}, or "
                "data.store_images to pixels"
            )
        parts.append(pa.Table.from_pylist(part, SHARD_SCHEMA))
    return pa.concat_tables(parts)
