"""Find scorers by name, and read files of predictions."""

import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llavamed.errors import ConfigError, DataError
from llavamed.evaluate.scorers import (
    exact_token,
    legacy,
    lmms_eval,
    medevalkit,
    strict,
    vlmevalkit,
)
from llavamed.evaluate.scorers.item import Item, Options, Rule
from llavamed.storage.location import Location, locate

SCORERS: Mapping[str, Rule] = {
    module.NAME.partition("/")[0]: module.score
    for module in (strict, legacy, exact_token, vlmevalkit, lmms_eval, medevalkit)
}
"""Every scorer by its name."""

logger = logging.getLogger(__name__)
_TEXTS = ("question", "prediction", "reference", "answer_type")
_LABELS = ("image", "question_type", "domain", "organ", "modality")


def find_scorer(name: str) -> Rule:
    """Return the scorer of this name. Raises: ConfigError."""
    if name not in SCORERS:
        raise ConfigError(f"scorer={name}: is not a scorer; use one of {', '.join(SCORERS)}")
    return SCORERS[name]


def read_predictions(place: Location) -> list[Item]:
    """Read the items of a file of predictions. Raises: DataError, as `read_items` does."""
    try:
        with place.open() as file:
            # The file itself has no buffer and reads a line byte by byte.
            lines = io.BufferedReader(file)  # type: ignore[type-var]
            items = list(read_items(lines, str(place)))
    except FileNotFoundError as error:
        raise DataError(f"{place}: no such file; check the path") from error
    if num_empty := sum(not item.prediction.strip() for item in items):
        logger.warning("%s: %d of %d predictions are empty", place, num_empty, len(items))
    return items


def read_items(lines: Iterable[bytes], name: str) -> Iterator[Item]:
    """Read items from JSON lines, whose keys are the fields of `Item`.

    A line needs `id`, `prediction`, `reference` and `answer_type`.

    Args:
        lines: The lines of the file; empty ones are passed over.
        name: The file's name, for errors.

    Raises:
        DataError: A line is not such an object, an id occurs twice, or the file has no item.
    """
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item = _item(line, f"{name}:{number}")
        if item.id in seen:
            raise DataError(
                f"{name}:{number}: id={item.id!r} is also the id of line {seen[item.id]}; give "
                "every item an id of its own"
            )
        seen[item.id] = number
        yield item
    if not seen:
        raise DataError(f"{name}: holds no item; write one JSON object per line")


def read_object(line: bytes, place: str) -> dict[str, Any]:
    """Return the JSON object of a line.

    Args:
        line: The line.
        place: File and number of the line, for errors.

    Raises:
        DataError: The line is not JSON, or no object.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{place}: is not JSON ({error}); write one JSON object per line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: is a {type(row).__name__}; write one JSON object per line")
    return row


def _item(line: bytes, place: str) -> Item:
    row = read_object(line, place)
    absent = [key for key in ("id", "prediction", "reference", "answer_type") if key not in row]
    if absent:
        raise DataError(f"{place}: lacks {', '.join(absent)}; add it to the object")
    for key in _TEXTS:
        if not isinstance(row.get(key, ""), str):
            raise DataError(f"{place}: {key}={row[key]!r} is not text; write it in quotes")
    if not isinstance(row["id"], str | int | float) or row["id"] == "":
        raise DataError(f"{place}: id={row['id']!r} is not text or a number; give the item one")
    if not row["reference"].strip():
        raise DataError(
            f"{place}: reference is empty; write the right answer, or leave the item out"
        )
    labels = {key: row[key] for key in _LABELS if row.get(key) is not None}
    for key, label in labels.items():
        if not isinstance(label, str | int):
            raise DataError(
                f"{place}: {key}={label!r} is not text or a number; write a name for it"
            )
    texts: dict[str, Any] = {key: str(labels.get(key, "")).strip() for key in _LABELS}
    answer_type = row["answer_type"].strip().upper()
    if answer_type not in {"OPEN", "CLOSED"}:
        raise DataError(
            f"{place}: answer_type={row['answer_type']!r} must be OPEN or CLOSED; correct it"
        )
    return Item(
        id=str(row["id"]),
        question=row.get("question", ""),
        prediction=row["prediction"],
        reference=row["reference"],
        answer_type=answer_type,
        options=_options(row.get("options"), place),
        given_id=row["id"],
        **texts,
    )


def _options(given: Any, place: str) -> Options:
    if given is None or given in ("", [], {}):
        return None
    if isinstance(given, dict) and all(isinstance(text, str) for text in given.values()):
        return {str(letter).strip().upper(): text for letter, text in given.items()}
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return tuple(given)
    raise DataError(
        f"{place}: options={str(given)[:60]} must map letters to texts or list texts; correct it"
    )


def read_candidates(uri: str) -> list[str]:
    """Read the open answers of a training set: a JSON list, or an object of lists as LLaVA-Med has.

    Raises:
        DataError: There is no such file, or it holds anything else.
    """
    try:
        found = locate(uri).read_json()
    except FileNotFoundError as error:
        raise DataError(f"candidates={uri}: no such file; check the path") from error
    lists = list(found.values()) if isinstance(found, dict) else [found]
    answers = [each for one in lists if isinstance(one, list) for each in one]
    if not answers or not all(isinstance(each, str) for each in answers):
        raise DataError(
            f"candidates={uri}: holds no list of answers; write a JSON list of texts, such as "
            '["lung", "left lobe"]'
        )
    return answers
