"""Hold the outcome of every sample: index and content of the good ones, quarantine of the others.

The tables are in memory. Samples only ever move from the first two to the quarantine.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llavamed.data.prepared.dataset import CONTENT, INDEX, QUARANTINE, PreparedDataset, revised
from llavamed.data.record import CONTENT_SCHEMA, INDEX_SCHEMA, QUARANTINE_SCHEMA, quarantine_row
from llavamed.errors import DataError, SampleError
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import Location
from llavamed.storage.manifest import DatasetManifest


class SampleCounts(TypedDict):
    """The counts of a dataset's samples, under the names of its manifest."""

    num_samples: int
    num_tokens: int
    num_supervised: int
    num_images: int
    num_truncated: int
    num_duplicates: int
    num_quarantined: int
    quarantined: dict[str, int]


@dataclass(frozen=True)
class SampleTables:
    """`INDEX_SCHEMA` and `CONTENT_SCHEMA` tables in the same order, and `QUARANTINE_SCHEMA`."""

    index: pa.Table
    content: pa.Table
    quarantine: pa.Table

    @property
    def num_rows(self) -> int:
        """The number of samples, quarantined ones included."""
        return int(self.index.num_rows + self.quarantine.num_rows)

    def counts(self) -> SampleCounts:
        """Return the counts of samples that a manifest holds."""
        summed = ("num_tokens", "num_supervised", "num_images")
        tokens, supervised, images = (pc.sum(self.index.column(each)).as_py() for each in summed)
        reasons = Counter(self.quarantine.column("reason").to_pylist())
        duplicates = self.first_alike() != np.arange(self.content.num_rows)
        return {
            "num_tokens": tokens,
            "num_supervised": supervised,
            "num_images": images,
            "num_samples": self.index.num_rows,
            "num_truncated": pc.sum(pc.greater(self.index.column("num_truncated"), 0)).as_py(),
            "num_duplicates": int(duplicates.sum()),
            "num_quarantined": self.quarantine.num_rows,
            "quarantined": dict(sorted(reasons.items())),
        }

    def count_names(self) -> dict[str, int]:
        """Count the samples without an id, and those with the id of an earlier sample."""
        counts = pc.value_counts(self.content.column("id").combine_chunks())
        numbers = {each["values"]: each["counts"] for each in counts.to_pylist()}
        unnamed = numbers.pop("", 0)
        repeated = sum(numbers.values()) - len(numbers)
        return {"num_unnamed": unnamed, "num_repeated_names": repeated}

    def fingerprint(self, manifest: DatasetManifest) -> str:
        """Return the fingerprint of a dataset of these samples.

        It covers the samples in their order, the listing they come from, and how they became tokens
        and pixels; not where the source is or in which form the shards store an image.
        """
        settings = {"read", "store_images", "drop_duplicates"}
        samples = hashlib.sha256(b"".join(self.content.column("sample_hash").to_pylist()))
        for table, name in (
            (self.content, "row"),
            (self.index, "num_tokens"),
            (self.index, "num_supervised"),
        ):
            samples.update(table.column(name).to_numpy().astype("<i8").tobytes())
        return fingerprint(
            {
                "made_from": manifest.made_from.model_dump(mode="json", exclude=settings),
                "source": manifest.source_hash,
                "samples": samples.hexdigest(),
            }
        )

    def first_alike(self) -> npt.NDArray[np.int64]:
        """Return the position of the first sample with the same content as each sample.

        Returns:
            int64 array of shape [samples]. A sample without an earlier duplicate has its own
                position.
        """
        hashes = self.content.column("sample_hash").combine_chunks().cast(pa.binary())
        codes = hashes.dictionary_encode().indices.to_numpy()
        return np.unique(codes, return_index=True)[1][codes].astype(np.int64)

    def move_out(
        self, source: str, leaving: Sequence[int], reason: str, details: Sequence[str]
    ) -> "SampleTables":
        """Quarantine samples.

        Args:
            source: Name of the dataset.
            leaving: Positions of the samples in the index.
            reason: The reason for all of them.
            details: A detail for each.
        """
        gone = self.content.select(["row", "id"]).take(pa.array(leaving, pa.int64()))
        rows = [
            quarantine_row(source, sample["row"], sample["id"], SampleError(reason, detail))
            for sample, detail in zip(gone.to_pylist(), details, strict=True)
        ]
        stays = np.ones(self.index.num_rows, dtype=bool)
        stays[np.asarray(leaving, dtype=np.int64)] = False
        quarantine = [self.quarantine, pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)]
        return SampleTables(
            self.index.filter(stays), self.content.filter(stays), pa.concat_tables(quarantine)
        )

    def without_duplicates(self, source: str) -> "SampleTables":
        """Quarantine each sample with the same content as an earlier one."""
        first = self.first_alike()
        leaving = np.flatnonzero(first != np.arange(len(first)))
        originals = self.content.column("id").take(pa.array(first[leaving])).to_pylist()
        details = [f"same images and words as {original}" for original in originals]
        return self.move_out(source, leaving.tolist(), "duplicate", details)

    def write(self, place: Location, revision: int = 0) -> None:
        """Write the three tables. They take effect once a manifest of this revision is written."""
        tables = {INDEX: self.index, CONTENT: self.content, QUARANTINE: self.quarantine}
        for name, table in tables.items():
            (place / revised(name, revision)).write_table(table)


def join(parts: Sequence[SampleTables]) -> SampleTables:
    """Concatenate tables in the given order."""
    return SampleTables(
        pa.concat_tables([part.index for part in parts] or [INDEX_SCHEMA.empty_table()]),
        pa.concat_tables([CONTENT_SCHEMA.empty_table(), *(part.content for part in parts)]),
        pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *(part.quarantine for part in parts)]),
    )


def read_sample_tables(dataset: PreparedDataset) -> SampleTables:
    """Read the tables of a prepared dataset.

    Raises:
        DataError: A table is missing or has another number of samples than the manifest.
    """
    tables = SampleTables(dataset.index, dataset.read(CONTENT), dataset.read(QUARANTINE))
    if not tables.index.num_rows == tables.content.num_rows == dataset.num_samples:
        raise DataError(
            f"{dataset.location}: {tables.index.num_rows} samples in the index, "
            f"{tables.content.num_rows} in the content, {dataset.num_samples} in the manifest; "
            "prepare the dataset again"
        )
    return tables
