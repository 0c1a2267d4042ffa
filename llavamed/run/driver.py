"""Run the whole curriculum, stage after stage: prepare, train, evaluate, summarize.

Finished work is found in storage and not repeated, so the same command continues where the last one
stopped. If nothing is left to do, Ray is not started. The record of a run, in its folder and in
MLflow, is written only after all checks have passed.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from llavamed.config.load import dump_config
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.order import StageOrder
from llavamed.data.prepare.job import check_sources, prepare
from llavamed.data.prepare.processor import ensure_processor
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError, LeaseError, LlavaMedError, StorageError, TrackingError
from llavamed.evaluate.overlaps import find_overlaps
from llavamed.evaluate.run import evaluate
from llavamed.run.curriculum import StagePlan, find_stage, make_jobs, plan_curriculum, trained_on
from llavamed.run.fit import fit
from llavamed.run.model_checks import (
    check_language_model,
    check_vocabulary,
    check_weights,
    warn_of_unlearned_ends,
)
from llavamed.run.plan import training_flops
from llavamed.run.preflight import check_packages, check_settings, check_stage, warn_of_instability
from llavamed.run.progress import ProgressDisplay
from llavamed.run.ray_cluster import ray_cluster
from llavamed.run.record import RunRecord
from llavamed.run.resources import log_what_is_missing
from llavamed.run.track_results import (
    start_evaluation,
    start_stage,
    track_end,
    track_evaluation,
    track_everything,
    track_stage,
)
from llavamed.run.tracking import Tracker, check_tracking
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.lease import Lease, hold_lease
from llavamed.storage.location import check_writable, locate
from llavamed.storage.manifest import ExportManifest, Measurement, ScoresManifest, find, write
from llavamed.storage.run_progress import RunSummary, Spending, StageSummary
from llavamed.train.checkpoint.listing import newest_checkpoint
from llavamed.train.job import StageJob, order_of
from llavamed.train.metrics import StepRecord

logger = logging.getLogger(__name__)
CONFIG = "config.yaml"
_HINT = (
    "use another name; `llavamed train --take-over` takes a run over, and ends the other at its "
    "next checkpoint"
)


def run_curriculum(
    config: RunConfig, progress: ProgressDisplay, *, take_over: bool = False
) -> RunSummary:
    """Do the rest of a run and return its summary, which is also written to its folder.

    Args:
        take_over: Continue even if another attempt holds the run's folder, and end that attempt.

    Raises:
        LlavaMedError: The run cannot go on for a reason that a user can fix; finished work is kept.
    """
    directory = locate(config.directory)
    plans = plan_curriculum(config)
    summary = _finished_summary(config, plans)
    if summary is not None:
        track_everything(config, plans, Tracker(config))
        logger.info("everything is finished in %s; nothing to do", directory)
        return summary
    check_writable(directory)
    check_packages(config, plans)
    check_weights(config, plans)
    check_language_model(config, plans)
    warn_of_instability(config)
    check_tracking(config)
    with hold_lease(directory, hint=_HINT, take_over=take_over) as lease:
        check_settings(plans, make_jobs(config, plans))
        with RunRecord(config, plans, lease, progress) as record:
            processor = ensure_processor(config)
            check_vocabulary(plans, processor)
            warn_of_unlearned_ends(config, plans, processor)
            with ray_cluster(config):
                datasets = prepare(config, _datasets_of(plans), record.prepared)
                facts = {name: each.manifest.fingerprint for name, each in datasets.items()}
                jobs = make_jobs(config, plans, facts, lease)
                check_settings(plans, jobs)
                for plan, job in zip(plans, jobs, strict=True):  # all, before the first one trains
                    data = plan.data(datasets)
                    order = check_stage(plan, job, data)
                    record.planned(plan.stage.name, _work_of(config, plan.stage, data, order))
                lease.check()
                (directory / CONFIG).write_bytes(dump_config(config).encode())
                with _tracked(config, lease) as tracker:
                    summary = _run(config, plans, jobs, datasets, tracker, record)
            lease.check()
            write(directory, summary)
    return summary


def prepare_datasets(
    config: RunConfig, names: list[str], progress: ProgressDisplay
) -> dict[str, PreparedDataset]:
    """Prepare the named datasets, by default all of the config's. Raises: LlavaMedError."""
    for name in names:
        config.data.check_name(name)
    check_writable(locate(config.datasets_directory))
    ensure_processor(config)
    with ray_cluster(config):
        chosen = names or list(config.data.datasets)
        return prepare(config, chosen, progress.prepared)


def check_datasets(config: RunConfig, names: list[str]) -> None:
    """Compare the named datasets, by default all of the config's, with their sources, without Ray.

    Raises:
        LlavaMedError: A source has changed, or a dataset is not prepared.
    """
    for name in names:
        config.data.check_name(name)
    check_sources(config, names or list(config.data.datasets))


def evaluate_stages(
    config: RunConfig, stage: str | None, progress: ProgressDisplay
) -> list[ScoresManifest]:
    """Score finished stages, including those that were scored before.

    Raises:
        LlavaMedError: There is no such stage, it is not trained yet or was trained with other
            settings, or another attempt holds the run's folder.
    """
    chosen = plan_curriculum(config) if stage is None else [find_stage(config, stage)]
    plans = [plan for plan in chosen if plan.stage.evaluation is not None]
    if not plans:
        names = ", ".join(plan.stage.name for plan in chosen)
        raise ConfigError(
            f"stages: no evaluation is set for {names}; add one to a stage's settings"
        )
    for plan in plans:
        if plan.result() is None:
            raise ConfigError(f"stage={plan.stage.name}: is not trained yet; train it first")
    check_tracking(config)
    with hold_lease(locate(config.directory), hint=_HINT) as lease:
        everything = plan_curriculum(config)
        check_settings(everything, make_jobs(config, everything))
        with RunRecord(config, everything, lease, progress) as record, ray_cluster(config):
            datasets = prepare(config, _datasets_of(plans), record.prepared)
            with _tracked(config, lease) as tracker:
                found = [
                    _evaluate(config, plan, datasets, lease, tracker, record) for plan in plans
                ]
                track_everything(config, everything, tracker)
    return found


@contextmanager
def _tracked(config: RunConfig, lease: Lease) -> Iterator[Tracker]:
    """Track a run, and close it as failed at an error, unless another attempt has taken it over."""
    tracker = Tracker(config)
    try:
        yield tracker
    except (LlavaMedError, KeyboardInterrupt) as error:
        with suppress(LeaseError, StorageError):
            lease.without_retries().check()
            tracker.fail(str(error) or "interrupted")
        raise


def _run(
    config: RunConfig,
    plans: list[StagePlan],
    jobs: list[StageJob],
    datasets: dict[str, PreparedDataset],
    tracker: Tracker,
    record: RunRecord,
) -> RunSummary:
    """Train and evaluate what is not finished, stage after stage, and return the run's summary."""
    lease = jobs[-1].lease
    assert lease is not None
    stages, evaluations, measured = [], {}, list[Measurement]()
    for plan, job in zip(plans, jobs, strict=True):
        result = plan.result() or _train(config, plan, job, datasets, tracker, record)
        record.stage_finished(plan.stage.name, result)
        track_stage(config, plan, tracker)
        if plan.stage.evaluation is not None:
            found = plan.scores(config.datasets_directory)
            found = found or _evaluate(config, plan, datasets, lease, tracker, record)
            track_evaluation(config, plan, found, tracker)
            evaluations[plan.stage.name] = found
        stages.append(_stage_summary(plan, result, record.spent(plan.stage.name)))
        measured += [result.measured] if result.measured is not None else []
    lease.check()
    track_end(config, plans, evaluations, tracker)
    return RunSummary(
        name=config.name,
        fingerprint=fingerprint(config.model_dump(mode="json")),
        tracking_uri=tracker.uri,
        stages=tuple(stages),
        scores=list(evaluations.values())[-1].scores if evaluations else {},
        evaluations=tuple(evaluations.values()),
        currency=config.gpu_prices.currency,
        prices_date=config.gpu_prices.date,
        measured=tuple(measured),
    )


def _datasets_of(plans: list[StagePlan]) -> list[str]:
    return list(dict.fromkeys(name for plan in plans for name in plan.datasets))


def _work_of(config: RunConfig, stage: Stage, data: Mixture, order: StageOrder) -> float | None:
    """Return the operations of a stage's training, or None where its model's shape is unknown."""
    try:
        return training_flops(config, stage, data, order)
    except ConfigError as error:  # no reason to stop a run
        logger.debug("the end of the run is not estimated: %s", error)
        return None


def _train(
    config: RunConfig,
    plan: StagePlan,
    job: StageJob,
    datasets: dict[str, PreparedDataset],
    tracker: Tracker,
    record: RunRecord,
) -> ExportManifest:
    """Train one stage, track it, and return the manifest of its export."""
    data, name = plan.data(datasets), plan.stage.name
    assert job.lease is not None
    job.lease.check()
    run = start_stage(config, plan, job.fingerprint, tracker)
    for dataset in data.datasets:
        run.log_dataset(dataset, "training")
    saved = newest_checkpoint(plan.checkpoints)
    record.stage_started(
        name,
        order_of(plan.stage, data, config.seed).num_steps,
        num_saved=saved.step if saved is not None else 0,
        on_workers=config.scaling.launcher == "ray",
    )

    def on_records(records: list[StepRecord]) -> None:
        record.trained(records)
        try:
            run.log_records(records)
        except TrackingError as error:  # no reason to stop training: everything is sent at its end
            logger.warning("metrics are held back: %s", error)

    folder = locate(config.directory) / "ray"
    while not fit(job, folder, record.workers_started, on_records):
        logger.warning("train %s: a machine is taken away; the stage goes on elsewhere", name)
    job.lease.check()
    result = plan.result()
    assert result is not None, "the workers ended without an error and without an export"
    record.stage_trained(name, result)
    return result


def _evaluate(
    config: RunConfig,
    plan: StagePlan,
    datasets: dict[str, PreparedDataset],
    lease: Lease,
    tracker: Tracker,
    record: RunRecord,
) -> ScoresManifest:
    """Evaluate one trained stage, track it, and return the manifest of its scores."""
    lease.check()
    settings, result = plan.stage.evaluation, plan.result()
    assert settings is not None
    assert result is not None
    run = start_evaluation(plan.stage, result.fingerprint, tracker)
    run.log_dataset(datasets[settings.data], "evaluation")
    record.evaluation_started(plan.stage.name)
    started = time.monotonic()
    has_answered = threading.Event()

    def on_progress(done: int, total: int) -> None:
        has_answered.set()
        record.answered(done, total)

    with log_what_is_missing(config.scaling, has_answered):
        found = evaluate(
            config.model_copy(update={"engine": config.engine_of(plan.stage)}),
            settings,
            datasets,
            export=str(plan.export),
            export_fingerprint=result.fingerprint,
            folder=plan.evaluation,
            lease=lease,
            overlaps=find_overlaps(config, trained_on(config, plan), settings.data),
            on_progress=on_progress,
        )
    record.stage_finished(plan.stage.name, result)
    run.log_scores({"seconds": time.monotonic() - started})
    return found


def _stage_summary(plan: StagePlan, result: ExportManifest, spent: Spending) -> StageSummary:
    return StageSummary(
        name=plan.stage.name,
        steps=result.steps,
        loss_first=result.loss_first,
        loss_last=result.loss_last,
        tokens_per_second=result.tokens_per_second,
        mfu=result.mfu,
        seconds=result.seconds,
        step_seconds=result.step_seconds,
        export=str(plan.export),
        gpu_seconds=spent.gpu_seconds,
        cost=spent.cost,
    )


def _finished_summary(config: RunConfig, plans: list[StagePlan]) -> RunSummary | None:
    """Return the summary of a finished run of exactly this config, or None."""
    summary = find(RunSummary, locate(config.directory))
    if summary is None or summary.fingerprint != fingerprint(config.model_dump(mode="json")):
        return None
    finished = all(plan.is_current(config.datasets_directory) for plan in plans)
    return summary if finished else None
