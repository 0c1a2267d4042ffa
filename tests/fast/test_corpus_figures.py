"""The table of figures comes back as it was written, and its parts are complete or not there."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.corpus.figures import (
    FIGURES_SCHEMA,
    FigureImage,
    FigureRow,
    from_table,
    iter_kept,
    list_parts,
    read_figures,
    to_table,
    write_figures,
)
from llavamed.errors import DataError
from llavamed.storage.location import MANIFEST, locate

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.integers(0, 2**31 - 1)
PICTURES = st.builds(FigureImage, TEXT, TEXT, TEXT, TEXT, NUMBER, NUMBER, NUMBER, TEXT)
SEVERAL = st.lists(TEXT, max_size=3).map(tuple)
OWN = {
    "version": NUMBER,
    "number": NUMBER,
    "year": NUMBER,
    "mentions": SEVERAL,
    "mentions_by_range": SEVERAL,
    "pictures": st.lists(PICTURES, max_size=2).map(tuple),
    "modality_score": st.floats(0, 1),
    "scores": st.dictionaries(TEXT, st.floats(-1e6, 1e6), max_size=3),
}
ROWS = st.builds(FigureRow, **{each.name: OWN.get(each.name, TEXT) for each in fields(FigureRow)})


def row(number, **facts):
    empty = {each.name: "" for each in fields(FigureRow)}
    lists = dict.fromkeys(("mentions", "mentions_by_range", "pictures"), ())
    numbers = {"version": 1, "number": number, "year": 2020, "modality_score": 0.0}
    return FigureRow(**empty | lists | numbers | {"pmcid": "PMC1", "scores": {}} | facts)


def test_the_columns_are_the_fields_of_a_row():
    assert FIGURES_SCHEMA.names == [each.name for each in fields(FigureRow)]


@given(st.lists(ROWS, max_size=3))
def test_rows_come_back_from_their_table(rows):
    assert from_table(to_table(rows)) == rows


def test_a_table_from_before_languages_were_noted_is_read():
    table = to_table([row(1, language="en")]).drop_columns("language")
    assert from_table(table) == [row(1)]


def test_the_first_reason_stays():
    refused = row(0).refused("third_party", "by permission").refused("too_small", "8 x 8")
    assert (refused.is_kept, refused.refusal) == (False, "third_party")
    assert refused.refusal_detail == "by permission"


def test_a_part_is_complete_when_its_manifest_exists(tmp_path):
    step = locate(str(tmp_path))
    rows = [row(0), row(1).refused("too_small", "8 x 8"), row(2, scores={"mri": 0.5})]
    manifest = write_figures(step / "00000", rows, "settings")
    write_figures(step / "00001", rows[:1], "settings")
    (step / "00001" / MANIFEST).remove()
    (step / "notes").write_bytes(b"")
    assert [part.name for part, _ in list_parts(step)] == ["00000"]
    assert (manifest.num_figures, manifest.num_kept) == (3, 2)
    assert manifest.refused == {"too_small": 1}
    assert read_figures(step / "00000") == rows
    assert [figure.id for figure in iter_kept(step)] == ["PMC1.1-0", "PMC1.1-2"]


def test_the_fingerprint_of_a_part_changes_with_its_rows(tmp_path):
    step = locate(str(tmp_path))
    found = [write_figures(step / "00000", rows, "") for rows in ([row(0)], [row(0)], [row(1)])]
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint


def test_a_part_of_another_version_is_refused(tmp_path):
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / MANIFEST).write_text('{"schema_version": 99}')
    with pytest.raises(DataError, match=r"schema_version=99: this program reads 1; make the part"):
        list_parts(locate(str(tmp_path)))
