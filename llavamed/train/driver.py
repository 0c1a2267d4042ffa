"""The whole run, stage after stage: prepare, train, evaluate, sum up.

What is finished is found in storage and not done again, so the same command goes on where the last
one stopped. When nothing is left to do, Ray is not even started.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from llavamed.config.load import dump_config
from llavamed.config.schema import RunConfig
from llavamed.data.prepare import PROCESSOR, prepare
from llavamed.data.prepared import PreparedDataset
from llavamed.errors import ConfigError, LlavaMedError
from llavamed.evaluate.run import REPORT, RESULTS, evaluate, read_scores
from llavamed.storage import check_writable, locate
from llavamed.train.context import Record
from llavamed.train.curriculum import StagePlan, find_stage, plan_curriculum
from llavamed.train.fit import fit
from llavamed.train.progress import Progress
from llavamed.train.tracking import Tracker
from llavamed.train.worker import StageJob, order_of

SUMMARY = "summary.json"
CONFIG = "config.yaml"


def run_curriculum(config: RunConfig, progress: Progress) -> dict[str, Any]:
    """Do what is left of a run and give its summary, which also lies in `summary.json`.

    Raises:
        LlavaMedError: Something a user can cure is wrong; what was finished stays finished.
    """
    directory = locate(config.directory)
    plans = plan_curriculum(config)
    summary = _finished_summary(config, plans)
    if summary is not None:
        progress.say(f"everything is finished in {directory}; nothing to do")
        return summary
    check_writable(directory)
    (directory / CONFIG).write_bytes(dump_config(config).encode())
    tracker = Tracker(config)
    try:
        with ray_cluster(config):
            summary = _run(config, plans, tracker, progress)
    except LlavaMedError as error:
        tracker.fail(str(error))
        raise
    (directory / SUMMARY).write_json(summary)
    return summary


def prepare_datasets(
    config: RunConfig, names: list[str], progress: Progress
) -> dict[str, PreparedDataset]:
    """Prepare datasets, all of the config by default. Raises: LlavaMedError."""
    for name in names:
        if name not in config.data.datasets:
            known = ", ".join(config.data.datasets)
            raise ConfigError(f"dataset={name}: is not in data.datasets; use one of: {known}")
    with ray_cluster(config):
        return prepare(config, names or list(config.data.datasets), progress.prepared)


def evaluate_stages(
    config: RunConfig, stage: str | None, progress: Progress
) -> list[dict[str, Any]]:
    """Score finished stages, also when they were scored before.

    Raises:
        LlavaMedError: There is no such stage, or it is not trained yet.
    """
    chosen = plan_curriculum(config) if stage is None else [find_stage(config, stage)]
    plans = [plan for plan in chosen if plan.stage.evaluation is not None]
    if not plans:
        names = ", ".join(plan.stage.name for plan in chosen)
        raise ConfigError(f"stages: {names} have no evaluation; add one to a stage's settings")
    for plan in plans:
        if plan.result() is None:
            raise ConfigError(f"stage={plan.stage.name}: is not trained yet; train it first")
    tracker = Tracker(config)
    with ray_cluster(config):
        datasets = prepare(config, _datasets_of(plans), progress.prepared)
        found = [
            _evaluate(
                config,
                plan,
                _job(config, plan, datasets[plan.stage.data]),
                datasets,
                tracker,
                progress,
            )
            for plan in plans
        ]
    tracker.finish(_flat(found[-1]["scores"]))
    return found


@contextmanager
def ray_cluster(config: RunConfig) -> Iterator[None]:
    """Join the cluster this process belongs to, or start one here for as long as needed.

    `RAY_ADDRESS`, which Ray sets for a submitted job, names the cluster.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
    address = os.environ.get("RAY_ADDRESS", "local")
    wanted = int(config.scaling.num_workers * config.scaling.resources_per_worker.get("CPU", 1))
    local = {"num_cpus": max(os.cpu_count() or 1, wanted), "include_dashboard": False}
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level="warning",
        **(local if address == "local" else {}),
    )
    try:
        yield
    finally:
        ray.shutdown()


def _run(
    config: RunConfig, plans: list[StagePlan], tracker: Tracker, progress: Progress
) -> dict[str, Any]:
    datasets = prepare(config, _datasets_of(plans), progress.prepared)
    jobs = [_job(config, plan, datasets[plan.stage.data]) for plan in plans]
    for plan, job in zip(plans, jobs, strict=True):  # all, before the first starts to train
        _check(config, plan, job, datasets[plan.stage.data])
    stages, evaluations = [], []
    for plan, job in zip(plans, jobs, strict=True):
        result = plan.result() or _train(config, plan, job, datasets, tracker, progress)
        stages.append(_stage_summary(plan, result))
        if plan.stage.evaluation is not None:
            found = read_scores(plan.evaluation, job.fingerprint)
            evaluations.append(found or _evaluate(config, plan, job, datasets, tracker, progress))
    last = evaluations[-1] if evaluations else {"scores": {}}
    tracker.finish(_flat(last["scores"]))
    return {
        "name": config.name,
        "tracking_uri": tracker.uri,
        "stages": stages,
        "scores": last["scores"],
        "evaluations": evaluations,
    }


def _check(config: RunConfig, plan: StagePlan, job: StageJob, dataset: PreparedDataset) -> None:
    """Find what would stop a stage, before any GPU waits for it."""
    dataset.check_shards()
    order_of(plan.stage, dataset, config.seed)
    result = plan.result()
    if result is not None and result["fingerprint"] != job.fingerprint:
        raise ConfigError(
            f"name={config.name}: stage {plan.stage.name} in {plan.export} was trained with other "
            "settings or data; use another name, or delete the folder of the stage to train it "
            "again"
        )


def _datasets_of(plans: list[StagePlan]) -> list[str]:
    names = []
    for plan in plans:
        names.append(plan.stage.data)
        if (settings := plan.stage.evaluation) is not None:
            names += [settings.data, settings.majority_from or settings.data]
    return list(dict.fromkeys(names))


def _job(config: RunConfig, plan: StagePlan, dataset: PreparedDataset) -> StageJob:
    return StageJob(
        config=config,
        stage=plan.stage,
        dataset=str(dataset.location),
        dataset_fingerprint=dataset.manifest["fingerprint"],
        processor=str(locate(config.datasets_directory) / PROCESSOR),
        initial_weights=plan.initial_weights,
        checkpoints=str(plan.checkpoints),
        export=str(plan.export),
    )


def _train(
    config: RunConfig,
    plan: StagePlan,
    job: StageJob,
    datasets: dict[str, PreparedDataset],
    tracker: Tracker,
    progress: Progress,
) -> dict[str, Any]:
    """Train one stage and track it; gives the export's manifest."""
    dataset, name = datasets[plan.stage.data], plan.stage.name
    run = tracker.start(name, _stage_settings(config, plan))
    run.log_dataset(dataset, "training")
    progress.stage_started(name, order_of(plan.stage, dataset, config.seed).num_steps)

    def on_records(records: list[Record]) -> None:
        run.log_records(records)
        progress.trained(records)

    try:
        fit(job, locate(config.directory) / "ray", on_records)
    except LlavaMedError:
        run.fail()
        raise
    result = plan.result()
    assert result is not None, "the workers ended without an error and without an export"
    run.log_records(result["history"])  # whatever the workers could not tell before they ended
    run.log_loss_plot(result["history"])
    values = {key: float(result[key]) for key in ("loss_first", "loss_last", "seconds")}
    run.log_export(f"{config.name}-{name}", job.export, values)
    run.finish()
    progress.stage_finished(name, result)
    return result


def _evaluate(
    config: RunConfig,
    plan: StagePlan,
    job: StageJob,
    datasets: dict[str, PreparedDataset],
    tracker: Tracker,
    progress: Progress,
) -> dict[str, Any]:
    settings = plan.stage.evaluation
    assert settings is not None
    run = tracker.start(f"{plan.stage.name}-evaluation", settings.model_dump(mode="json"))
    run.log_dataset(datasets[settings.data], "evaluation")
    started = time.monotonic()
    found = evaluate(
        config,
        settings,
        datasets,
        export=job.export,
        export_fingerprint=job.fingerprint,
        folder=plan.evaluation,
        on_progress=progress.answered,
    )
    run.log_scores(_flat(found["scores"]) | {"seconds": time.monotonic() - started})
    for name in (REPORT, RESULTS):
        run.log_text((plan.evaluation / name).read_bytes().decode(), name)
    run.finish()
    return found


def _stage_settings(config: RunConfig, plan: StagePlan) -> dict[str, Any]:
    """What a stage's run shows as its parameters."""
    settings = plan.stage.model_dump(mode="json", exclude={"evaluation"})
    scaling = config.scaling.model_dump(mode="json")
    engine = config.engine.model_dump(mode="json")
    return (
        settings
        | {f"scaling.{key}": value for key, value in scaling.items()}
        | {f"engine.{key}": value for key, value in engine.items()}
        | {"seed": config.seed, "initial_weights": plan.initial_weights}
    )


def _flat(scores: dict[str, dict[str, float | None]]) -> dict[str, float]:
    return {
        f"{control}.{key}": value
        for control, values in scores.items()
        for key, value in values.items()
        if value is not None
    }


def _stage_summary(plan: StagePlan, result: dict[str, Any]) -> dict[str, Any]:
    keys = ("steps", "loss_first", "loss_last", "tokens_per_second", "seconds")
    facts = {key: result[key] for key in keys}
    return {"name": plan.stage.name, **facts, "export": str(plan.export)}


def _finished_summary(config: RunConfig, plans: list[StagePlan]) -> dict[str, Any] | None:
    """The summary of a run of exactly this config that has ended, or none."""
    directory = locate(config.directory)
    try:
        before = (directory / CONFIG).read_bytes().decode()
        summary: dict[str, Any] = (directory / SUMMARY).read_json()
    except FileNotFoundError:
        return None
    finished = all(plan.result() is not None for plan in plans)
    return summary if finished and before == dump_config(config) else None
