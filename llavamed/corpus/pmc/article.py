"""Harvest one article: from its number to its figures, each kept or refused with a reason.

What is cheap decides first: the bucket's metadata, then the XML, then what a figure says of its
owner, and only then the pictures. Whatever is wrong with an article or a figure is a row.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from llavamed.config.harvest import Harvest
from llavamed.corpus.figures import IMAGES, FigureImage, FigureRow
from llavamed.corpus.pmc.fetch import UNAVAILABLE, Fetcher
from llavamed.corpus.pmc.figures import Figure, read_article
from llavamed.corpus.pmc.front import Front, read_front
from llavamed.corpus.pmc.jats import parse_articles
from llavamed.corpus.pmc.metadata import (
    BucketFile,
    Metadata,
    check_metadata,
    find_media,
    read_metadata,
)
from llavamed.errors import DataError, LlavaMedError, SampleError
from llavamed.processor.image_files import read_header
from llavamed.storage.location import Location

_ENDINGS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "TIFF": "tif", "WEBP": "webp"}
_ENDINGS |= {"BMP": "bmp", "JPEG2000": "jp2", "PPM": "ppm"}
_SAME_LICENCE = {"public domain": "CC0"}


@dataclass(frozen=True)
class ArticleRow:
    """The outcome of an article: a row of `articles.parquet`."""

    pmcid: str
    version: int
    etag: str
    """ETag of its metadata in the inventory, which changes with anything about the article."""
    licence: str = ""
    num_figures: int = 0
    num_kept: int = 0
    """Figures that were not refused."""
    reason: str = ""
    """Why nothing was taken of it; empty where its figures were read."""
    detail: str = ""


ARTICLES_SCHEMA = pa.schema(
    [
        ("pmcid", pa.string()),
        ("version", pa.int32()),
        *((name, pa.string()) for name in ("etag", "licence")),
        *((name, pa.int32()) for name in ("num_figures", "num_kept")),
        *((name, pa.string()) for name in ("reason", "detail")),
    ]
)
"""Schema of `articles.parquet`; its columns are the fields of `ArticleRow`, in order."""


@dataclass(frozen=True)
class Harvested:
    """An article with its figures."""

    article: ArticleRow
    figures: tuple[FigureRow, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, which `from_plain` takes back."""
        return {
            "article": asdict(self.article),
            "figures": [each.to_plain() for each in self.figures],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Harvested":
        """Return what `to_plain` was called on."""
        figures = tuple(FigureRow.from_plain(each) for each in plain["figures"])
        return cls(ArticleRow(**plain["article"]), figures)


class ArticleHarvester:
    """Harvests articles of a bucket into a corpus, for any number of threads."""

    def __init__(self, settings: Harvest, fetcher: Fetcher, corpus: Location) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._corpus = corpus

    def harvest(self, row: ArticleRow) -> Harvested:
        """Fetch an article and its pictures, and return what became of them.

        Args:
            row: The article, its version and its ETag.

        Raises:
            StorageError: The corpus cannot be written.
        """
        try:
            metadata = self._metadata(row)
            row = replace(row, licence=metadata.licence)
            check_metadata(metadata, self._settings.licences)
            figures = self._figures(metadata)
        except SampleError as error:
            return Harvested(replace(row, reason=error.reason, detail=error.detail[:400]))
        except (LlavaMedError, OSError, MemoryError):
            raise  # not the fault of this article
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"[:400]
            return Harvested(replace(row, reason="failed", detail=detail))
        if any(figure.refusal == UNAVAILABLE for figure in figures):
            detail = next(each.refusal_detail for each in figures if each.refusal == UNAVAILABLE)
            return Harvested(replace(row, reason=UNAVAILABLE, detail=detail))
        num_kept = sum(figure.is_kept for figure in figures)
        return Harvested(replace(row, num_figures=len(figures), num_kept=num_kept), tuple(figures))

    def _metadata(self, row: ArticleRow) -> Metadata:
        key = f"metadata/{row.pmcid}.{row.version}.json"
        try:
            return read_metadata(self._fetcher.read(key), row.pmcid, row.version)
        except SampleError as error:
            if error.reason != "bad_metadata":
                raise
        return read_metadata(self._fetcher.read(key), row.pmcid, row.version)

    def _figures(self, metadata: Metadata) -> list[FigureRow]:
        data = self._read(metadata, metadata.xml)
        try:
            articles = parse_articles(data, metadata.xml.key)
        except DataError as error:
            raise SampleError("bad_xml", str(error)) from error
        if len(articles) > 1:
            raise SampleError("bad_xml", f"{metadata.xml.key}: holds {len(articles)} articles")
        front, article = read_front(articles[0]), read_article(articles[0])
        if article.pmcid is not None and article.pmcid != metadata.pmcid:
            raise SampleError("wrong_article", f"the XML is of {article.pmcid}")
        stated = _SAME_LICENCE.get(article.licence or "", article.licence)
        if stated is not None and stated != metadata.licence:
            raise SampleError(
                "licence_conflict", f"the bucket says {metadata.licence}, the article {stated}"
            )
        check_front(front, self._settings)
        shared = _facts(metadata, front, article.licence_url or "", data)
        return [
            self._take(metadata, figure_row(number, figure, shared), figure)
            for number, figure in enumerate(article.figures)
        ]

    def _take(self, metadata: Metadata, row: FigureRow, figure: Figure) -> FigureRow:
        """Return the row of a figure with its pictures, or refused."""
        if figure.third_party not in self._settings.third_party:
            return row.refused(
                "third_party", f"{figure.third_party}: {row.third_party_quote[:400]}"
            )
        if not figure.graphics:
            return row.refused("no_picture", "it names no picture")
        try:
            files = [find_media(addresses, metadata.media) for addresses in figure.graphics]
            found = [self._picture(metadata, file) for file in files]
        except SampleError as error:
            return row.refused(error.reason, error.detail[:400])
        for picture, data in found:
            (self._corpus / picture.path).write_bytes(data)
        return replace(row, pictures=tuple(picture for picture, _ in found))

    def _picture(self, metadata: Metadata, file: BucketFile) -> tuple[FigureImage, bytes]:
        """Return a picture with its bytes."""
        data = self._read(metadata, file)
        if len(data) > self._settings.max_image_bytes:
            raise SampleError(
                "image_too_large",
                f"{file.name}: {len(data):,} bytes, at most {self._settings.max_image_bytes:,}",
            )
        form, width, height = read_header(data)
        sha256 = hashlib.sha256(data).hexdigest()
        folder = f"{IMAGES}/{metadata.pmcid}.{metadata.version}"
        picture = FigureImage(
            path=f"{folder}/{sha256[:16]}.{_ENDINGS[form]}",
            source=self._fetcher.uri(file.key),
            md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
            sha256=sha256,
            num_bytes=len(data),
            width=width,
            height=height,
            format=form.lower(),
        )
        return picture, data

    def _read(self, metadata: Metadata, file: BucketFile) -> bytes:
        """Read a file; where its MD5 differs, ask again which it should be, because files
        change."""
        try:
            return self._fetcher.read(file.key, file.md5)
        except SampleError as error:
            if error.reason != "md5_mismatch":
                raise
            fresh = self._metadata(ArticleRow(metadata.pmcid, metadata.version, ""))
            check_metadata(fresh, self._settings.licences)
            now = {each.key: each.md5 for each in (fresh.xml, *fresh.media)}
            if now.get(file.key) == file.md5:
                raise
            if file.key not in now:
                raise SampleError("missing_media", f"{file.key}: is no longer listed") from error
            return self._fetcher.read(file.key, now[file.key])


def check_front(front: Front, settings: Harvest) -> None:
    """Refuse an article that was not asked for, by what it says of itself.

    Raises:
        SampleError: `no_body`, `other_date`, `other_journal` or `other_type`.
    """
    if not front.has_body:
        raise SampleError("no_body", "it has no text")
    first, last = settings.published_from, settings.published_to
    published = "{:04d}-{:02d}-{:02d}".format(*front.published)
    if (first and published < first.isoformat()) or (last and published > last.isoformat()):
        raise SampleError("other_date", f"it was published on {published}")
    journals = {" ".join(name.lower().split()) for name in settings.journals}
    if journals and front.journal.lower() not in journals:
        raise SampleError("other_journal", f"it is in {front.journal or 'no journal'}")
    if settings.article_types and front.article_type not in settings.article_types:
        raise SampleError("other_type", f"it is a {front.article_type or 'text without type'}")


def _facts(metadata: Metadata, front: Front, licence_url: str, xml: bytes) -> dict[str, Any]:
    """Return what all figures of an article share."""
    return {
        "pmcid": metadata.pmcid,
        "version": metadata.version,
        "licence": metadata.licence,
        "licence_url": licence_url,
        "title": metadata.title,
        "citation": metadata.citation,
        "doi": metadata.doi,
        "pmid": metadata.pmid,
        "journal": front.journal,
        "year": front.published[0],
        "article_type": front.article_type,
        "language": front.language,
        "xml_sha256": hashlib.sha256(xml).hexdigest(),
    }


def figure_row(number: int, figure: Figure, shared: dict[str, Any]) -> FigureRow:
    """Return the row of a figure as the XML has it, without its pictures.

    Args:
        number: Its position in the article, from 0.
        figure: The figure.
        shared: Columns that all figures of the article share.
    """
    return FigureRow(
        number=number,
        figure=figure.id or "",
        label=figure.label or "",
        caption=figure.caption or "",
        group_caption=(figure.group.caption if figure.group else "") or "",
        parent=figure.parent or "",
        mentions=tuple(figure.mentions),
        mentions_by_range=tuple(figure.mentions_by_range),
        pictures=(),
        third_party=figure.third_party,
        third_party_quote=figure.third_party_quote or "",
        **shared,
    )
