"""Evaluate a stage of a run: answer, score, report. `scores.json`, written last, completes it."""

from collections.abc import Callable
from functools import partial

from llavamed.config.evaluation import Evaluation
from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.evaluate.answering import answer_stage
from llavamed.evaluate.answers import Overlap
from llavamed.evaluate.own_model import InitialCandidate, export_candidate
from llavamed.evaluate.publish import publish_scores
from llavamed.evaluate.questions import PreparedQuestions, find_pictures
from llavamed.evaluate.scores import scores_fingerprint
from llavamed.storage.lease import Lease
from llavamed.storage.location import Location
from llavamed.storage.manifest import ScoresManifest


def evaluate(
    config: RunConfig,
    settings: Evaluation,
    datasets: dict[str, PreparedDataset],
    *,
    export: str,
    export_fingerprint: str,
    folder: Location,
    lease: Lease,
    overlaps: tuple[Overlap, ...] | None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> ScoresManifest:
    """Answer the test questions, score the answers, and write answers, report and scores.

    Args:
        settings: Evaluation settings of the stage.
        datasets: Prepared datasets by name.
        export: URI of the trained model.
        export_fingerprint: Training fingerprint of the model.
        lease: Lease of the run's folder, checked before anything is written.
        overlaps: Overlap of each training set with the questions; None if one is unknown.
        on_progress: Called with the number of answers so far and in total.

    Returns:
        The manifest of the scores.

    Raises:
        LeaseError: Another attempt has taken the run over; then nothing is written.
    """
    used = {name: datasets[name].manifest.fingerprint for name in settings.datasets}
    precision, attention = config.engine.precision, config.model.attn_implementation
    trained = export_candidate(
        export, precision=precision, attn_implementation=attention, batch_size=settings.batch_size
    )
    answer_stage(
        config,
        settings,
        datasets,
        trained=trained,
        untrained=InitialCandidate(export, config, trained.template, settings.batch_size),
        folder=folder,
        lease=lease,
        overlaps=overlaps,
        on_progress=on_progress,
    )
    return publish_scores(
        folder,
        title=config.name,
        find_pictures=partial(find_pictures, PreparedQuestions(datasets[settings.data])),
        num_cards=settings.num_cards,
        model_fingerprint=export_fingerprint,
        datasets=used,
        scores_fingerprint=scores_fingerprint(settings, export_fingerprint, used),
        before_writing=lease.check,
    )
