"""Find the answers of a run, an export, an evaluation or a file of predictions."""

from dataclasses import replace

from llavamed.errors import DataError
from llavamed.evaluate.answers import ANSWERS, Answer, read_answers
from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.scorers.predictions import read_predictions
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import find
from llavamed.storage.run_progress import RunSummary

EVALUATION = "evaluation"
"""Name of the folder with the answers of a stage, next to its export."""


def read_results(uri: str) -> list[Item]:
    """Read the answers of a model to the unchanged questions.

    Args:
        uri: A file of predictions, an `answers.parquet`, the folder of an evaluation, an export of
            a stage, or a run, which stands for its last stage that was evaluated.

    Raises:
        DataError: There are no answers, or they are invalid.
    """
    place = find_answers(uri)
    if place is None:
        return read_predictions(locate(uri))
    answers = next(iter(read_answers(place).values()))
    return [_item(answer) for answer in answers]


def find_answers(uri: str) -> Location | None:
    """Return the `answers.parquet` that a URI stands for; None if it names another file.

    Raises:
        DataError: It is a folder without answers.
    """
    if uri.endswith(".parquet"):
        return locate(uri)
    folder = locate(uri)
    is_folder = folder.fs.isdir(folder.path)
    if not is_folder and folder.children() in ([], [folder.name]):  # nothing there, or a file
        return None
    candidates = [folder, folder / EVALUATION]
    if folder.name == "export":
        candidates.append(locate(uri.rstrip("/").rpartition("/")[0] or ".") / EVALUATION)
    summary = find(RunSummary, folder)
    if summary is not None:
        names = [stage.name for stage in reversed(summary.stages)]
        candidates += [folder / "stages" / name / EVALUATION for name in names]
    for candidate in candidates:
        if (candidate / ANSWERS).exists():
            return candidate / ANSWERS
    raise DataError(
        f"{uri}: has no {ANSWERS} in it, in its evaluation or in those of its stages; evaluate the "
        "model first, or name a file of predictions"
    )


def _item(answer: Answer) -> Item:
    first, *others = answer.items()
    return replace(first, other_references=tuple(each.reference for each in others))
