"""Harvest one part: many articles at once, each kept in a journal until the part is complete.

    CORPUS/harvest/00000/done/PMC1.2.json   an article that is finished; gone when the part is
    CORPUS/harvest/00000/articles.parquet   what became of every article
    CORPUS/harvest/00000/figures.parquet    the figures, kept and refused
    CORPUS/harvest/00000/harvest.json       a `PartReport`
    CORPUS/harvest/00000/manifest.json      completes the part

A worker that is killed loses the articles that it had in hand, and no other is fetched again.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import groupby
from typing import ClassVar

import pyarrow as pa

from llavamed.config.harvest import Harvest
from llavamed.corpus.figures import NUM_THREADS, read_figures, write_figures
from llavamed.corpus.pmc.article import ARTICLES_SCHEMA, ArticleHarvester, ArticleRow, Harvested
from llavamed.corpus.pmc.fetch import UNAVAILABLE, Fetcher
from llavamed.errors import DataError, LlavaMedError
from llavamed.storage.location import MANIFEST, Location, locate
from llavamed.storage.manifest import FiguresManifest, Manifest, find, read, write

ARTICLES = "articles.parquet"
JOURNAL = "done"


class PartReport(Manifest):
    """What happened to the articles of a part, and what it cost."""

    VERSION: ClassVar[int] = 1
    FILE: ClassVar[str] = "harvest.json"
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "make the part again: delete its folder, then start the same command"

    num_articles: int
    """Articles of the part."""
    num_kept: int
    """Articles with a figure that was not refused."""
    reasons: dict[str, int]
    """Articles of which nothing was taken, by reason."""
    counts: dict[str, int]
    """Requests, bytes and failed attempts of the worker that completed the part."""


def part_folder(folder: Location, part: int) -> Location:
    """Return the folder of a part of a harvest."""
    return folder / f"{part:05d}"


def find_part(place: Location) -> PartReport | None:
    """Return the report of a part, or None where the part is not complete."""
    return read(PartReport, place) if find(FiguresManifest, place) is not None else None


def harvest_part(
    place: Location,
    candidates: list[ArticleRow],
    settings: Harvest,
    corpus: Location,
    *,
    made_from: str,
    num_workers: int = 1,
) -> PartReport:
    """Harvest the articles of a part that are not finished yet, and complete the part.

    Args:
        place: Folder of the part.
        candidates: Its articles.
        settings: The settings.
        corpus: Folder of the corpus, below which the pictures go.
        made_from: Fingerprint of what the part is made from.
        num_workers: Workers that share the rate of requests.

    Raises:
        DataError: Too many articles are unavailable. The others are kept for the next run.
        StorageError: The corpus cannot be written.
    """
    fetcher = Fetcher(locate(settings.source), settings.requests_per_second / num_workers)
    harvester = ArticleHarvester(settings, fetcher, corpus)
    if find(FiguresManifest, place) is not None:
        _open_again(place)
    done = _read_journal(place)

    def work(row: ArticleRow) -> Harvested:
        harvested = harvester.harvest(row)
        if harvested.article.reason != UNAVAILABLE:
            _note(place, harvested)
        return harvested

    pending = [row for row in candidates if _name(row) not in done]
    with ThreadPoolExecutor(settings.articles_in_flight) as pool:
        done |= {_name(each.article): each for each in pool.map(work, pending)}
    ordered = [done[_name(row)] for row in candidates]
    reasons = Counter(each.article.reason for each in ordered if each.article.reason)
    bound = settings.max_unavailable_fraction
    if reasons[UNAVAILABLE] > bound * len(ordered):
        detail = next(e.article.detail for e in ordered if e.article.reason == UNAVAILABLE)
        raise DataError(
            f"corpus.harvest.max_unavailable_fraction={bound}: {reasons[UNAVAILABLE]} of "
            f"{len(ordered)} articles of {place.name} are unavailable, the first by: {detail}; "
            "start the same command again later, or lower corpus.harvest.requests_per_second"
        )
    report = PartReport(
        num_articles=len(ordered),
        num_kept=sum(each.article.num_kept > 0 for each in ordered),
        reasons=dict(sorted(reasons.items())),
        counts=dict(sorted(fetcher.counts.items())),
    )
    _complete(place, ordered, report, made_from)
    return report


def remove_articles(place: Location, names: set[str], corpus: Location, keep: set[str]) -> int:
    """Remove articles from a complete part, with their pictures.

    Doing it twice is doing it once, so that it may be killed at any moment.

    Args:
        place: Folder of the part.
        names: Numbers of the articles, such as `PMC1`.
        corpus: Folder of the corpus.
        keep: Paths of pictures that stay, because a newer part has the same ones.

    Returns:
        The number of articles that were removed.
    """
    rows = read_part(place)
    kept = [each for each in rows if each.article.pmcid not in names]
    manifest, report = read(FiguresManifest, place), read(PartReport, place)
    if manifest.num_figures == sum(len(each.figures) for each in kept) and len(kept) == len(rows):
        return 0
    removed = [figure for each in rows if each.article.pmcid in names for figure in each.figures]
    paths = {picture.path for figure in removed for picture in figure.pictures}
    for path in sorted(paths - keep):
        (corpus / path).remove()
    reasons = Counter(each.article.reason for each in kept if each.article.reason)
    changed = report.replace(
        num_articles=len(kept),
        num_kept=sum(each.article.num_kept > 0 for each in kept),
        reasons=dict(sorted(reasons.items())),
    )
    _complete(place, kept, changed, manifest.made_from)
    return len(rows) - len(kept)


def read_articles(place: Location) -> list[ArticleRow]:
    """Return what became of the articles of a complete part. Raises: StorageError."""
    return [ArticleRow(**row) for row in (place / ARTICLES).read_table().to_pylist()]


def read_part(place: Location) -> list[Harvested]:
    """Return the articles of a complete part with their figures. Raises: StorageError."""
    by_article = {
        key: tuple(rows)
        for key, rows in groupby(read_figures(place), lambda row: (row.pmcid, row.version))
    }
    return [
        Harvested(row, by_article.get((row.pmcid, row.version), ())) for row in read_articles(place)
    ]


def _complete(place: Location, rows: list[Harvested], report: PartReport, made_from: str) -> None:
    table = pa.Table.from_pylist([asdict(each.article) for each in rows], ARTICLES_SCHEMA)
    (place / ARTICLES).write_table(table)
    write(place, report)
    write_figures(place, [figure for each in rows for figure in each.figures], made_from)
    (place / JOURNAL).remove()


def _open_again(place: Location) -> None:
    """Turn a complete part back into a journal of what is finished in it."""
    for each in read_part(place):
        if each.article.reason != UNAVAILABLE:
            _note(place, each)
    (place / MANIFEST).remove()


def _read_journal(place: Location) -> dict[str, Harvested]:
    journal = place / JOURNAL

    def read_one(name: str) -> Harvested:
        return Harvested.from_plain((journal / name).read_json())

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(read_one, journal.children()))
    return {_name(each.article): each for each in found}


def _note(place: Location, harvested: Harvested) -> None:
    (place / JOURNAL / f"{_name(harvested.article)}.json").write_json(harvested.to_plain())


def _name(row: ArticleRow) -> str:
    return f"{row.pmcid}.{row.version}"
