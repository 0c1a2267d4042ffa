"""Prepare datasets in a Ray Data job: shards, index, content hashes, quarantine and manifest.

One task streams the listings of the sources in chunks. Actors fetch and decode the images of a
chunk, make its tokens and labels, and write it as one shard. Only tables with a few numbers and
hashes per sample come back, so memory does not grow with the data, and the same inputs give the
same bytes on any number of machines. Duplicates are found by content; they are counted, or
quarantined with `drop_duplicates`.
"""

import json
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import ray

from llavamed.config.data import Dataset
from llavamed.config.run import RunConfig
from llavamed.data.prepare.made_from import check_made_from, made_from
from llavamed.data.prepare.processor import ensure_processor
from llavamed.data.prepare.remarks import remarks, warn_of_endless_answers
from llavamed.data.prepare.shards import MAX_UNREAD_KEYS, Chunk, ShardReport, ShardWriter
from llavamed.data.prepared.dataset import PreparedDataset, hold_datasets, open_prepared
from llavamed.data.prepared.questions import NO_TYPE, check_questions
from llavamed.data.prepared.sample_tables import join
from llavamed.data.sources import open_source
from llavamed.errors import DataError
from llavamed.parallel.pipeline import actor_restarts, carry_errors, configure_ray_data, iter_rows
from llavamed.processor.build import Processor, load_processor, tiling
from llavamed.processor.encode import check_template
from llavamed.processor.templates import get_template
from llavamed.storage.fetch import fetch_once
from llavamed.storage.location import MANIFEST, Location, check_writable, locate
from llavamed.storage.manifest import DatasetManifest, find, write

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]
"""Called with a dataset's name, its finished samples and all its samples."""

_MEMORY_HINT = (
    "use a machine with more memory for each CPU, or set data.rows_per_shard lower and "
    "data.directory to another folder"
)


def prepare(
    config: RunConfig, names: Sequence[str], on_progress: OnProgress = lambda *_: None
) -> dict[str, PreparedDataset]:
    """Prepare those of the named datasets that are not prepared yet, all in one Ray Data job.

    Args:
        on_progress: Called for each dataset at the start, and after each shard.

    Returns:
        The datasets by name.

    Raises:
        DataError: A source is unreadable or empty; too many samples are unusable; a dataset was
            prepared with other settings; or a dataset that a stage is evaluated on cannot be
            scored.
        StorageError: The target cannot be written.
        LeaseError: Another run is preparing datasets there.
    """
    directory = locate(config.datasets_directory)
    check_writable(directory)
    place = ensure_processor(config)
    processor = load_processor(Path(fetch_once(str(place))))
    for name in names:
        there = find(DatasetManifest, directory / name)
        if there is not None:
            check_made_from(there.made_from, made_from(config, name, processor), directory / name)
    if _pending(directory, names):
        with hold_datasets(directory):
            pending = _pending(directory, names)
            manifests = {name: initial_manifest(config, name, processor) for name in pending}
            warn_of_endless_answers(config.model.template, processor.tokenizer)
            _run(config, manifests, place, on_progress)
    prepared = {name: open_prepared(directory / name) for name in names}
    for stage in config.stages:
        if (scored := stage.evaluation) is None:
            continue
        key, has_majority = f"stages.{stage.name}.evaluation", "majority" in scored.controls
        if scored.data in prepared:
            check_questions(prepared[scored.data], f"{key}.data")
        if has_majority and scored.majority != scored.data and scored.majority in prepared:
            check_questions(prepared[scored.majority], f"{key}.majority_from", [NO_TYPE])
    return prepared


def check_sources(config: RunConfig, names: Sequence[str]) -> None:
    """Compare prepared datasets with their current sources, which this lists and hashes.

    Raises:
        DataError: A source has changed or is unreadable, or a dataset is not prepared.
    """
    directory = locate(config.datasets_directory)
    changed = []
    for name in names:
        there = open_prepared(directory / name)
        source = open_source(config.data.datasets[name].read)
        if source.content_hash() == there.manifest.source_hash:
            logger.info("%s: its source has not changed, %d rows", name, there.manifest.num_rows)
        else:
            changed.append(
                f"data.datasets.{name}: its source has changed since {there.location} was prepared "
                f"(then {there.manifest.num_rows} rows, now {source.count()})"
            )
    if changed:
        raise DataError(
            f"{'; '.join(changed)}; set data.directory to another folder, or delete the dataset's, "
            "to prepare again"
        )


def _pending(directory: Location, names: Sequence[str]) -> list[str]:
    return [name for name in names if not (directory / name / MANIFEST).exists()]


def _run(
    config: RunConfig,
    manifests: dict[str, DatasetManifest],
    processor: Location,
    on_progress: OnProgress,
) -> None:
    """Prepare the datasets of these manifests, which are completed one after another at the end.

    Raises:
        DataError: A dataset cannot be completed. The others are.
    """
    directory, names = locate(config.datasets_directory), list(manifests)
    reports: dict[str, list[ShardReport]] = {name: [] for name in names}
    done: Counter[str] = Counter()
    for name in names:
        (directory / name).remove()  # left behind by a run that was killed
        on_progress(name, 0, manifests[name].num_rows)  # the first shard may take minutes
    for row in iter_rows(_pipeline(config, names, processor), memory_hint=_MEMORY_HINT):
        report: ShardReport = pickle.loads(row["report"])
        reports[report.dataset].append(report)
        done[report.dataset] += report.tables.num_rows
        on_progress(report.dataset, done[report.dataset], manifests[report.dataset].num_rows)
    refused: list[DataError] = []
    for name in names:
        settings = config.data.datasets[name]
        try:
            complete_dataset(directory / name, manifests[name], reports[name], settings)
        except DataError as error:  # finish the other datasets first
            refused.append(error)
    for other in refused[1:]:
        logger.warning("%s", other)
    if refused:
        raise refused[0]


def _pipeline(config: RunConfig, names: list[str], processor: Location) -> Any:
    """Return the Ray dataset whose rows are the reports of all shards, in the order of chunks."""
    configure_ray_data()
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return (
        ray.data.range(1)
        .flat_map(partial(_chunk_rows, config=config, names=names), num_cpus=0.5)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            _ShardActor,
            fn_constructor_args=(config, str(processor)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, cpus - 1)),
            num_cpus=1,
            **actor_restarts(config.max_failures),
        )
    )


def list_chunks(config: RunConfig, names: Sequence[str]) -> Iterator[Chunk]:
    """Yield the rows of the named datasets in chunks of one shard each."""
    for name in names:
        rows = open_source(config.data.datasets[name].read).rows()
        shard = 0
        while chunk := list(islice(rows, config.data.rows_per_shard)):
            yield Chunk(name, shard, shard * config.data.rows_per_shard, chunk)
            shard += 1


def _chunk_rows(
    _: dict[str, Any], config: RunConfig, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    with carry_errors():
        for chunk in list_chunks(config, names):
            yield {"chunk": json.dumps(asdict(chunk))}


class _ShardActor:
    """Adapts `ShardWriter` to Ray Data: one chunk in, one pickled report out."""

    def __init__(self, config: RunConfig, processor: str) -> None:
        self._settings = config, processor

    @cached_property
    def _writer(self) -> ShardWriter:
        """The writer, created with the first chunk, because Ray retries a failing constructor
        forever."""
        return ShardWriter(*self._settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with carry_errors():
            chunks = [Chunk(**json.loads(chunk)) for chunk in batch["chunk"]]
            return {"report": [pickle.dumps(self._writer.write(chunk)) for chunk in chunks]}


def initial_manifest(config: RunConfig, name: str, processor: Processor) -> DatasetManifest:
    """Return the manifest of a dataset before it is prepared, without any counts of samples.

    Raises:
        DataError: The source holds no sample, or is unreadable.
        ConfigError: The tokenizer does not fit the template, or images do not fit `max_length`.
    """
    source = open_source(config.data.datasets[name].read)
    if not (num_rows := source.count()):
        raise DataError(
            f"data.datasets.{name}.read: the source holds no sample; check its path, its split and "
            "what it leaves out"
        )
    check_template(get_template(config.model.template), processor.tokenizer)
    tiles = tiling(processor)
    tiles.check_fits(config.data.max_length)
    return DatasetManifest(
        made_from=made_from(config, name, processor),
        source_hash=source.content_hash(),
        num_rows=num_rows,
        template=config.model.template,
        num_image_tokens=tiles.num_tile_tokens,
        image_token_id=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )


def complete_dataset(
    place: Location, manifest: DatasetManifest, reports: list[ShardReport], settings: Dataset
) -> None:
    """Write the sample tables and then the manifest, which completes the dataset.

    Also log the remarks about the source.

    Raises:
        DataError: Too many samples are unusable. Duplicates do not count as unusable.
    """
    tables = join([report.tables for report in reports])
    bad, bound = tables.quarantine, settings.max_bad_fraction
    unread = sum((Counter(report.unread_keys) for report in reports), Counter())
    spelled = sum((Counter(report.spelled_tokens) for report in reports), Counter())
    names = tables.count_names()
    for line in remarks(place.name, unread, spelled, names):
        logger.warning("%s", line)
    if settings.drop_duplicates:
        tables = tables.without_duplicates(place.name)
    tables.write(place)
    if not tables.index.num_rows or bad.num_rows / tables.num_rows > bound:
        reasons = Counter(bad.column("reason").to_pylist())
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        fraction = "" if not tables.index.num_rows else " or raise the fraction"
        raise DataError(
            f"data.datasets.{place.name}.max_bad_fraction={bound}: "
            f"{bad.num_rows} of {tables.num_rows} samples are unusable ({counts}); see why with "
            f"`llavamed data inspect {place.name} --quarantined --config FILE`, then correct the "
            f"source{fraction}"
        )
    complete = manifest.replace(
        **tables.counts(),
        **names,
        unread_keys=dict(unread.most_common(MAX_UNREAD_KEYS)),
        fingerprint=tables.fingerprint(manifest),
    )
    write(place, complete)
