"""Plan a harvest: rounds of articles in a fixed order, cut into parts.

The first round is what an inventory lists; each update adds a round of the articles that are new or
have changed. The order is written down before anything is fetched, so that a harvest goes on where
it was killed, and gives the same corpus on any number of machines.

    CORPUS/harvest/plan.json             a `HarvestPlan`
    CORPUS/harvest/candidates-0.parquet  the articles of round 0, a row group a part
    CORPUS/harvest/replaced-1.parquet    articles that round 1 removes from the parts before it
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.config.harvest import Harvest
from llavamed.corpus.pmc.article import ArticleRow
from llavamed.corpus.pmc.inventory import CANDIDATES_SCHEMA, Inventory, rank
from llavamed.errors import DataError, LlavaMedError
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import Location
from llavamed.storage.manifest import Facts, Manifest

_FREE = {
    *("source", "search_url", "max_articles", "articles_in_flight", "requests_per_second"),
    "max_unavailable_fraction",
}
"""Settings that do not change what happens to an article."""


class HarvestRound(Facts):
    """Articles of one inventory, in parts."""

    inventory: str
    """Date of the inventory, or `listing`."""
    inventory_sha256: str
    """SHA-256 of the inventory's manifest."""
    first_part: int
    """Number of its first part; parts are counted over all rounds."""
    num_parts: int
    """Number of its parts."""
    num_required: int
    """Parts at the beginning that `max_articles` does not leave out, because their articles
    changed."""
    num_articles: int
    """Articles of the round."""
    num_replaced: int
    """Articles whose figures leave the parts of earlier rounds."""


class HarvestPlan(Manifest):
    """The articles of a harvest, in order."""

    VERSION: ClassVar[int] = 1
    FILE: ClassVar[str] = "plan.json"
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "set corpus.directory to another folder"

    settings: dict[str, Any]
    """Settings that decide what happens to an article."""
    rounds: tuple[HarvestRound, ...]
    """The first harvest, and the updates after it."""

    @property
    def last(self) -> HarvestRound:
        """The round that is worked on."""
        return self.rounds[-1]

    @property
    def num_parts(self) -> int:
        """Number of parts of all rounds."""
        return self.last.first_part + self.last.num_parts

    def made_from(self, part: int) -> str:
        """Return the fingerprint of what a part is made from."""
        number, here = self._round_of(part)
        return fingerprint([self.settings, number, here.inventory_sha256, part])

    def read_part(self, folder: Location, part: int) -> list[ArticleRow]:
        """Return the articles of a part that no later round replaces, in order.

        Raises:
            StorageError: They cannot be read.
        """
        number, here = self._round_of(part)
        group = part - here.first_part
        table = (folder / f"candidates-{number}.parquet").read_parquet(
            lambda file: pq.ParquetFile(file).read_row_group(group)
        )
        later = range(number + 1, len(self.rounds))
        replaced = {name for each in later for name in read_replaced(folder, each)}
        rows = [
            ArticleRow(f"PMC{row['pmcid']}", row["version"], row["etag"])
            for row in table.to_pylist()
        ]
        return [row for row in rows if row.pmcid not in replaced]

    def _round_of(self, part: int) -> tuple[int, HarvestRound]:
        number = max(n for n, each in enumerate(self.rounds) if each.first_part <= part)
        return number, self.rounds[number]


class HarvestManifest(Manifest):
    """A finished harvest."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "set corpus.directory to another folder"

    inventory: str
    """Date of the newest inventory."""
    num_articles: int
    """Articles of all complete parts."""
    num_kept: int
    """Articles with a figure that was not refused."""
    reasons: dict[str, int]
    """Articles of which nothing was taken, by reason."""
    num_figures: int
    """Figures of the articles that were read, refused ones included."""
    num_kept_figures: int
    """Figures that were not refused."""
    refused: dict[str, int]
    """Refused figures by reason."""
    counts: dict[str, int]
    """Requests, bytes, and failed attempts by error."""
    num_removed: int
    """Articles that updates removed from earlier parts."""


def settings_of(settings: Harvest) -> dict[str, Any]:
    """Return the settings that decide what happens to an article, as plain values."""
    return settings.model_dump(mode="json", exclude=_FREE)


def first_round(
    folder: Location, settings: Harvest, inventory: Inventory, wanted: Sequence[int] | None
) -> HarvestRound:
    """Write the candidates of a new harvest.

    Args:
        folder: Folder of the harvest.
        settings: The settings.
        inventory: What the bucket has.
        wanted: Numbers of the articles to take, None for all.

    Raises:
        DataError: None of the wanted articles is in the inventory.
    """
    numbers = inventory.articles["pmcid"].to_numpy()
    rows = np.flatnonzero(_is_wanted(numbers, wanted))
    if not len(rows):
        raise DataError(
            f"{inventory.name}: none of {len(wanted or ())} wanted articles is in the inventory; "
            "check corpus.harvest.articles or corpus.harvest.query"
        )
    rows = rows[rank(numbers[rows], settings.seed)]
    return _write_round(folder, 0, 0, settings, inventory, inventory.articles.take(rows), [], 0)


def next_round(
    folder: Location,
    plan: HarvestPlan,
    settings: Harvest,
    inventory: Inventory,
    known: pa.Table,
    wanted: Sequence[int] | None,
) -> HarvestRound | None:
    """Write the candidates of an update; return None where nothing is new or has changed.

    Args:
        folder: Folder of the harvest.
        plan: The plan so far, all of whose parts that are wanted are complete.
        settings: The settings.
        inventory: What the bucket has now.
        known: Table of `CANDIDATES_SCHEMA` of what was harvested.
        wanted: Numbers of the articles to take, None for all.
    """
    now, before = inventory.articles, _newest(known)
    numbers, old = now["pmcid"].to_numpy(), before["pmcid"].to_numpy()
    at = np.searchsorted(old, numbers)
    at_valid = np.minimum(at, max(len(old) - 1, 0))
    is_known = old[at_valid] == numbers if len(old) else np.zeros(len(numbers), bool)
    same = np.zeros(len(numbers), bool)
    here, there = np.flatnonzero(is_known), at_valid[is_known]
    same[here] = [
        (a["version"], a["etag"]) == (b["version"], b["etag"])
        for a, b in zip(now.take(here).to_pylist(), before.take(there).to_pylist(), strict=True)
    ]
    changed = np.flatnonzero(is_known & ~same)
    new = np.flatnonzero(~is_known & _is_wanted(numbers, wanted))
    gone = np.setdiff1d(old, numbers)
    if not len(changed) + len(new) + len(gone):
        return None
    rows = np.concatenate(
        [part[rank(numbers[part], settings.seed)] for part in (changed, new)]
    ).astype(np.int64)
    replaced = np.concatenate([numbers[changed], gone])
    first = plan.num_parts
    return _write_round(
        folder,
        len(plan.rounds),
        first,
        settings,
        inventory,
        now.take(rows),
        sorted(replaced.tolist()),
        math.ceil(len(changed) / settings.articles_per_part),
    )


def _write_round(
    folder: Location,
    number: int,
    first_part: int,
    settings: Harvest,
    inventory: Inventory,
    candidates: pa.Table,
    replaced: list[int],
    num_required: int,
) -> HarvestRound:
    size = settings.articles_per_part
    table = candidates.cast(CANDIDATES_SCHEMA)
    (folder / f"candidates-{number}.parquet").write_table(table, row_group_size=size)
    (folder / f"replaced-{number}.parquet").write_table(pa.table({"pmcid": replaced}))
    return HarvestRound(
        inventory=inventory.name,
        inventory_sha256=inventory.sha256,
        first_part=first_part,
        num_parts=math.ceil(table.num_rows / size),
        num_required=num_required,
        num_articles=table.num_rows,
        num_replaced=len(replaced),
    )


def read_replaced(folder: Location, number: int) -> set[str]:
    """Return the articles that a round removes from the parts before it."""
    table = (folder / f"replaced-{number}.parquet").read_table()
    return {f"PMC{pmcid}" for pmcid in table["pmcid"].to_pylist()}


def next_parts(here: HarvestRound, done: set[int], num_kept: int, settings: Harvest) -> list[int]:
    """Return the parts that are needed for certain, in order; none when the round is finished.

    A part gives `articles_per_part` articles at most, so `max_articles` needs this many parts more.
    The parts that are harvested are thereby the shortest possible beginning of the round.

    Args:
        here: The round.
        done: Complete parts.
        num_kept: Articles with figures so far.
        settings: The settings.
    """
    pending = [
        part
        for part in range(here.first_part, here.first_part + here.num_parts)
        if part not in done
    ]
    if settings.max_articles is None:
        return pending
    missing = max(0, settings.max_articles - num_kept)
    required = [part for part in pending if part < here.first_part + here.num_required]
    return pending[: max(len(required), math.ceil(missing / settings.articles_per_part))]


def _is_wanted(numbers: Any, wanted: Sequence[int] | None) -> Any:
    if wanted is None:
        return np.ones(len(numbers), bool)
    return np.isin(numbers, np.fromiter(wanted, np.int64, len(wanted)))


def _newest(known: pa.Table) -> pa.Table:
    """Keep the last row of every article, ordered by article."""
    numbers = known["pmcid"].to_numpy()
    order = np.lexsort((np.arange(len(numbers)), numbers))
    ordered = numbers[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]
    return known.take(order[is_last.astype(bool)])
