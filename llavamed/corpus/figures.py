"""The tables of figures that the steps of a corpus hand to each other: `figures.parquet`.

A corpus is a folder. Each step (harvest, select, ...) has a folder of its own below it, with parts
that are complete when their manifest exists:

    CORPUS/images/PMC1.2/fig1.jpg           pictures, in a folder an article
    CORPUS/harvest/00000/figures.parquet    one row per figure, kept or refused
    CORPUS/harvest/00000/manifest.json      a `FiguresManifest`, written last

A step reads the parts of the step before and writes parts of the same names with all their rows:
it fills columns in, refuses figures and adds the panels of one, and never drops a row.
`fingerprint` in the manifest of a part tells whether it has changed since another step read it.
Memory holds one part at a time.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Self

import pyarrow as pa

from llavamed.storage.location import Location
from llavamed.storage.manifest import FiguresManifest, find, write

FIGURES = "figures.parquet"
IMAGES = "images"
ROWS_PER_GROUP = 1024
NUM_THREADS = 16
"""Small files that are read at once."""


@dataclass(frozen=True, slots=True)
class FigureImage:
    """One picture of a figure. Most figures have one."""

    path: str
    """Path below the corpus folder; empty where the picture was not fetched."""
    source: str
    """URI that it came from; empty where none was found."""
    md5: str
    """Hexadecimal MD5 of its bytes, as the bucket's metadata have it."""
    sha256: str
    """Hexadecimal SHA-256 of its bytes."""
    num_bytes: int
    width: int
    height: int
    format: str
    """Format of the bytes, whatever the name says, such as `jpeg`."""


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One figure of an article: a row of `figures.parquet`."""

    pmcid: str
    """Article, such as `PMC123`."""
    version: int
    """Version of the article."""
    number: int
    """Position of the figure in its article, from 0."""
    figure: str
    """Id of the figure in its article; empty where it has none."""
    label: str
    caption: str
    """Caption of the figure; empty where it has none."""
    group_caption: str
    """Caption of the group around the figure; empty where there is none."""
    parent: str
    """Id of the figure that contains this one; empty where there is none."""
    mentions: tuple[str, ...]
    """Paragraphs that cite the figure."""
    mentions_by_range: tuple[str, ...]
    """Paragraphs that name it only within a range, such as "Figures 4-6" for figure 5."""
    pictures: tuple[FigureImage, ...]
    """Its pictures, in order."""
    third_party: str
    """Whether it names another owner: `yes`, `unclear` or `no`."""
    third_party_quote: str
    licence: str
    """Code of the article's licence, such as `CC BY`."""
    licence_url: str
    title: str
    """Title of the article."""
    citation: str
    """How to cite the article, for attribution."""
    doi: str
    pmid: str
    journal: str
    year: int
    """Year of the first publication, 0 where it is unknown."""
    article_type: str
    """The article's type as its XML has it, such as `case-report`."""
    xml_sha256: str
    panels: str = ""
    """Verdict of the selection: `single`, `compound`, or empty before it."""
    modality: str = ""
    """Verdict of the selection, such as `mri`; empty before it or where none fits."""
    modality_score: float = 0.0
    """How sure the modality is, from 0 to 1."""
    scores: dict[str, float] = field(default_factory=dict)
    """Scores of rules and models by name, to apply other thresholds later."""
    refusal: str = ""
    """Reason for which the figure is left out; empty where it is kept."""
    refusal_detail: str = ""
    panel: str = ""
    """Letter of the panel, where a row is a panel that the selection cut out of a figure."""
    language: str = ""
    """Code of the language that the article states, such as `en`; empty where it states none."""

    @property
    def id(self) -> str:
        """Identifier that no other row of a corpus has: `PMC123.2-4`, of a panel `PMC123.2-4A`."""
        return f"{self.pmcid}.{self.version}-{self.number}{self.panel}"

    @property
    def is_kept(self) -> bool:
        """Whether nothing has refused the figure."""
        return not self.refusal

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, which `from_plain` takes back."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Return the row that `to_plain` was called on; `scores` may be pairs, as Arrow's are."""
        lists = {name: tuple(plain[name]) for name in ("mentions", "mentions_by_range")}
        pictures = tuple(FigureImage(**picture) for picture in plain["pictures"])
        return cls(**plain | lists | {"pictures": pictures, "scores": dict(plain["scores"])})

    def refused(self, reason: str, detail: str) -> Self:
        """Return the figure with the reason for leaving it out; the first reason stays."""
        return replace(self, refusal=reason, refusal_detail=detail) if self.is_kept else self


_PICTURE = pa.struct(
    [
        *((name, pa.string()) for name in ("path", "source", "md5", "sha256")),
        ("num_bytes", pa.int64()),
        *((name, pa.int32()) for name in ("width", "height")),
        ("format", pa.string()),
    ]
)

FIGURES_SCHEMA = pa.schema(
    [
        ("pmcid", pa.string()),
        ("version", pa.int32()),
        ("number", pa.int32()),
        *((name, pa.string()) for name in ("figure", "label", "caption", "group_caption")),
        ("parent", pa.string()),
        ("mentions", pa.list_(pa.string())),
        ("mentions_by_range", pa.list_(pa.string())),
        ("pictures", pa.list_(_PICTURE)),
        *((name, pa.string()) for name in ("third_party", "third_party_quote")),
        *((name, pa.string()) for name in ("licence", "licence_url", "title", "citation")),
        *((name, pa.string()) for name in ("doi", "pmid", "journal")),
        ("year", pa.int32()),
        *((name, pa.string()) for name in ("article_type", "xml_sha256", "panels", "modality")),
        ("modality_score", pa.float64()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        *((name, pa.string()) for name in ("refusal", "refusal_detail", "panel", "language")),
    ]
)
"""Schema of `figures.parquet`; its columns are the fields of `FigureRow`, in order."""


def to_table(rows: Sequence[FigureRow]) -> pa.Table:
    """Return a table of `FIGURES_SCHEMA`."""
    plain = [row.to_plain() | {"scores": sorted(row.scores.items())} for row in rows]
    return pa.Table.from_pylist(plain, FIGURES_SCHEMA)


def from_table(table: pa.Table) -> list[FigureRow]:
    """Return the rows of a table of `FIGURES_SCHEMA`."""
    return [FigureRow.from_plain(plain) for plain in table.to_pylist()]


def write_figures(part: Location, rows: Sequence[FigureRow], made_from: str) -> FiguresManifest:
    """Write the rows of a part and then its manifest, which completes it.

    Args:
        part: Folder of the part.
        rows: All its figures, kept and refused.
        made_from: Fingerprint of the settings, and of the part of the step before.

    Returns:
        The manifest.

    Raises:
        StorageError: It cannot be written.
    """
    table = to_table(rows)
    (part / FIGURES).write_table(table, row_group_size=ROWS_PER_GROUP)
    manifest = FiguresManifest(
        made_from=made_from,
        fingerprint=_fingerprint(table),
        num_figures=len(rows),
        num_kept=sum(row.is_kept for row in rows),
        refused=dict(sorted(Counter(row.refusal for row in rows if row.refusal).items())),
    )
    write(part, manifest)
    return manifest


def _fingerprint(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]


def read_figures(part: Location) -> list[FigureRow]:
    """Return the figures of a part, kept and refused, in order.

    Raises:
        FileNotFoundError: There is no such part.
        StorageError: It cannot be read, or is damaged.
    """
    return from_table((part / FIGURES).read_table())


def list_parts(step: Location) -> list[tuple[Location, FiguresManifest]]:
    """List the complete parts of a step in order, each with its manifest.

    Args:
        step: Folder of the step, such as `CORPUS/harvest`.

    Raises:
        StorageError: A manifest cannot be read, or is damaged.
    """
    parts = [step / name for name in step.children() if name.isdigit()]
    with ThreadPoolExecutor(NUM_THREADS) as pool:  # a large corpus has thousands of parts
        manifests = pool.map(partial(find, FiguresManifest), parts)
        found = zip(parts, manifests, strict=True)
        return [(part, manifest) for part, manifest in found if manifest is not None]


def iter_kept(step: Location) -> Iterator[FigureRow]:
    """Yield the figures of a step that nothing has refused, one part in memory at a time."""
    for part, _ in list_parts(step):
        yield from (row for row in read_figures(part) if row.is_kept)
