import csv
import json
from collections import Counter

import pytest

from llavamed.config.sources import PmcVqa, Slake, VqaRad
from llavamed.data.record import check_record
from llavamed.data.sources import open_source
from llavamed.errors import DataError, SampleError
from tests.support.refused_samples import refusal


def vqa_rad(folder, **settings):
    return open_source(VqaRad(source="vqa_rad", path=str(folder), **settings))


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 3064), ({"phrase_types": ("freeform", "para")}, 1797), ({"split": "test"}, 451)],
    ids=["train", "train without frame", "test"],
)
def test_vqa_rad_has_the_published_number_of_questions(settings, count, reference_data):
    source = vqa_rad(reference_data / "data" / "vqa-rad", **settings)
    records = [source.parse(row) for row in source.rows()]
    assert source.count() == len(records) == count
    assert len({record.id for record in records}) == count
    for record in records:
        check_record(record)
        assert record.answer_type in {"OPEN", "CLOSED"}


def test_vqa_rad_s_odd_rows_are_read(reference_data):
    source = vqa_rad(reference_data / "data" / "vqa-rad")
    rows = list(source.rows())
    assert sum(row["answer_type"] == "CLOSED " for row in rows) == 2
    types = Counter(source.parse(row).answer_type for row in rows)
    assert types == {"CLOSED": 1823, "OPEN": 1241}
    numbers = [row for row in rows if isinstance(row["answer"], int)]
    assert len(numbers) == 10
    assert [source.parse(row).turns[1].text for row in numbers] == [
        str(row["answer"]) for row in numbers
    ]
    test = vqa_rad(reference_data / "data" / "vqa-rad", split="test")
    found = test.parse(next(test.rows()))
    assert found.id == "vqa-rad-test-11"
    assert found.turns[0].text == "<image>\nIs there evidence of an aortic aneurysm?"
    assert (found.turns[1].text, found.domain, found.licence) == ("yes", "CHEST", "CC0-1.0")


def test_vqa_rad_s_missing_images_are_told_apart(reference_data):
    source = vqa_rad(reference_data / "data" / "vqa-rad", split="test")
    reasons = Counter()
    for row in source.rows():
        try:
            data = source.load_image(source.parse(row).images[0])
        except SampleError as error:
            reasons[error.reason] += 1
        else:
            assert data.startswith(b"\xff\xd8")
            reasons["found"] += 1
    assert reasons == {"found": 145, "missing_image": 306}


VQA_ROW = {"qid": 1, "image_name": "a.jpg", "question": "Where?", "answer": "Here"}


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"qid": 1}, "missing_key", "no image_name, question, answer"),
        (VQA_ROW | {"answer": None}, "missing_key", "no answer"),
        ({"item": [3]}, "missing_key", "no qid, image_name"),
        (VQA_ROW | {"answer_type": "MAYBE"}, "unknown_answer_type", "answer_type is 'MAYBE'"),
        (VQA_ROW, "unknown_answer_type", "answer_type is ''"),
    ],
    ids=["keys", "null", "no mapping", "unknown type", "no type"],
)
def test_an_unusable_question_is_listed_and_refused(row, reason, detail, tmp_path):
    (tmp_path / "trainset.json").write_text(json.dumps([row.get("item", row)]))
    source = vqa_rad(tmp_path, phrase_types=("para",))
    assert [{**row, "id": f"vqa-rad-train-{row.get('qid')}"}] == list(source.rows())
    found = refusal(source.parse, row)
    assert found[0] == reason
    assert detail in found[1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no such file; check the dataset's path"),
        (
            b"<html>",
            "not JSON: .* neither a bracket nor a brace at line 1, byte 0, near '<html>'; download",
        ),
        (b"[{]", "not JSON: .*; download or export the file again"),
        (b"\xff", "not JSON: .*; download or export the file again"),
    ],
    ids=["absent", "page", "cut", "bytes"],
)
def test_an_unreadable_vqa_rad_is_named(text, sentence, tmp_path):
    if text is not None:
        (tmp_path / "testset.json").write_bytes(text)
    with pytest.raises(DataError, match=rf"path=/.*/testset\.json: {sentence}"):
        list(vqa_rad(tmp_path, split="test").rows())


def slake(folder, **settings):
    return open_source(Slake(source="slake", path=str(folder), **settings))


@pytest.mark.parametrize(
    ("languages", "count"),
    [(("en",), 1053), (("zh",), 1046), (("en", "zh"), 2099)],
    ids=["English", "Chinese", "both"],
)
def test_slake_has_the_published_number_of_questions(languages, count, reference_data):
    source = slake(reference_data / "data" / "slake", split="validation", languages=languages)
    records = [source.parse(row) for row in source.rows()]
    assert source.count() == len(records) == count
    assert len({record.id for record in records}) == count
    for record in records:
        check_record(record)
        assert record.answer_type in {"OPEN", "CLOSED"}
        assert record.domain in {"CT", "MRI", "X-Ray"}


def test_a_slake_question_is_understood(reference_data):
    source = slake(reference_data / "data" / "slake", split="validation")
    record = source.parse(next(source.rows()))
    assert record.id == "slake-validation-9835"
    assert record.images == ("xmlab0/source.jpg",)
    assert record.turns[0].text == "<image>\nWhat modality is used to take this image?"
    assert (record.turns[1].text, record.question_type, record.licence) == (
        "MRI",
        "Modality",
        "CC-BY-4.0",
    )
    reason, detail = refusal(source.load_image, record.images[0])
    assert reason == "missing_image"
    assert detail.endswith("slake/imgs/xmlab0/source.jpg: no such file")


def test_slake_s_unusable_questions_are_listed_and_refused(tmp_path):
    good = {"qid": 1, "q_lang": "en", "img_name": "a.jpg", "question": "Where?", "answer": "Here"}
    good |= {"answer_type": "OPEN", "content_type": "Position", "modality": "CT"}
    rows = [good, good | {"q_lang": None}, good | {"answer_type": "x"}, good | {"answer": " "}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    source = slake(tmp_path)
    first, unknown, untyped, blank = source.rows()
    assert source.parse(first).turns[1].text == "Here"
    assert refusal(source.parse, unknown) == ("missing_key", "no q_lang")
    assert refusal(source.parse, untyped) == ("unknown_answer_type", "answer_type is 'x'")
    assert refusal(check_record, source.parse(blank))[0] == "empty_answer"


CHOICES = {"Choice A": "a lung", "Choice B": "a heart", "Choice C": "a bone", "Choice D": "no: C"}
LABELLED = {name: f" {name[-1]}:{choice} " for name, choice in CHOICES.items()}
VERSION_1 = {"Figure_path": "a.jpg", "Question": " What is it? ", "Answer": "a heart", **LABELLED}
VERSION_1 |= {"Answer_label": " B "}
VERSION_2 = {"index": 0, "Figure_path": "a.jpg", "Caption": "A heart,\nbeating.", **CHOICES}
VERSION_2 |= {"Question": "What is it?", "Answer": "B", "split": "train"}


def pmc_vqa(folder, *rows, text=None):
    file = folder / "train_2.csv"
    if text is not None:
        file.write_bytes(text)
    else:
        with file.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return open_source(PmcVqa(source="pmc_vqa", path=str(file), image_folder=str(folder)))


@pytest.mark.parametrize("row", [VERSION_1, VERSION_2], ids=["first", "second"])
def test_both_versions_of_pmc_vqa_are_the_same_questions(row, tmp_path):
    source = pmc_vqa(tmp_path, row, row)
    assert source.count() == 2
    first, second = (source.parse(row) for row in source.rows())
    check_record(first)
    assert (first.id, second.id) == ("pmc-vqa-train_2-0", "pmc-vqa-train_2-1")
    assert first.images == ("a.jpg",)
    assert first.turns[0].text == (
        "<image>\nWhat is it?\nA: a lung\nB: a heart\nC: a bone\nD: no: C"
    )
    assert (first.turns[1].text, first.answer_type) == ("B", "CLOSED")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Answer_label": "E"}, ("unknown_answer", "the answer's letter is 'E', not A to D")),
        ({"Answer_label": ""}, ("unknown_answer", "the answer's letter is '', not A to D")),
        ({"Answer_label": "AB"}, ("unknown_answer", "the answer's letter is 'AB', not A to D")),
        ({"Choice C": " C: "}, ("missing_key", "no text of choice C")),
        ({"Question": None}, ("missing_key", "no Question")),
        ({"more": ["x", "y"]}, ("malformed_row", "2 fields more than columns")),
    ],
    ids=["letter", "no letter", "letters", "choice", "question", "fields"],
)
def test_an_unusable_choice_is_refused(changes, expected, tmp_path):
    assert refusal(pmc_vqa(tmp_path, VERSION_1).parse, VERSION_1 | changes) == expected


def test_ragged_rows_of_a_csv_are_listed_and_refused(tmp_path):
    header = b"Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D\n"
    source = pmc_vqa(tmp_path, text=header + b"a.jpg,Q,A,1,2,3\na.jpg,Q,A,1,2,3,4,5\n")
    short, long = source.rows()
    assert refusal(source.parse, short) == ("missing_key", "no Choice D")
    assert refusal(source.parse, long) == ("malformed_row", "1 fields more than columns")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "not PMC-VQA: no column Figure_path, Question, Choice A, .*; download or export"),
        (b"Figure_path,Question,Choice A,Choice B\n", "not PMC-VQA: no column Choice C, Choice D"),
        (
            b"\xff\xfe",
            "not PMC-VQA: no column Figure_path, Question, Choice A, .*; download or export",
        ),
    ],
    ids=["empty", "columns", "bytes"],
)
def test_a_file_of_another_form_is_named(text, sentence, tmp_path):
    with pytest.raises(DataError, match=rf"path=/.*/train_2\.csv: {sentence}"):
        list(pmc_vqa(tmp_path, text=text).rows())


@pytest.mark.parametrize("name", ["VQA_RAD Dataset Public.json", "VQA_RAD_Dataset_Public.json"])
def test_vqa_rad_is_read_as_its_authors_site_has_it(name, tmp_path):
    types = ["freeform", "para", "test_freeform", "test_para"]
    rows = [
        VQA_ROW | {"qid": str(number), "answer_type": "OPEN", "phrase_type": kind}
        for number, kind in enumerate(types)
    ]
    (tmp_path / name).write_text(json.dumps(rows))
    images = tmp_path / "VQA_RAD Image Folder"
    images.mkdir()
    (images / "a.jpg").write_bytes(b"data")

    def names(**settings):
        source = vqa_rad(tmp_path, **settings)
        records = [source.parse(row) for row in source.rows()]
        assert source.count() == len(records)
        assert all(source.load_image(record.images[0]) == b"data" for record in records)
        return [record.id for record in records]

    assert names() == ["vqa-rad-train-0", "vqa-rad-train-1"]
    assert names(split="test") == ["vqa-rad-test-2", "vqa-rad-test-3"]
    assert names(split="test", phrase_types=("para",)) == ["vqa-rad-test-3"]


def test_the_published_vqa_rad_is_read(reference_data):
    source = vqa_rad(reference_data / "cases" / "data" / "published" / "rad-osf")
    (record,) = [source.parse(row) for row in source.rows()]
    assert record.turns[0].text == "<image>\nAre regions infarcted?"
    assert (record.answer_type, record.domain) == ("CLOSED", "HEAD")
    assert source.load_image(record.images[0])


def test_slake_is_read_as_the_hub_has_it(tmp_path):
    row = {"qid": 1, "q_lang": "en", "img_name": "a.jpg", "question": "Where?", "answer": "Here"}
    (tmp_path / "validation.json").write_text(json.dumps([row | {"answer_type": "OPEN"}]))
    (tmp_path / "imgs.zip").write_bytes(b"PK")
    source = slake(tmp_path, split="validation")
    with pytest.raises(
        DataError, match=r"path=/.*imgs.zip: not zip: .*; download or export the file again"
    ):
        list(source.rows())
    (tmp_path / "imgs").mkdir()
    assert [row["id"] for row in source.rows()] == ["slake-validation-1"]
