"""Benchmarks are read as people have them: packed by zip, VLMEvalKit's tables, Hugging Face's."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from llavamed.errors import DataError
from llavamed.evaluate.benchmarks import BENCHMARKS
from llavamed.evaluate.listing import list_questions
from llavamed.evaluate.questions import Question
from llavamed.storage.location import locate
from tests.support.benchmark_files import FORMS, cell, hub_copy, pack, png, tsv

ROW = {"question": "Is there a mass?", "answer": "yes"}


def asked(name: str, path: str, out: Path, **settings: Any) -> list[Question]:
    split = settings.pop("split", BENCHMARKS[name].splits[0])
    found = list_questions(name, split, path, locate(str(out)), **settings)
    return [each for chunk in range(found.num_chunks) for each in found.read(chunk)]


def same(some: list[Question], others: list[Question]) -> bool:
    facts = [[(each.id, each.question, each.image) for each in one] for one in (some, others)]
    return facts[0] == facts[1]


@pytest.mark.parametrize(
    ("name", "images", "archive", "top"),
    [
        ("slake-en", "imgs", "imgs.zip", "imgs/"),
        ("slake-zh", "imgs", "imgs.zip", ""),
        ("vqa-rad", "images", "VQA_RAD_Image_Folder.zip", "VQA_RAD Image Folder/"),
        ("pmc-vqa", "images", "images.zip", "figures/"),
        ("medxpertqa-mm", "images", "images.zip", "images/images/"),
        ("figure-chat", "images", "images.zip", ""),
    ],
)
def test_packed_images_are_read_where_they_lie(
    name: str, images: str, archive: str, top: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    FORMS[name](data)
    (data / images / "readme.txt").write_text("a second file beside a lone folder")
    before = asked(name, str(data), tmp_path / "before")
    pack(data / images, data / archive, top=top)
    assert same(asked(name, str(data), tmp_path / "after"), before)


@pytest.mark.parametrize("name", ["omnimedvqa", "path-vqa", "vqa-rad", "slake-en", "medxpertqa-mm"])
def test_a_whole_benchmark_is_read_from_its_archive(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / "data")
    before = asked(name, str(tmp_path / "data"), tmp_path / "before")
    pack(tmp_path / "data", tmp_path / "all.zip", top="OmniMedVQA/")
    assert same(asked(name, str(tmp_path / "all.zip"), tmp_path / "after"), before)


def test_an_archive_that_is_damaged_or_absent_ends_the_command(tmp_path: Path) -> None:
    FORMS["slake-en"](tmp_path / "data")
    (tmp_path / "data" / "imgs").rename(tmp_path / "elsewhere")
    (tmp_path / "data" / "imgs.zip").write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"imgs\.zip: not zip: .*; download or export the file again"
    ):
        asked("slake-en", str(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(DataError, match=r"none\.zip: no such file; check the dataset's path"):
        asked("omnimedvqa", str(tmp_path / "none.zip"), tmp_path / "out")


def test_a_picture_that_an_archive_lacks_is_named_with_the_archive(tmp_path: Path) -> None:
    FORMS["vqa-rad"](tmp_path / "data")
    (tmp_path / "data" / "images" / "b.png").rename(tmp_path / "data" / "images" / "c.png")
    pack(tmp_path / "data" / "images", tmp_path / "data" / "images.zip")
    with pytest.raises(
        DataError, match=r"'vqa-rad-test-3': .*data/images\.zip/b\.png: no such file"
    ):
        asked("vqa-rad", str(tmp_path / "data"), tmp_path / "out")


def test_a_table_of_vlmevalkit_is_read_with_its_pictures(tmp_path: Path) -> None:
    rows = [
        {"index": 7, "image": cell(1), "question": 'Is "it"\nnormal?', "answer": "no"},
        {"index": 8, "image": "7", "question": "What is shown?", "answer": "squamous cells"},
        {"index": 9, "image": cell(2), "question": "癌?", "answer": "Yes"},
    ]
    tsv(tmp_path / "PathVQA_TEST.tsv", rows)
    first, second, third = asked("path-vqa", str(tmp_path / "PathVQA_TEST.tsv"), tmp_path / "out")
    assert [first.id, third.id] == ["path-vqa-test-7", "path-vqa-test-9"]
    assert (first.question, third.question) == ('Is "it"\nnormal?', "癌?")
    assert [each.answer_type for each in (first, second, third)] == ["CLOSED", "OPEN", "CLOSED"]
    assert first.image == second.image != third.image
    assert first.turns[-1].text.startswith("<image>\n")


def test_options_and_notes_of_a_table_are_read(tmp_path: Path) -> None:
    shared = {"A": "Healthy", "B": "Glaucoma", "C": "", "modality_type": "CT"}
    rows = [
        {"index": 1, "image": cell(1), "question": "Which?", "answer": "B", "hint": "An eye."},
        {"index": 2, "image": cell(2), "question": "Which?", "answer": "Glaucoma", "hint": ""},
    ]
    tsv(tmp_path / "part1.tsv", [row | shared for row in rows])
    tsv(tmp_path / "part2.tsv", [row | shared for row in rows])
    found = asked("omnimedvqa", str(tmp_path / "part*.tsv"), tmp_path / "out")
    assert [each.references for each in found] == [("B",)] * 4
    assert found[0].options == {"A": "Healthy", "B": "Glaucoma"}
    assert found[0].question == "An eye.\nWhich?"
    assert (found[0].id, found[3].id) == (
        "omnimedvqa-open-access-part1-1",
        "omnimedvqa-open-access-part2-2",
    )
    assert found[0].modality == "CT"


def test_a_table_of_mmmu_gives_the_split_and_subjects_of_the_benchmark(tmp_path: Path) -> None:
    both = str([cell(1), cell(2)])
    row = {"image": both, "question": "Is <image 2> as <image 1>?", "A": "yes", "B": "as <image 2>"}
    row |= {"answer": "A"}
    kinds = [("Pharmacy", "validation"), ("Pharmacy", "dev"), ("Accounting", "validation")]
    rows = [
        {"index": number, **row, "category": category, "split": split}
        for number, (category, split) in enumerate(kinds)
    ]
    tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    path = str(tmp_path / "MMMU_DEV_VAL.tsv")
    [question] = asked("mmmu-health", path, tmp_path / "out")
    assert question.turns[-1].text.splitlines()[:3] == [
        "Is <image> as <image>?",
        "A: yes",
        "B: as <image>",
    ]
    first, second, third = question.pictures
    assert first.sha256 == third.sha256 != second.sha256
    assert len(asked("mmmu-health", path, tmp_path / "dev", split="dev")) == 1


def test_several_pictures_are_read_from_lists_of_python_and_of_json(tmp_path: Path) -> None:
    for number, quoted in enumerate(("'{}', '{}'", '"{}", "{}"')):
        both = f"[{quoted.format(cell(1), cell(2))}]"
        file = tmp_path / f"table{number}.tsv"
        tsv(file, [{"index": 1, "image": both, **ROW}, {"index": 2, "image": cell(2), **ROW}])
        question, other = asked("vqa-rad", str(file), tmp_path / f"out{number}")
        first, second = question.pictures
        assert first.sha256 != second.sha256 == other.pictures[0].sha256


def test_tables_of_both_kinds_leave_out_what_is_of_another_benchmark(tmp_path: Path) -> None:
    """Rows that do not say which language, split or subject they are of are taken."""
    notes = [("zh", "test"), ("en", "train"), ("en", "test"), ("", "test")]
    rows = [{**ROW, "q_lang": language, "split": split} for language, split in notes]
    hub_copy(tmp_path / "slake.parquet", rows)
    tsv(
        tmp_path / "slake.tsv",
        [{"index": number, "image": cell(1), **row} for number, row in enumerate(rows)],
    )
    for name, numbers in {"slake-en": ("2", "3"), "slake-zh": ("0", "3")}.items():
        for form in ("parquet", "tsv"):
            found = asked(name, str(tmp_path / f"slake.{form}"), tmp_path / f"{name}-{form}")
            assert tuple(each.id.rpartition("-")[2] for each in found) == numbers
    row = {**ROW, "A": "yes", "B": "no", "answer": "A"}
    subjects = [{**row, "category": each} for each in ("Pharmacy", "Accounting")]
    hub_copy(tmp_path / "mmmu.parquet", subjects)
    assert len(asked("mmmu-health", str(tmp_path / "mmmu.parquet"), tmp_path / "mmmu")) == 1


def test_pictures_beside_a_table_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
    names = "['images/1.png', 'images/2.png']"
    tsv(tmp_path / "table.tsv", [{"index": 1, "image_path": names, **ROW}])
    [question] = asked("vqa-rad", str(tmp_path / "table.tsv"), tmp_path / "out")
    assert len(question.pictures) == 2


@pytest.mark.parametrize("name", ["vqa-rad", "slake-en"])
def test_a_copy_on_the_hub_is_read(name: str, tmp_path: Path) -> None:
    rows = [ROW, {"question": "Where?", "answer": "left lobe"}]
    hub_copy(tmp_path / "data" / "test-00000-of-00001-ab12.parquet", rows)
    hub_copy(tmp_path / "data" / "train-00000-of-00001.parquet", [ROW])
    first, second = asked(name, str(tmp_path), tmp_path / "out")
    assert (first.id, first.answer_type) == (f"{name}-test-0", "CLOSED")
    assert (second.references, second.answer_type) == (("left lobe",), "OPEN")
    assert len(asked(name, str(tmp_path), tmp_path / "train", split="train")) == 1
    [one] = asked(name, str(tmp_path / "data" / "test-*.parquet"), tmp_path / "limited", limit=1)
    assert one.image == first.image


BAD = {
    "another split": (
        "PathVQA_VAL.tsv",
        [{"index": 1, "image": cell(1), **ROW}],
        "PathVQA_VAL.tsv is of another split than test by its name; name the right file, or the "
        "right --split",
    ),
    "no picture": (
        "table.tsv",
        [{"index": 1, "image": "5", **ROW}],
        "1 missing_image.*the row has no picture, and names no row that has",
    ),
    "broken picture": ("table.tsv", [{"index": 1, "image": "A" * 99, **ROW}], "1 corrupt_image"),
    "no column": (
        "table.tsv",
        [{"index": 1, **ROW}],
        "not a table of questions: it has no column image or image_path; download or export",
    ),
    "two rows of one index": (
        "table.tsv",
        [{"index": 1, "image": cell(1), **ROW}] * 2,
        "id='path-vqa-test-1' is the id of two questions",
    ),
    "a picture that is not there": (
        "table.tsv",
        [{"index": 1, "image": cell(1), **ROW, "question": "Is <image 2> normal?"}],
        "1 missing_image.*<image 2> of 1 pictures",
    ),
    "an answer that is no option": (
        "table.tsv",
        [{"index": 1, "image": cell(1), **ROW, "A": "no", "B": "perhaps"}],
        "1 unknown_answer.*'yes' is none of A, B",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_cannot_be_asked_ends_the_command(case: str, tmp_path: Path) -> None:
    name, rows, message = BAD[case]
    tsv(tmp_path / name, rows)
    with pytest.raises(DataError, match=message):
        asked("path-vqa", str(tmp_path / name), tmp_path / "out")


def test_a_row_of_other_cells_and_an_open_quotation_mark_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.tsv"
    tsv(file, [{"index": 1, "image": cell(1), **ROW}])
    whole = file.read_text()
    file.write_text(whole + "2\tAAAA\n")
    with pytest.raises(DataError, match=r"1 malformed_row.*2 cells, 4 columns"):
        asked("path-vqa", str(file), tmp_path / "out")
    file.write_text(whole + '2\t"AAAA\tIs it?\tyes\n')
    with pytest.raises(
        DataError, match=r"not a table: a quotation mark of the row at byte .* is open"
    ):
        asked("path-vqa", str(file), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (gzip.compress, "is compressed or UTF-16; unpack it, and save it as UTF-8 where it is not"),
        (lambda whole: whole.decode().encode("utf-16"), "is compressed or UTF-16; unpack it"),
        (
            lambda whole: whole.replace(b"mass", b"m\xe4ss"),
            r"1 not_unicode.*question has b'\\xe4', which is not UTF-8",
        ),
    ],
)
def test_a_table_in_another_encoding_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "table.tsv"
    tsv(file, [{"index": 1, "image": cell(1), **ROW}])
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=message):
        asked("path-vqa", str(file), tmp_path / "out")


def test_an_ending_in_capitals_and_several_answers_are_read(tmp_path: Path) -> None:
    tsv(tmp_path / "TABLE.TSV", [{"index": 1, "image": cell(1), **ROW}])
    assert len(asked("path-vqa", str(tmp_path / "TABLE.TSV"), tmp_path / "capitals")) == 1
    hub_copy(tmp_path / "table.parquet", [{"question": "Where?", "answer": ["left", "left lung"]}])
    [found] = asked("path-vqa", str(tmp_path / "table.parquet"), tmp_path / "out")
    assert found.references == ("left", "left lung")


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_file_where_a_folder_is_wanted_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "test.json"
    file.write_text("[]")
    with pytest.raises(
        DataError, match=r"test\.json: is a file of another kind; name an? \w+ with .*"
    ):
        asked(name, str(file), tmp_path / "out")
