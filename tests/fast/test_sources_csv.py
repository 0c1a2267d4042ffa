"""A CSV file of questions gives the records that the same rows give as JSON."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llavamed.config.sources import LlavaJson
from llavamed.data.sources import open_source
from llavamed.errors import DataError, SampleError

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).filter(str.strip)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"id": TEXT, "image": TEXT, "question": TEXT, "answer": TEXT},
        optional={"answer_type": st.sampled_from(["OPEN", "CLOSED"]), "domain": TEXT},
    ),
    min_size=1,
    max_size=5,
)


def records(folder, name, data):
    (folder / name).write_bytes(data)
    read = LlavaJson(source="llava_json", path=f"{folder}/{name}", image_folder=str(folder))
    source = open_source(read)
    return [source.parse(row) for row in source.rows()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=ROWS,
    delimiter=st.sampled_from(",;\t"),
    is_packed=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_rows_are_those_of_json(rows, delimiter, is_packed, encoding, tmp_path):
    columns = ["Id", "image", "question", "answer", "answer_type", "domain"]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(columns)
    writer.writerows([row.get(name.lower(), "") for name in columns] for row in rows)
    data = text.getvalue().encode(encoding)
    name, data = ("a.csv.gz", gzip.compress(data)) if is_packed else ("a.csv", data)
    assert records(tmp_path, name, data) == records(tmp_path, "a.json", json.dumps(rows).encode())


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        (b"1.png,Is it?,yes,and more", "4 cells, 3 columns, at line 3"),
        (b"1.png,Is it?", "2 cells, 3 columns, at line 3"),
        (b"1.png,L\xe4sion?,yes", r"b'\\xe4' at line 3 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_row_that_cannot_be_read_costs_itself_alone(line, fact, tmp_path):
    data = b"image,question,answer\n0.png,Is it?,no\n" + line + b"\n2.png,Is it?,no\n"
    (tmp_path / "a.csv").write_bytes(data)
    read = LlavaJson(source="llava_json", path=f"{tmp_path}/a.csv", image_folder=str(tmp_path))
    source = open_source(read)
    first, broken, last = source.rows()
    assert [source.parse(row).images for row in (first, last)] == [("0.png",), ("2.png",)]
    with pytest.raises(SampleError, match=f"malformed_row: {fact}"):
        source.parse(broken)


def test_a_table_of_a_spreadsheet_is_read_as_it_looks(tmp_path):
    """Spreadsheets end with rows of commas; people write spaces, and long reports into a cell."""
    report = "long " * 40_000
    lines = ["id, image, question, answer", f'1, 1.png, "What, ""now""?", {report}', ", , ,", ",,,"]
    [found] = records(tmp_path, "a.csv", "\r\n".join(lines).encode())
    assert (found.id, found.images) == ("1", ("1.png",))
    assert [turn.text for turn in found.turns] == ['<image>\nWhat, "now"?', report.strip()]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            b"image,report\n1.png,x\n",
            "no column question; its columns are image, report; name those of question and answer",
        ),
        (b"", "not CSV: the file is empty; download or export"),
        (b"image,question,Question\n", "two columns are named 'question'; rename one"),
        (b'question,answer\n"a"b,c\n', "not CSV: .*, near line 2; download or export"),
    ],
)
def test_what_is_no_table_of_questions_is_refused(data, sentence, tmp_path):
    with pytest.raises(DataError, match=sentence):
        records(tmp_path, "a.csv", data)


@pytest.mark.parametrize("name", ["a.xlsx", "A.XLSM", "a.ods"])
def test_a_workbook_is_refused_with_what_to_save(name, tmp_path):
    with pytest.raises(DataError, match=r"is a workbook; save its sheet as CSV in UTF-8, and name"):
        records(tmp_path, name, b"PK\x03\x04")
