"""`answers.parquet` comes back as it was written, and nothing else is taken for answers."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.errors import DamagedFileError, DataError
from llavamed.evaluate.answers import (
    ANSWERS,
    ANSWERS_SCHEMA,
    Answer,
    iter_answers,
    read_answers,
    to_table,
)
from llavamed.storage.location import Location, locate
from tests.support.answer_files import write_answers

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
LETTERS = st.dictionaries(st.sampled_from("ABCDEF"), TEXT, min_size=1)
OPTIONS = st.none() | LETTERS | st.lists(TEXT, min_size=1, max_size=4).map(tuple)


def answer(**facts: Any) -> Answer:
    known = {"id": "1", "condition": "trained", "question": "Is there a mass?"}
    return Answer(
        **(known | {"references": ("yes",), "options": None, "answer_type": "CLOSED"} | facts)
    )


def file_of(folder: Path, *rows: Answer, rows_per_group: int = 1024) -> Location:
    write_answers(locate(str(folder)), rows, rows_per_group)
    return locate(str(folder)) / ANSWERS


ROWS = st.builds(
    answer,
    id=TEXT.filter(bool),
    condition=st.sampled_from(["trained", "blank_image"]),
    question=TEXT,
    references=st.lists(TEXT.filter(str.strip), min_size=1, max_size=3).map(tuple),
    options=OPTIONS,
    answer_type=st.sampled_from(["OPEN", "CLOSED"]),
    organ=TEXT,
    prediction=TEXT,
    outcome=st.sampled_from(["answered", "cut_off", "refused"]),
    tokens=st.integers(0, 2**31 - 1),
    seconds=st.floats(0, 1e6, width=32),
)


@given(rows=st.lists(ROWS, max_size=5))
def test_rows_come_back_as_they_were_written(
    rows: list[Answer], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert list(iter_answers(file_of(tmp_path_factory.mktemp("answers"), *rows))) == rows


def test_conditions_have_the_items_in_one_order(tmp_path: Path) -> None:
    blank = [answer(id=id_, condition="blank_image") for id_ in "213"]
    trained = [answer(id=id_, prediction="yes") for id_ in "123"]
    found = read_answers(file_of(tmp_path, *blank, *trained, rows_per_group=2))
    assert list(found) == ["trained", "blank_image"]
    assert [[each.id for each in rows] for rows in found.values()] == [["1", "2", "3"]] * 2


def test_scorers_read_an_item_for_each_reference() -> None:
    one = answer(references=("CT", "computed tomography"), image="a", prediction="CT")
    items = one.items()
    assert [item.reference for item in items] == ["CT", "computed tomography"]
    assert {(item.id, item.prediction, item.image) for item in items} == {("1", "CT", "a")}


def test_a_file_of_others_needs_four_columns(tmp_path: Path) -> None:
    columns = {"id": ["1"], "prediction": ["no"], "references": [["no"]], "answer_type": ["closed"]}
    pq.write_table(pa.table(columns), tmp_path / ANSWERS)
    [found] = read_answers(locate(str(tmp_path)) / ANSWERS)["trained"]
    assert (found.prediction, found.answer_type, found.options) == ("no", "CLOSED", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "has no id; give every item one"),
        ({"prediction": None}, "id='1': has no prediction; write '' for an empty answer"),
        ({"references": []}, "id='1': has no reference to score by; add one"),
        ({"references": [" "]}, "id='1': has no reference to score by; add one"),
        ({"references": [None]}, "id='1': has no reference to score by; add one"),
        ({"answer_type": "BOTH"}, "answer_type='BOTH' must be OPEN or CLOSED; correct it"),
        ({"outcome": "lost"}, "outcome='lost' must be one of answered, cut_off, refused; correct"),
        ({"options": [{"letter": "A", "text": None}]}, "must have a text each, and a letter of"),
        ({"options": [{"letter": "A", "text": "x"}] * 2}, "a letter of their own or none; correct"),
    ],
)
def test_a_row_that_is_no_answer_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    rows = to_table([answer()]).to_pylist()
    pq.write_table(pa.Table.from_pylist([rows[0] | change], ANSWERS_SCHEMA), tmp_path / ANSWERS)
    with pytest.raises(DataError, match=message):
        read_answers(locate(str(tmp_path)) / ANSWERS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([answer(), answer()], "id='1' occurs twice under condition 'trained'; give every item"),
        (
            [answer(), answer(id="2", condition="noise")],
            r"condition=noise: of the 1 items of trained it lacks 1 \('1'\), and it has 1 \('2'\) "
            "besides; generate all conditions from the same questions",
        ),
        (
            [answer(id=str(n)) for n in range(5)] + [answer(condition="noise")],
            r"it lacks 4 \('0', '2', '3', ...\), and it has none besides",
        ),
        (
            [answer(), answer(condition="noise", references=("no",))],
            r"id='1': references is \('no',\) under noise and \('yes',\) under trained; generate",
        ),
        ([], "holds no answer; generate the answers first"),
    ],
)
def test_what_does_not_answer_the_same_questions_is_refused(
    rows: list[Answer], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read_answers(file_of(tmp_path, *rows))


def test_other_files_are_refused(tmp_path: Path) -> None:
    place = locate(str(tmp_path)) / ANSWERS
    with pytest.raises(DataError, match=r"answers\.parquet: no such file; check the path"):
        read_answers(place)
    place.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DamagedFileError, match="is not Parquet"):
        read_answers(place)
    pq.write_table(pa.table({"id": ["1"], "prediction": ["no"]}), tmp_path / ANSWERS)
    with pytest.raises(DataError, match="has no column references, answer_type; add it, or name"):
        read_answers(place)
    rows = to_table([answer()])
    wrong = rows.set_column(rows.column_names.index("tokens"), "tokens", [["many"]])
    pq.write_table(wrong, tmp_path / ANSWERS)
    with pytest.raises(DataError, match="column tokens is string, not int32; write it as that"):
        read_answers(place)


def test_empty_predictions_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_answers(file_of(tmp_path, answer(), replace(answer(), id="2", prediction="no")))
    assert "1 of 2 predictions of trained are empty" in caplog.text
