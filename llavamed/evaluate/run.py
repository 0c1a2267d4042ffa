"""The evaluation of a run: answer, score, report. Its scores, written last, make it complete."""

from collections.abc import Callable

from llavamed.config.evaluation import Evaluation
from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.evaluate.generate import generate
from llavamed.evaluate.report import Heading, render_page, render_results
from llavamed.evaluate.scores import scores_fingerprint
from llavamed.evaluate.vqa import SCORER, Answer, majority_answer, majority_control, score
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
        on_progress: Told the answers given and the answers in all.

    Returns:
        What is written beside the page: scores by control and a few predictions.

    Raises:
        LeaseError: Another attempt has taken the run over; then nothing is written.
    """
    dataset = datasets[settings.data]
    used = {name: datasets[name].manifest.fingerprint for name in settings.datasets}
    answers = generate(config, settings, dataset, export=export, on_progress=on_progress)
    majority = majority_answer(closed_references(datasets[settings.majority]))
    scores: dict[str, dict[str, float | None]] = {}
    for control, given in answers.items():
        scores[control] = dict(score(given).means)
    if majority is not None:
        constant = score(majority_control(answers["trained"], majority))
        scores["majority"] = {
            name: mean for name, mean in constant.means.items() if constant.counts[name]
        }
    heading = Heading(
        run=config.name, export=export, template=config.model.template, dataset=dataset.name
    )
    page = render_page(heading, answers, majority=majority, max_cards=settings.num_cards)
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


def closed_references(dataset: PreparedDataset) -> list[str]:
    """The reference answers of a dataset's closed questions; reads text only."""
    references = []
    for shard, row_group in dataset.row_groups():
        table = dataset.read_samples(shard, row_group, ["turns", "answer_type"])
        references += [
            row["turns"][-1]["text"] for row in table.to_pylist() if row["answer_type"] == "CLOSED"
        ]
    return references


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
