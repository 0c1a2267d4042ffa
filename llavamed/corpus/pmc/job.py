"""Harvest articles in a Ray Data job: plan, parts, removals and manifest.

Each worker takes one part after another and fetches many articles of it at once. What it needs is
written down before (`plan`), and what it has done is in the part (`part`), so that nothing but the
numbers of parts passes through Ray and memory does not grow with the corpus.
"""

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray

from llavamed.config.harvest import Harvest
from llavamed.corpus.figures import NUM_THREADS, list_parts, read_figures
from llavamed.corpus.pmc.fetch import UNAVAILABLE
from llavamed.corpus.pmc.inventory import CANDIDATES_SCHEMA, read_inventory
from llavamed.corpus.pmc.part import (
    PartReport,
    find_part,
    harvest_part,
    part_folder,
    read_articles,
    remove_articles,
)
from llavamed.corpus.pmc.plan import (
    HarvestManifest,
    HarvestPlan,
    first_round,
    next_parts,
    next_round,
    read_replaced,
    settings_of,
)
from llavamed.corpus.pmc.search import find_articles, read_numbers
from llavamed.errors import DataError
from llavamed.parallel.pipeline import (
    actor_restarts,
    carry_errors,
    configure_ray_data,
    iter_rows,
)
from llavamed.storage.fingerprint import differences
from llavamed.storage.lease import hold_lease
from llavamed.storage.location import MANIFEST, Location, check_writable, locate
from llavamed.storage.manifest import find, write

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
"""Called with the finished parts and all parts of the round."""


class HarvestJob:
    """The harvest of one corpus."""

    def __init__(self, settings: Harvest, corpus: Location, max_failures: int = 3) -> None:
        """Read nothing yet.

        Args:
            settings: The settings.
            corpus: Folder of the corpus.
            max_failures: Workers that may die before the job fails.
        """
        self._settings = settings
        self._corpus = corpus
        self._folder = corpus / "harvest"
        self._max_failures = max_failures
        self._complete: dict[int, PartReport] = {}

    def run(
        self, *, update: bool = False, on_progress: OnProgress = lambda *_: None
    ) -> HarvestManifest:
        """Harvest what is not harvested yet.

        Args:
            update: Also fetch what is new in the bucket, and remove what was retracted, corrected,
                relicensed or withdrawn.
            on_progress: Called after each part.

        Raises:
            DataError: The harvest was begun with other settings, is not finished and so cannot be
                updated, or too many articles are unavailable.
            StorageError: The bucket or the corpus cannot be read or written.
            LeaseError: Another process harvests into the folder.
        """
        check_writable(self._corpus)
        with hold_lease(self._folder, hint="set corpus.directory to another folder") as lease:
            plan = self._plan(update)
            short = [part for part, each in self._reports(plan).items() if _is_short(each)]
            while todo := self._next(plan):
                self._run_parts(plan, todo, on_progress)
            lease.check()
            if len(plan.rounds) > 1 and find(HarvestManifest, self._folder) is None:
                self._remove_replaced(plan)
            if short:
                self._run_parts(plan, sorted(short), on_progress)
            return self._finish(plan)

    def _plan(self, update: bool) -> HarvestPlan:
        plan = find(HarvestPlan, self._folder)
        if plan is None:
            inventory = read_inventory(locate(self._settings.source))
            here = first_round(self._folder, self._settings, inventory, self._wanted())
            logger.info("inventory: %s, %d articles", here.inventory, here.num_articles)
            plan = HarvestPlan(settings=settings_of(self._settings), rounds=(here,))
            write(self._folder, plan)
            return plan
        if differing := differences(plan.settings, settings_of(self._settings), "corpus.harvest."):
            raise DataError(
                f"{self._folder}: was begun with other settings: {'; '.join(differing)}; restore "
                "them, or set corpus.directory to another folder"
            )
        if not update:
            return plan
        if self._next(plan) or find(HarvestManifest, self._folder) is None:
            raise DataError(
                f"{self._folder}: is not finished, so it cannot be updated; finish it without "
                "--update first"
            )
        return self._update(plan)

    def _update(self, plan: HarvestPlan) -> HarvestPlan:
        done = self._reports(plan)
        # Parts that max_articles left out are taken up again by the new round.
        last = plan.last.replace(num_parts=sum(part >= plan.last.first_part for part in done))
        closed = plan.replace(rounds=(*plan.rounds[:-1], last))
        rows = [
            (int(row.pmcid.removeprefix("PMC")), row.version, row.etag)
            for part in sorted(done)
            for row in read_articles(part_folder(self._folder, part))
        ]
        known = pa.Table.from_pylist(
            [dict(zip(CANDIDATES_SCHEMA.names, row, strict=True)) for row in rows],
            CANDIDATES_SCHEMA,
        )
        inventory = read_inventory(locate(self._settings.source))
        here = next_round(self._folder, closed, self._settings, inventory, known, self._wanted())
        if here is None:
            logger.info("inventory: %s, nothing is new or has changed", inventory.name)
            return plan
        logger.info(
            "inventory: %s, %d articles are new or have changed, %d are replaced or gone",
            *(here.inventory, here.num_articles, here.num_replaced),
        )
        plan = closed.replace(rounds=(*closed.rounds, here))
        (self._folder / MANIFEST).remove()
        write(self._folder, plan)
        return plan

    def _wanted(self) -> list[int] | None:
        settings = self._settings
        if settings.query is not None:
            today = datetime.now(UTC).date()
            return find_articles(settings.query, settings.search_url, today)
        return None if settings.articles is None else read_numbers(locate(settings.articles))

    def _reports(self, plan: HarvestPlan) -> dict[int, PartReport]:
        """Return the reports of the complete parts, each read once."""
        names = [name for name in self._folder.children() if name.isdigit()]
        unread = [n for n in map(int, names) if n < plan.num_parts and n not in self._complete]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            found = pool.map(lambda part: find_part(part_folder(self._folder, part)), unread)
            self._complete |= {
                part: report
                for part, report in zip(unread, found, strict=True)
                if report is not None
            }
        return self._complete

    def _next(self, plan: HarvestPlan) -> list[int]:
        done = self._reports(plan)
        num_kept = sum(report.num_kept for report in done.values())
        return next_parts(plan.last, set(done), num_kept, self._settings)

    def _run_parts(self, plan: HarvestPlan, parts: list[int], on_progress: OnProgress) -> None:
        for part in parts:
            self._complete.pop(part, None)
        configure_ray_data()
        cpus = int(ray.cluster_resources().get("CPU", 1))
        num_workers = max(1, min(cpus, len(parts)))
        pipeline = ray.data.from_items(
            [{"part": part} for part in parts], override_num_blocks=len(parts)
        ).map_batches(
            _PartActor,
            fn_constructor_args=(self._settings, str(self._corpus), plan, num_workers),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers),
            num_cpus=1,
            **actor_restarts(self._max_failures),
        )
        hint = "set corpus.harvest.articles_in_flight lower"
        for number, _ in enumerate(iter_rows(pipeline, memory_hint=hint), start=1):
            on_progress(number, len(parts))

    def _remove_replaced(self, plan: HarvestPlan) -> None:
        """Remove from the parts of earlier rounds what the last one replaces or finds gone."""
        names = read_replaced(self._folder, len(plan.rounds) - 1)
        parts = [part_folder(self._folder, part) for part in self._reports(plan)]
        keep = {
            picture.path
            for place in parts
            if int(place.name) >= plan.last.first_part
            for figure in read_figures(place)
            if figure.pmcid in names
            for picture in figure.pictures
        }
        for place in parts:
            if int(place.name) < plan.last.first_part:
                remove_articles(place, names, self._corpus, keep)
        self._complete.clear()  # their counts have changed

    def _finish(self, plan: HarvestPlan) -> HarvestManifest:
        reports = self._reports(plan).values()
        figures = [manifest for _, manifest in list_parts(self._folder)]
        manifest = HarvestManifest(
            inventory=plan.last.inventory,
            num_articles=sum(each.num_articles for each in reports),
            num_kept=sum(each.num_kept for each in reports),
            reasons=_total(each.reasons for each in reports),
            num_figures=sum(each.num_figures for each in figures),
            num_kept_figures=sum(each.num_kept for each in figures),
            refused=_total(each.refused for each in figures),
            counts=_total(each.counts for each in reports),
            num_removed=sum(each.num_replaced for each in plan.rounds),
        )
        write(self._folder, manifest)
        return manifest


class _PartActor:
    """Adapts `harvest_part` to Ray Data: the number of a part in, and out when it is complete."""

    def __init__(self, settings: Harvest, corpus: str, plan: HarvestPlan, num_workers: int) -> None:
        self._settings = settings
        self._corpus = corpus
        self._plan = plan
        self._num_workers = num_workers

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with carry_errors():
            corpus = locate(self._corpus)
            folder = corpus / "harvest"
            for part in batch["part"]:
                harvest_part(
                    part_folder(folder, int(part)),
                    self._plan.read_part(folder, int(part)),
                    self._settings,
                    corpus,
                    made_from=self._plan.made_from(int(part)),
                    num_workers=self._num_workers,
                )
            return {"part": batch["part"]}


def _is_short(report: PartReport) -> bool:
    return report.reasons.get(UNAVAILABLE, 0) > 0


def _total(counts: Any) -> dict[str, int]:
    return dict(sorted(sum((Counter(each) for each in counts), Counter[str]()).items()))
