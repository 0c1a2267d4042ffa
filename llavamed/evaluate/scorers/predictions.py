"""Find scorers by name, and read files of predictions."""

import csv
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from string import ascii_uppercase
from typing import Any

from llavamed.data.sources.text_files import open_text, undecoded
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
_SHOWN = 8
"""Number of keys that a message names."""
_LIST = re.compile(r"\s*\[\s*(?:[{\]]|\Z)")
"""The first line of a list of objects."""
_NO_ROW = re.compile(r"\s*(?:sep=.)?\s*")
"""An empty line, or the one in which spreadsheets name the separator."""
_HEADER = re.compile(r"\s*[^\s{\[][^,;\t]*[,;\t]")
"""The first line of a table."""
_LETTERED = re.compile(r"\s*\(?([A-Z])(?:\s*[:)]|\.(?=\s))\s*(.*\S)\s*", re.DOTALL)
"""An option that begins with its letter: "A: lung", "(A) lung", "A. lung"."""
_LABELS = ("image", "question_type", "domain", "organ", "modality")


def find_scorer(name: str) -> Rule:
    """Return the scorer of this name. Raises: ConfigError."""
    if name not in SCORERS:
        raise ConfigError(f"scorer={name}: is not a scorer; use one of {', '.join(SCORERS)}")
    return SCORERS[name]


def read_predictions(place: Location) -> list[Item]:
    """Read the items of a file of predictions: rows whose keys are the fields of `Item`.

    A row needs `id`, `prediction`, `reference` and `answer_type`.

    Raises:
        DataError: See `read_rows`; or a row has another form, an id occurs twice, or there is none.
    """
    items = list(_items(read_rows(place), str(place)))
    if num_empty := sum(not item.prediction.strip() for item in items):
        logger.warning("%s: %d of %d predictions are empty", place, num_empty, len(items))
    return items


def read_rows(file: Location) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of JSON lines, a JSON list or a table, each after its place for errors.

    A table has its columns in the first line, and commas, semicolons or tabs between cells. The
    text may be UTF-8, UTF-16 or UTF-32, and compressed by gzip.

    Raises:
        DataError: The file is absent, a spreadsheet or compressed in another way, or holds anything
            else.
    """
    if not file.exists():
        raise DataError(f"{file}: no such file; check the path")
    if file.name.lower().endswith((".xlsx", ".xls", ".ods")):
        raise DataError(f"{file}: is a spreadsheet; save its table as CSV, and name that")
    with open_text(file) as text:
        lines = enumerate(text.stream, 1)
        number, first = next((each for each in lines if not _NO_ROW.fullmatch(each[1])), (0, ""))
        if _LIST.match(first):
            yield from _objects_of_list(first + text.stream.read(), str(file))
        elif _HEADER.match(first):
            yield from _rows_of_table(first, text.stream, number, str(file))
        else:
            yield from _objects(chain([(number, first)], lines), str(file))


def read_object(line: str, place: str) -> dict[str, Any]:
    """Return the JSON object of a line.

    Args:
        line: The line. Bytes that are no text are lone surrogates in it.
        place: File and number of the line, for errors.

    Raises:
        DataError: The line is not JSON, or no object.
    """
    _check_decoded(line, place)
    try:
        row = json.loads(line, object_pairs_hook=_unique)
    except ValueError as error:
        raise DataError(
            f"{place}: is not JSON ({error}); write one JSON object per line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: is a {type(row).__name__}; write one JSON object per line")
    return row


def _objects(lines: Iterable[tuple[int, str]], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines:
        if line.strip():
            yield f"{name}:{number}", read_object(line, f"{name}:{number}")


def _objects_of_list(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise DataError(
            f"{name}: is not a JSON list ({error}); write one, or one JSON object per line"
        ) from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f"{name}: item {number}: is a {type(row).__name__}; write a list of JSON objects"
            )
        yield f"{name}: item {number}", row


def _rows_of_table(
    header: str, lines: Iterable[str], number: int, name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a table.

    A cell of `options` or `reference` may be JSON, and a column A, B and so on is an option.
    """
    rows = csv.reader(chain([header], lines), delimiter=max(",;\t", key=header.count), strict=True)
    columns: list[str] = []
    end = 0
    try:
        for cells in rows:
            place, end = f"{name}:{number + end}", rows.line_num
            _check_decoded("".join(cells), place)
            if not columns:
                columns = [cell.strip() for cell in cells]
                if len(named := [each for each in columns if each]) > len({*named}):
                    raise DataError(f"{place}: a column occurs twice; name every column once")
            elif any(cells):
                if len(cells) != len(columns):
                    raise DataError(
                        f"{place}: has {len(cells)} cells, and the columns are {len(columns)}; "
                        "quote cells that hold the separator"
                    )
                yield place, _row(dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{name}:{number + end}: is not a row of a table ({error}); correct it, or write one "
            "JSON object per line"
        ) from error


def _row(cells: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = dict(cells)
    letters = {key: text for key, text in cells.items() if re.fullmatch("[A-Z]", key) and text}
    row.setdefault("options", letters)
    for key in ("options", "reference"):
        if cells.get(key, "").lstrip()[:1] in {"[", "{"}:
            with suppress(ValueError):  # then it is a text
                row[key] = json.loads(cells[key], object_pairs_hook=_unique)
    return row


def _check_decoded(text: str, place: str) -> None:
    """Check a text from a file. Raises: DataError, if it has bytes that are not UTF-8."""
    if found := undecoded(text):
        raise DataError(f"{place}: {found!r} is not UTF-8; save the file as UTF-8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. Raises: ValueError, if a key occurs twice."""
    there = dict(pairs)
    if len(there) < len(pairs):
        key = next(key for key in there if [each for each, _ in pairs].count(key) > 1)
        raise ValueError(f"the key {key!r} occurs twice")
    return there


def note_id(id_: str | int, place: str, seen: dict[str, str], *, name: str, kind: str) -> None:
    """Note where an id of a file stands.

    Args:
        id_: The id.
        place: Where it stands, as `read_rows` gives it.
        seen: The ids before it, each with its line or place in the file; this one is added.
        name: The name of the file.
        kind: What has the id, for errors.

    Raises:
        DataError: The id was seen before.
    """
    if str(id_) in seen:
        raise DataError(
            f"{place}: id={id_!r} is also the id of {seen[str(id_)]}; give every {kind} an id of "
            "its own"
        )
    which = place[len(name) + 1 :].strip()
    seen[str(id_)] = f"line {which}" if which.isdigit() else which


def _items(rows: Iterable[tuple[str, dict[str, Any]]], name: str) -> Iterator[Item]:
    seen: dict[str, str] = {}
    for place, row in rows:
        item = _item(row, place)
        note_id(item.id, place, seen, name=name, kind="item")
        yield item
    if not seen:
        raise DataError(f"{name}: holds no item; write one JSON object per line")


def _item(row: dict[str, Any], place: str) -> Item:
    absent = [key for key in ("id", "prediction", "reference", "answer_type") if key not in row]
    if absent:
        there = ", ".join(map(repr, list(row)[:_SHOWN])) or "none"
        raise DataError(
            f"{place}: lacks {', '.join(absent)}; add it to the object, whose keys are {there}"
        )
    others: list[str] = []
    if isinstance(row["reference"], list) and row["reference"]:
        row["reference"], *others = row["reference"]
    for key, text in [(key, row.get(key, "")) for key in _TEXTS] + [
        ("reference", each) for each in others
    ]:
        if not isinstance(text, str):
            hint = ', "" for no answer' if text is None else ""
            raise DataError(f"{place}: {key}={text!r} is not text; write it in quotes{hint}")
    id_ = row["id"]
    if not isinstance(id_, str | int | float) or isinstance(id_, bool) or id_ == "" or id_ != id_:
        raise DataError(f"{place}: id={row['id']!r} is not text or a number; give the item one")
    if not all(each.strip() for each in (row["reference"], *others)):
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
        options=_options(row.get("options"), row["reference"].strip(), place),
        other_references=tuple(others),
        given_id=row["id"],
        **texts,
    )


def _options(given: Any, reference: str, place: str) -> Options:
    if given is None or given in ("", [], {}):
        return None
    texts = list(given.values()) if isinstance(given, dict) else given
    if not isinstance(texts, list) or not all(map(_is_plain, texts)):
        raise DataError(
            f"{place}: options={str(given)[:60]} must map letters to texts or list texts; correct "
            "it"
        )
    if isinstance(given, dict):
        options: Options = {str(key).strip().upper(): str(text) for key, text in given.items()}
    else:
        options = _lettered([str(text) for text in given], reference)
        if len(texts) > len(ascii_uppercase) and isinstance(options, dict):
            raise DataError(
                f"{place}: options={str(given)[:60]} are {len(texts)}, and letters are "
                f"{len(ascii_uppercase)}; give the reference as text"
            )
    if options is not None and len(options) < len(texts):
        raise DataError(f"{place}: options={str(given)[:60]} has a letter twice; correct it")
    is_letter = isinstance(options, dict) and len(reference) == 1 and reference.isalpha()
    if options is not None and is_letter and reference.upper() not in options:
        raise DataError(
            f"{place}: reference={reference!r} is none of the options {', '.join(options)}; "
            "correct it"
        )
    return options


def _is_plain(text: Any) -> bool:
    return isinstance(text, str | int | float) and not isinstance(text, bool)


def _lettered(texts: list[str], reference: str) -> Options:
    """Return a list of options by letters, if they begin with them or the reference is one."""
    letters = ascii_uppercase[: len(texts)]
    marked = [_LETTERED.fullmatch(text) for text in texts]
    if [each and each[1] for each in marked] == list(letters):
        return {each[1]: each[2] for each in marked if each}
    if len(reference) == 1 and reference in letters and reference not in texts:
        return dict(zip(letters, texts, strict=False))
    return tuple(texts)


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
