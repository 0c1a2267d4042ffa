"""Files of predictions are read with care."""

import csv
import gzip
import io
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llavamed.cli.evaluate import app
from llavamed.errors import ConfigError, DataError, LlavaMedError
from llavamed.evaluate.scorers.item import score_best
from llavamed.evaluate.scorers.predictions import SCORERS, find_scorer, read_predictions
from llavamed.storage.location import locate
from llavamed.storage.retry import RetryingFile


def row(**changes):
    there = {"id": "1", "prediction": "yes", "reference": "yes", "answer_type": "CLOSED"} | changes
    kept = {key: value for key, value in there.items() if value is not None}
    return json.dumps(kept).encode()


def read_lines(lines, folder):
    file = folder / "file"
    file.write_bytes(b"\n".join(lines))
    return read_predictions(locate(str(file)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b"{"], r"file:1: is not JSON \(.*\); write one JSON object per line"),
        ([b"[1]"], r"file:1: is a list; write one JSON object per line"),
        ([row(prediction=None)], r"file:1: lacks prediction; add it"),
        ([row(prediction=7)], r"file:1: prediction=7 is not text; write it in quotes"),
        ([row(answer_type="maybe")], r"file:1: answer_type='maybe' must be OPEN or CLOSED"),
        (
            [row(image=["1.png"])],
            r"file:1: image=\['1.png'\] is not text or a number; write a name",
        ),
        ([row(id=["1"])], r"file:1: id=\['1'\] is not text or a number; give the item one"),
        (
            [row(reference=" ")],
            "file:1: reference is empty; write the right answer, or leave the item out",
        ),
        ([row(question_type=1.5)], r"file:1: question_type=1.5 is not text or a number"),
        ([row(options="A")], r"file:1: options=A must map letters to texts or list texts"),
        ([row(options={"A": "lung", "a": "skin"})], "options=.* has a letter twice; correct it"),
        (
            [row(options=[f"part {number}" for number in range(27)], reference="A")],
            "options=.* are 27, and letters are 26; give the reference as text",
        ),
        (
            [row(options={"A": "lung", "B": "skin"}, reference="E")],
            "file:1: reference='E' is none of the options A, B; correct it",
        ),
        (
            [row(prediction=None)],
            "file:1: lacks prediction; add it to the object, whose keys are 'id', 'reference', "
            "'answer_type'",
        ),
        ([b'{"id": "1", "id": "2"}'], r"file:1: is not JSON \(the key 'id' occurs twice\)"),
        (
            [row().replace(b'"yes"', b"null", 1)],
            'file:1: prediction=None is not text; write it in quotes, "" for no answer',
        ),
        ([row(id=True)], "file:1: id=True is not text or a number; give the item one"),
        ([row(id=math.nan)], "file:1: id=nan is not text or a number; give the item one"),
        ([row(reference=["yes", 1])], "file:1: reference=1 is not text; write it in quotes"),
        ([row(reference=["yes", ""])], "file:1: reference is empty; write the right answer"),
        ([row(), b"", row()], r"file:3: id='1' is also the id of line 1; give"),
        ([], r"file: holds no item; write one JSON object per line"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused(lines, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_lines(lines, tmp_path)


ROWS = [json.loads(row(id=str(number))) for number in range(3)]
LINES = "\r\n".join(json.dumps(each) for each in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        LINES.encode("utf-8-sig"),
        LINES.encode("utf-16"),
        LINES.encode("utf-16-le"),
        gzip.compress(LINES.encode(), mtime=0),
        json.dumps(ROWS).encode(),
        ("\n" + json.dumps(ROWS, indent=2)).encode("utf-8-sig"),
        gzip.compress(json.dumps(ROWS).encode("utf-16"), mtime=0),
    ],
)
def test_files_are_read_in_every_encoding_and_as_a_list(content, tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(content)
    assert read_predictions(locate(str(file))) == read_lines(LINES.encode().splitlines(), tmp_path)


CELLS = st.text(st.sampled_from('ab ,;\t"\n{[é1'), max_size=9)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.fixed_dictionaries({"prediction": CELLS, "image": CELLS}), min_size=1),
    separator=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    lead=st.sampled_from(["", "\r\n", "sep=;\r\n"]),
)
def test_a_table_is_read_as_the_same_rows_in_json(rows, separator, encoding, lead, tmp_path):
    """As a spreadsheet or pandas writes it, with the index in a column without a name."""
    full = [json.loads(row(id=str(number), **each)) for number, each in enumerate(rows)]
    table = io.StringIO()
    writer = csv.writer(table, delimiter=separator)
    writer.writerow(["", *full[0], "A", "B"])
    writer.writerows([number, *each.values(), "", ""] for number, each in enumerate(full))
    file = tmp_path / "predictions.csv"
    file.write_bytes((lead + table.getvalue()).encode(encoding))
    assert read_predictions(locate(str(file))) == read_lines(
        [json.dumps(each).encode() for each in full], tmp_path
    )


HEAD = "id,prediction,reference,answer_type"


@pytest.mark.parametrize(
    ("columns", "cells", "expected"),
    [
        ("A,B", "lung,skin", {"A": "lung", "B": "skin"}),
        ("A,B,C", "lung,skin,", {"A": "lung", "B": "skin"}),
        ("options", '"{""A"": ""lung"", ""B"": ""skin""}"', {"A": "lung", "B": "skin"}),
        ("options", '"[""A: lung"", ""B: skin""]"', {"A": "lung", "B": "skin"}),
        ("options", "", None),
    ],
)
def test_options_of_a_table_are_json_or_columns(columns, cells, expected, tmp_path):
    file = tmp_path / "predictions.csv"
    file.write_text(f"{HEAD},{columns}\n1,B,B,CLOSED,{cells}\n")
    [found] = read_predictions(locate(str(file)))
    assert found.options == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEAD}\n1,a,b,OPEN\n2,a,b".encode(), ":3: has 3 cells, and the columns are 4; quote"),
        (f"{HEAD},id\n1,a,b,OPEN,1".encode(), ":1: a column occurs twice; name every column once"),
        (f'{HEAD}\n1,"a\n'.encode(), ":2: is not a row of a table .*; correct it, or write one"),
        (b"index,answer\n1,a\n", r":2: lacks id, prediction, .* whose keys are 'index', 'answer'"),
        (HEAD.encode() + b"\n1,\xe9,b,OPEN", r":2: b'\\xe9' is not UTF-8; save the file as UTF-8"),
        (f"{HEAD}\n1,a,b,OPEN\n1,a,b,OPEN".encode(), ":3: id='1' is also the id of line 2; give"),
        (f"{HEAD},options\n1,a,b,OPEN,[lung".encode(), r":2: options=\[lung must map letters to"),
        (HEAD.encode(), "holds no item; write one JSON object per line"),
        (
            f"[{ROWS[0]}, 1]".replace("'", '"').encode(),
            r"predictions\.jsonl: item 2: is a int; write a list of JSON objects",
        ),
        (b"[{]", r"is not a JSON list \(.*\); write one, or one JSON object per line"),
        (json.dumps(ROWS[:1] * 2).encode(), "item 2: id='0' is also the id of item 1; give every"),
        (
            '{"id": "\u00e9"}'.encode("latin-1"),
            r":1: b'\\xe9' is not UTF-8; save the file as UTF-8",
        ),
        (b"BZh9", "is compressed by bzip2, and only gzip is read; unpack it"),
        (b"", "holds no item; write one JSON object per line"),
    ],
)
def test_a_file_that_is_no_text_of_items_is_refused(content, message, tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_predictions(locate(str(file)))


@pytest.mark.parametrize(
    ("options", "reference", "expected"),
    [
        (["A: lung", "B: skin"], "B", {"A": "lung", "B": "skin"}),
        (["(A) lung", "(B) skin"], "skin", {"A": "lung", "B": "skin"}),
        (["lung", "skin"], "B", {"A": "lung", "B": "skin"}),
        (["lung", "skin"], "skin", ("lung", "skin")),
        (["A", "B", "AB"], "B", ("A", "B", "AB")),
        ([1, 2], "2", ("1", "2")),
        ({"a": 1, "b": 2.5}, "A", {"A": "1", "B": "2.5"}),
    ],
)
def test_a_list_of_options_has_letters_where_they_are_meant(options, reference, expected, tmp_path):
    [found] = read_lines([row(options=options, reference=reference)], tmp_path)
    assert found.options == expected


def test_several_right_answers_are_read_from_a_list(tmp_path):
    [found] = read_lines([row(reference=["no", "yes"])], tmp_path)
    assert score_best(find_scorer("strict"), found) == 1


def test_a_file_that_is_absent_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file; check the path"):
        read_predictions(locate(str(tmp_path / "absent.jsonl")))


def test_a_spreadsheet_is_told_from_a_table(tmp_path):
    file = tmp_path / "model_MMBench.xlsx"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"is a spreadsheet; save its table as CSV, and name that"):
        read_predictions(locate(str(file)))


def test_empty_predictions_are_counted(tmp_path, caplog):
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(b"\n".join([row(), row(id="2", prediction=" ")]))
    read_predictions(locate(str(file)))
    assert "predictions.jsonl: 1 of 2 predictions are empty" in caplog.text


def test_a_file_is_read_by_blocks_not_by_bytes(tmp_path, monkeypatch):
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(b"\n".join(row(id=number) for number in range(500)))
    sizes = []
    read = RetryingFile.read

    def count(self, size=-1):
        sizes.append(size)
        return read(self, size)

    monkeypatch.setattr(RetryingFile, "read", count)
    assert len(read_predictions(locate(str(file)))) == 500
    assert len(sizes) < 50


def test_images_and_groups_are_read_as_names(tmp_path):
    [found] = read_lines([row(image=7, question_type="POS ", domain=None)], tmp_path)
    assert (found.image, found.question_type, found.domain) == ("7", "POS", "")


def test_the_command_prints_a_line_an_item_or_a_table(tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(b"\n".join([row(), row(id="2", prediction="no")]))
    lines = CliRunner().invoke(app, ["score", str(file), "--scorer", "strict", "--items"])
    assert [json.loads(line) for line in lines.output.splitlines()] == [
        {"id": "1", "score": 1.0},
        {"id": "2", "score": 0.0},
    ]
    table = CliRunner().invoke(app, ["score", str(file)])
    assert "closed (2)" in table.output
    assert all(name in table.output for name in SCORERS)
    assert "without an answer, by the strict rules: 0.0% [0.0%," in table.output
    assert "95 % intervals by item, because no item names its image" in table.output
    assert "run_eval_batch" not in table.output
    several = CliRunner().invoke(app, ["score", str(file), "--items"])
    assert isinstance(several.exception, ConfigError)


def test_legacy_alone_shows_the_averages_of_both_scripts(tmp_path):
    file, candidates = tmp_path / "answers.jsonl", tmp_path / "candidates.json"
    lines = [
        row(id="1", prediction="the left lung", reference="left lung", answer_type="OPEN"),
        row(id="2", prediction="normal", reference="no"),
    ]
    file.write_bytes(b"\n".join(lines))
    legacy_alone = ["score", str(file), "--scorer", "legacy"]
    without = CliRunner().invoke(app, legacy_alone).output
    assert [line.split("\u2502")[1:4] for line in without.splitlines() if "accuracy" in line] == [
        [" yes/no accuracy   ", "   100.00 ", "         100.00 "],
        [" open accuracy     ", "          ", "         100.00 "],
    ]
    for listed in (["left lung", "heart"], {"0": ["left lung", "heart"]}):
        candidates.write_text(json.dumps(listed))
        found = CliRunner().invoke(app, [*legacy_alone, "--candidates", str(candidates)]).output
        [line] = [line for line in found.splitlines() if "open accuracy" in line]
        assert line.count("100.00") == 2


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, ["--scorer", "legacy"], r"candidates=.*: no such file; check the path"),
        ("[]", ["--scorer", "legacy"], r"candidates=.*: holds no list of answers; write a JSON"),
        ("[1]", ["--scorer", "legacy"], r"candidates=.*: holds no list of answers; write a JSON"),
        ('["a"]', ["--scorer", "strict"], r"candidates=.*: needs --scorer legacy and no other; a"),
        ('["a"]', [], r"candidates=.*: needs --scorer legacy and no other; a"),
    ],
)
def test_candidates_are_a_list_for_the_legacy_rules(tmp_path, content, arguments, message):
    file, candidates = tmp_path / "answers.jsonl", tmp_path / "candidates.json"
    file.write_bytes(row())
    if content is not None:
        candidates.write_text(content)
    given = ["score", str(file), *arguments, "--candidates", str(candidates)]
    with pytest.raises(LlavaMedError, match=message):
        CliRunner().invoke(app, given, catch_exceptions=False)
