"""The evaluation of a run: answer, score, report. Its scores, written last, make it complete."""

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
    """Answer the test questions, score them, and write results, page and scores.

    Args:
        config: The run's.
        settings: What to answer and how.
        datasets: Prepared, by name.
        export: URI of the trained model.
        export_fingerprint: Of what the model was trained with.
        folder: Where to write.
        lease: Of the run's folder; looked at before anything is written.
        overlaps: Of the training sets with the questions, None where one is unknown.
        on_progress: Told the answers given and the answers in all.

    Returns:
        What is written beside the page.

    Raises:
        LeaseError: Another attempt has taken the run over; then nothing is written.
    """
    used = {name: datasets[name].manifest.fingerprint for name in settings.datasets}
    precision, attention = config.engine.precision, config.model.attn_implementation
    trained = export_candidate(
        export,
        precision=precision,
        attn_implementation=attention,
        batch_size=settings.batch_size,
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
