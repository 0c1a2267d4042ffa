"""Bring MLflow up to date with storage: the results of stages, their scores, the model.

Results are read from storage alone, whether this attempt made them or an earlier one, which may
have been killed or may have found no server. What a run already shows is not sent again.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress

from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.prepared.dataset import open_prepared
from llavamed.errors import DataError
from llavamed.evaluate.answers import ANSWERS, AnswersManifest
from llavamed.evaluate.publish import REPORT
from llavamed.run.cards import render_cards
from llavamed.run.curriculum import StagePlan
from llavamed.run.tracking import TrackedRun, Tracker
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import locate
from llavamed.storage.manifest import ScoresManifest
from llavamed.storage.run_progress import Spending, StageProgress, find_progress
from llavamed.train.history import read_history

logger = logging.getLogger(__name__)


def track_everything(config: RunConfig, plans: list[StagePlan], tracker: Tracker) -> None:
    """Record everything that is in storage and not yet in MLflow. Raises: TrackingError."""
    evaluations = {}
    for plan in plans:
        if plan.result() is None:
            continue
        track_stage(config, plan, tracker)
        found = plan.scores(config.datasets_directory)
        if found is not None:
            track_evaluation(config, plan, found, tracker)
            evaluations[plan.stage.name] = found
    track_end(config, plans, evaluations, tracker)


def track_stage(config: RunConfig, plan: StagePlan, tracker: Tracker) -> None:
    """Record a finished stage: its steps, sums and model. Raises: TrackingError."""
    name, result = plan.stage.name, plan.result()
    assert result is not None, "only a finished stage has a result"
    if tracker.has_recorded(name, result.fingerprint):
        return
    run = start_stage(config, plan, result.fingerprint, tracker)
    _track_datasets(config, plan.stage.mixture, run, "training")
    history = read_history(plan.export)
    run.log_result(f"{config.name}-{name}", str(plan.export), result, history)
    spent = _stage_progress(config, name)
    if spent is not None:
        run.log_scores(_costs(spent.training))
    run.finish(result.fingerprint)


def track_evaluation(
    config: RunConfig, plan: StagePlan, found: ScoresManifest, tracker: Tracker
) -> None:
    """Record the scores of a stage, with its answers, page and cards. Raises: TrackingError."""
    settings, result = plan.stage.evaluation, plan.result()
    assert settings is not None, "a stage with scores has an evaluation"
    assert result is not None, "a stage with scores has a result"
    if tracker.has_recorded(f"{plan.stage.name}-evaluation", found.fingerprint):
        return
    run = start_evaluation(plan.stage, result.fingerprint, tracker)
    _track_datasets(config, {settings.data: 1.0}, run, "evaluation")
    run.log_scores(flat_scores(found.scores))
    spent = _stage_progress(config, plan.stage.name)
    if spent is not None:
        run.log_scores(_costs(spent.evaluation))
    for file in (ANSWERS, AnswersManifest.FILE, REPORT, ScoresManifest.FILE):
        run.log_file(plan.evaluation / file)
    try:
        cards = render_cards(config, plan, found)
    except DataError as error:  # the model may outlive what it was trained on
        logger.warning("tracking: no cards of %s are recorded: %s", plan.stage.name, error)
        cards = {}
    for file, text in cards.items():
        run.log_text(text, f"cards/{file}")
    run.finish(found.fingerprint)


def track_end(
    config: RunConfig,
    plans: list[StagePlan],
    evaluations: Mapping[str, ScoresManifest],
    tracker: Tracker,
) -> None:
    """Register the last stage's model and close the parent run with the scores of every stage.

    The scores of a stage begin with its name; those of the last one are there without it too.

    Raises:
        TrackingError: MLflow refuses.
    """
    results = [plan.result() for plan in plans]
    end = fingerprint(
        {
            "config": config.model_dump(mode="json"),
            "stages": [result.fingerprint for result in results if result is not None],
            "evaluations": {stage: found.fingerprint for stage, found in evaluations.items()},
        }
    )
    if tracker.has_finished(end):
        return
    scores: dict[str, float] = {}
    for stage, found in evaluations.items():
        values = flat_scores(found.scores)
        scores |= values | {f"{stage}.{name}": value for name, value in values.items()}
    if (progress := find_progress(locate(config.directory))) is not None:
        scores |= _costs(progress.spent)
    if (last := results[-1]) is not None:
        logger.info(tracker.register_model(str(plans[-1].export), last))
    tracker.finish(scores, end)


def start_stage(config: RunConfig, plan: StagePlan, trained: str, tracker: Tracker) -> TrackedRun:
    """Open the run of a stage, whose training has this fingerprint. Raises: TrackingError."""
    return tracker.start(plan.stage.name, stage_settings(config, plan), trained)


def start_evaluation(stage: Stage, trained: str, tracker: Tracker) -> TrackedRun:
    """Open the run of a stage's evaluation.

    Args:
        stage: The stage, which has an evaluation.
        trained: Fingerprint of its training.
        tracker: Where runs are opened.

    Raises:
        TrackingError: MLflow refuses.
    """
    assert stage.evaluation is not None
    settings = stage.evaluation.model_dump(mode="json")
    made_by = fingerprint({"trained": trained, "evaluation": settings})
    return tracker.start(f"{stage.name}-evaluation", settings, made_by)


def stage_settings(config: RunConfig, plan: StagePlan) -> dict[str, object]:
    """Return the parameters that the run of a stage shows."""
    settings = plan.stage.model_dump(mode="json", exclude={"evaluation", "engine"})
    scaling = config.scaling.model_dump(mode="json")
    engine = config.engine_of(plan.stage).model_dump(mode="json")
    return (
        settings
        | {f"scaling.{key}": value for key, value in scaling.items()}
        | {f"engine.{key}": value for key, value in engine.items()}
        | {"seed": config.seed, "initial_weights": plan.initial_weights}
    )


def flat_scores(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Return scores by `control.name`, without those that no question has."""
    return {
        f"{control}.{name}": value
        for control, values in scores.items()
        for name, value in values.items()
        if value is not None
    }


def _stage_progress(config: RunConfig, stage: str) -> StageProgress | None:
    """Return a stage of the run's record, or None if the record was lost."""
    progress = find_progress(locate(config.directory))
    stages = {each.name: each for each in progress.stages} if progress else {}
    return stages.get(stage)


def _costs(spent: Spending) -> dict[str, float]:
    """Return what something has cost as metrics, without a price that is unknown."""
    cost = {} if spent.cost is None else {"cost": spent.cost}
    return {"gpu_seconds": spent.gpu_seconds} | cost


def _track_datasets(
    config: RunConfig, names: Mapping[str, float], run: TrackedRun, context: str
) -> None:
    """Record the datasets that a run has read, if they still exist."""
    for name in names:
        with suppress(DataError):
            run.log_dataset(open_prepared(locate(config.datasets_directory) / name), context)
