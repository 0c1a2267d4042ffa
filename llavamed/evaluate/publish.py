"""Turn `answers.parquet` into scores and a report, the last step of every evaluation."""

from collections.abc import Callable, Mapping, Sequence

from llavamed.errors import DataError
from llavamed.evaluate.answers import ANSWERS, Answer, AnswersManifest, read_answers
from llavamed.evaluate.failures import categorize, count_failures
from llavamed.evaluate.measures import RULES
from llavamed.evaluate.report import Shown, render_page
from llavamed.evaluate.scoring import Scored, find_group, score_answers
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import Location
from llavamed.storage.manifest import ScoresManifest, read, write

REPORT = "report.html"
NUM_SAMPLES = 8

FindPictures = Callable[[frozenset[str]], Mapping[str, bytes]]
"""Return the encoded images of items by id, as far as they exist."""


def publish_scores(
    folder: Location,
    *,
    title: str,
    find_pictures: FindPictures = lambda _: {},
    num_cards: int = 50,
    model_fingerprint: str | None = None,
    datasets: Mapping[str, str] | None = None,
    scores_fingerprint: str | None = None,
    before_writing: Callable[[], None] = lambda: None,
) -> ScoresManifest:
    """Score the answers in a folder; write the report next to them, and the scores last.

    Args:
        folder: Folder with `answers.parquet` and `answers.json`.
        title: Heading of the report.
        find_pictures: Returns the images of the report.
        num_cards: Number of questions in the report.
        model_fingerprint: Training fingerprint of an export. By default that of the answers.
        datasets: Fingerprints of the prepared datasets that the questions came from, by name.
        scores_fingerprint: Hash of everything that decides the scores; by default of the answers
            and rules.
        before_writing: Called before the first file is written. If it raises, nothing is written.

    Raises:
        DataError: The answers are missing or invalid.
        StorageError: The folder cannot be read or written.
    """
    made = _read_manifest(folder)
    answers = read_answers(folder / ANSWERS)
    scored = score_answers(answers)
    categories = _categories(answers, scored)
    everything = find_group(scored.groups)
    assert everything is not None, "there is at least one answer"
    found = ScoresManifest(
        dataset=made.questions,
        split=made.split,
        questions_fingerprint=made.questions_fingerprint,
        num_questions=everything.num_questions,
        num_images=everything.num_images,
        model=made.model,
        model_fingerprint=model_fingerprint or made.model_fingerprint,
        template=made.template,
        template_name=made.template_name,
        prompt=made.prompt,
        decoding=f"greedy, at most {made.max_new_tokens} tokens",
        rules=RULES,
        conditions=tuple(answers),
        groups=scored.groups,
        failures=count_failures(categories),
        overlaps=None
        if made.overlaps is None
        else {each.dataset: {"samples": each.num_samples} | each.shared for each in made.overlaps},
        samples=tuple(_samples(answers)),
        datasets=dict(datasets or {}),
        fingerprint=scores_fingerprint or fingerprint([made.fingerprint, RULES]),
        report=str(folder / REPORT),
    )
    shown = _pick(answers, num_cards)
    pictures = find_pictures(frozenset(next(iter(answers.values()))[place].id for place in shown))
    cards = [
        Shown(
            {condition: given[place] for condition, given in answers.items()},
            {
                condition: {name: float(values[place]) for name, values in measured.items()}
                for condition, measured in scored.values.items()
            },
            categories[place],
        )
        for place in shown
    ]
    page = render_page(found, cards, pictures, title=title)
    before_writing()
    (folder / REPORT).write_bytes(page.encode())
    write(folder, found)
    return found


def _read_manifest(folder: Location) -> AnswersManifest:
    try:
        return read(AnswersManifest, folder)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: has no {AnswersManifest.FILE}, so its answers are not complete; generate "
            "them, or score a file of predictions"
        ) from error


def _categories(answers: Mapping[str, Sequence[Answer]], scored: Scored) -> list[str]:
    condition, given = next(iter(answers.items()))
    measured = scored.values[condition]
    return [
        categorize(answer, {name: float(values[place]) for name, values in measured.items()})
        for place, answer in enumerate(given)
    ]


def _pick(answers: Mapping[str, Sequence[Answer]], count: int) -> list[int]:
    """Return the positions of `count` items, spread evenly."""
    total = len(next(iter(answers.values())))
    count = min(count, total)
    return [number * total // count for number in range(count)]


def _samples(answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, str]]:
    """Return a few evenly spread questions with the answer under each condition."""
    first = next(iter(answers.values()))
    return [
        {
            "question": first[place].question,
            "reference": first[place].references[0],
            **{condition: given[place].prediction for condition, given in answers.items()},
        }
        for place in _pick(answers, NUM_SAMPLES)
    ]
