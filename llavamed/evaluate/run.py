"""The evaluation of a run: answer, score, report. Its scores, written last, make it complete."""

from collections.abc import Callable, Sequence

from llavamed.config.evaluation import Evaluation
from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.evaluate.answering import answer_stage
from llavamed.evaluate.answers import ANSWERS, TRAINED, Overlap, read_answers
from llavamed.evaluate.own_model import InitialCandidate, export_candidate
from llavamed.evaluate.questions import PreparedQuestions
from llavamed.evaluate.report import Heading, render_page, render_results
from llavamed.evaluate.scores import scores_fingerprint
from llavamed.evaluate.vqa import SCORER, Answer, score
from llavamed.processor.images import to_png
from llavamed.storage.lease import Lease
from llavamed.storage.location import Location
from llavamed.storage.manifest import ScoresManifest, write

REPORT = "report.html"
RESULTS = "results.jsonl"
NUM_SAMPLE_PREDICTIONS = 8


def evaluate(
    config: RunConfig,
    settings: Evaluation,
    datasets: dict[str, PreparedDataset],
    *,
    export: str,
    export_fingerprint: str,
    folder: Location,
    lease: Lease,
    overlaps: Sequence[Overlap],
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
        overlaps: Of the training sets with the questions.
        on_progress: Told the answers given and the answers in all.

    Returns:
        What is written beside the page: scores by control and a few predictions.

    Raises:
        LeaseError: Another attempt has taken the run over; then nothing is written.
    """
    dataset = datasets[settings.data]
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
    answers = _scored_answers(folder / ANSWERS, dataset, settings.num_cards)
    scores = {control: dict(score(given).means) for control, given in answers.items()}
    heading = Heading(
        run=config.name, export=export, template=config.model.template, dataset=dataset.name
    )
    page = render_page(heading, answers, max_cards=settings.num_cards)
    lease.check()
    (folder / RESULTS).write_bytes(render_results(answers))
    (folder / REPORT).write_bytes(page.encode())
    found = ScoresManifest(
        dataset=dataset.name,
        scores=scores,
        samples=tuple(_samples(answers)),
        num_questions=len(answers["trained"]),
        scorer=SCORER,
        export=export,
        datasets=used,
        fingerprint=scores_fingerprint(settings, export_fingerprint, used),
        report=str(folder / REPORT),
    )
    write(folder, found)
    return found


def _scored_answers(
    file: Location, dataset: PreparedDataset, num_cards: int
) -> dict[str, list[Answer]]:
    """Read answers as they are scored; the questions that the page shows have their picture."""
    answers = read_answers(file)
    trained = answers[TRAINED]
    count = min(num_cards, len(trained))
    shown = {trained[number * len(trained) // count].id for number in range(count)}
    questions = PreparedQuestions(dataset)
    pictures = {
        question.id: to_png(question.pictures[0].pixels)
        for chunk in range(questions.num_chunks)
        for question in questions.read(chunk)
        if question.id in shown and question.pictures
    }
    return {
        condition: [
            Answer(
                id=each.id,
                image=pictures.get(each.id, b"") if condition == TRAINED else b"",
                question=each.question,
                reference=each.references[0],
                prediction=each.prediction,
                answer_type=each.answer_type,
                question_type=each.question_type,
                domain=each.domain,
            )
            for each in given
        ]
        for condition, given in answers.items()
    }


def _samples(answers: dict[str, list[Answer]]) -> list[dict[str, str]]:
    """A few questions spread over the dataset, with what each control answered."""
    count = len(answers["trained"])
    every = max(1, count // NUM_SAMPLE_PREDICTIONS)
    return [
        {
            "question": answers["trained"][i].question,
            "reference": answers["trained"][i].reference,
            **{control: given[i].prediction for control, given in answers.items()},
        }
        for i in range(0, count, every)
    ][:NUM_SAMPLE_PREDICTIONS]
