"""Every benchmark reads the files it is published as, and refuses what cannot be asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llavamed.errors import ConfigError, DataError
from llavamed.evaluate.benchmarks import BENCHMARKS, find_benchmark
from llavamed.evaluate.listing import QUARANTINE, ListedQuestions, list_questions
from llavamed.evaluate.questions import Question
from llavamed.evaluate.scorers import strict
from llavamed.evaluate.scorers.predictions import SCORERS
from llavamed.processor.turns import IMAGE_PLACEHOLDER
from llavamed.storage.location import locate
from tests.support.benchmark_files import FORMS, png

CHOICE = "Answer with the letter of the right option."


def listed(name: str, folder: Path, **settings: Any) -> ListedQuestions:
    data = folder / "data"
    if not data.exists():
        FORMS[name](data)
    split = settings.pop("split", BENCHMARKS[name].splits[0])
    return list_questions(name, split, str(data), locate(str(folder / "out")), **settings)


def asked(name: str, folder: Path, **settings: Any) -> list[Question]:
    found = listed(name, folder, **settings)
    return [each for chunk in range(found.num_chunks) for each in found.read(chunk)]


def test_there_is_a_file_of_every_form() -> None:
    assert FORMS.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_question_has_all_that_is_shown_and_scored(name: str, tmp_path: Path) -> None:
    found = asked(name, tmp_path)
    assert found
    assert BENCHMARKS[name].scorer in SCORERS
    assert BENCHMARKS[name].prompt == (CHOICE if any(each.options for each in found) else "")
    for question in found:
        text = question.turns[-1].text
        assert text.count(IMAGE_PLACEHOLDER) == len(question.pictures) >= 1
        assert question.question in text.replace(f"{IMAGE_PLACEHOLDER}\n", "") or "<image" in text
        assert IMAGE_PLACEHOLDER not in question.question
        assert question.language == ("zh" if name.endswith("zh") else "en")
        assert (question.options is not None) == text.endswith(CHOICE)
        assert question.pictures[0].pixels.shape == (16, 20, 3)
        # The reference is right by the benchmark's own scorer, and so is the text of the option.
        for given in [*question.references, *_texts_of_references(question)]:
            item = _item(question, given)
            assert strict.score(item) == 1.0


def _texts_of_references(question: Question) -> list[str]:
    options = question.options
    return [options[letter] for letter in question.references] if isinstance(options, dict) else []


def _item(question: Question, prediction: str) -> Any:
    from llavamed.evaluate.answers import Answer

    facts = {name: getattr(question, name) for name in ("id", "question", "references", "options")}
    answer = Answer(
        **facts, condition="trained", answer_type=question.answer_type, prediction=prediction
    )
    return max(answer.items(), key=strict.score)


def test_groups_are_those_of_the_benchmark(tmp_path: Path) -> None:
    rad = asked("vqa-rad", tmp_path / "rad")
    assert [(each.answer_type, each.question_type, each.organ) for each in rad] == [
        ("CLOSED", "PRES", "CHEST"),
        ("CLOSED", "PRES", "CHEST"),
        ("OPEN", "POS", "CHEST"),
    ]
    assert len({each.image for each in rad}) == 2
    [slake] = asked("slake-zh", tmp_path / "slake")
    assert (slake.modality, slake.organ, slake.references) == ("X-Ray", "Lung", ("不是",))
    [omni] = asked("omnimedvqa", tmp_path / "omni")
    assert (omni.references, omni.options) == (("B",), {"A": "Healthy", "B": "Glaucoma"})
    assert (omni.modality, omni.domain) == ("Fundus Photography", "ACRIMA")
    chat = asked("figure-chat", tmp_path / "chat")
    assert [(each.id, each.question_type, each.domain) for each in chat] == [
        ("PMC1.1-0-0", "conversation", "ct_scan"),
        ("1", "detailed_description", "ct_scan"),
    ]
    [pmc] = asked("pmc-vqa", tmp_path / "pmc")
    assert pmc.question == "What does the arrow show?"
    assert pmc.turns[-1].text.splitlines()[2] == "A: effusion"


def test_the_splits_of_vqa_rad_differ_by_framed_questions(tmp_path: Path) -> None:
    assert len(asked("vqa-rad", tmp_path, split="train")) == 3
    assert len(asked("vqa-rad", tmp_path, split="train-without-frame")) == 2


def test_the_real_vqa_rad_has_451_test_questions(reference_data: Path) -> None:
    items = BENCHMARKS["vqa-rad"].open(str(reference_data / "data" / "vqa-rad"), "test")
    found = [items.ask(row) for row in items.rows()]
    assert len(found) == 451
    assert sum(each.answer_type == "CLOSED" for each in found) == 272
    assert len({each.images for each in found}) == 203


def test_pictures_of_mmmu_lie_where_the_text_names_them(tmp_path: Path) -> None:
    choice, words = asked("mmmu-health", tmp_path)[:2]
    first, same, other, instruction = choice.turns[-1].text.splitlines()
    assert first == "Compare <image> and <image>."
    assert (same, other, instruction) == ("A: the same", "B: as <image>", CHOICE)
    assert len(choice.pictures) == 3
    assert words.references == ("5", "five")
    assert words.turns[-1].text == "<image>\nHow many mg?"
    assert len(asked("mmmu-health", tmp_path)) == 10


def test_an_instruction_replaces_the_benchmark_s_own(tmp_path: Path) -> None:
    [question] = asked("pmc-vqa", tmp_path, instruction="Only the letter.")
    assert question.turns[-1].text.endswith("D: none\nOnly the letter.")


def test_the_limit_takes_the_first_questions(tmp_path: Path) -> None:
    assert [each.id for each in asked("vqa-rad", tmp_path, limit=2)] == [
        "vqa-rad-test-1",
        "vqa-rad-test-2",
    ]


@pytest.mark.parametrize("change", ["question", "picture"])
def test_the_fingerprint_knows_questions_and_pictures(change: str, tmp_path: Path) -> None:
    before = listed("vqa-rad", tmp_path).fingerprint
    assert listed("vqa-rad", tmp_path).fingerprint == before
    if change == "picture":
        (tmp_path / "data" / "images" / "b.png").write_bytes(png(9))
    else:
        file = tmp_path / "data" / "testset.json"
        file.write_text(file.read_text().replace("Which lobe?", "Which lung?"))
    assert listed("vqa-rad", tmp_path).fingerprint != before


def edited(name: str, key: str, value: Any) -> Callable[[Path], None]:
    def edit(data: Path) -> None:
        file = data / name
        rows = json.loads(file.read_text())
        rows[0][key] = value
        file.write_text(json.dumps(rows))

    return edit


OMNI = "QA_information/Open-access/ACRIMA.json"
UNUSABLE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no picture": (
        "vqa-rad",
        lambda data: (data / "images" / "b.png").unlink(),
        r"vqa-rad/1 at .*: 1 of 3 questions cannot be asked \(1 missing_image\), at most 0 of them "
        r"may be; the first is 'vqa-rad-test-3': .*b\.png: no such file; fix the data, or leave "
        "them out with --max-bad-fraction",
    ),
    "broken picture": (
        "vqa-rad",
        lambda data: (data / "images" / "b.png").write_bytes(b"no picture"),
        r"1 of 3 questions cannot be asked \(1 corrupt_image\)",
    ),
    "answer that is no option": (
        "omnimedvqa",
        edited(OMNI, "gt_answer", "Cataract"),
        "1 of 1 questions .*'Cataract' is the text of 0 options, not of one",
    ),
    "option without text": (
        "omnimedvqa",
        edited(OMNI, "option_A", "  "),
        "1 missing_key.*no text of option A",
    ),
    "unknown answer type": (
        "vqa-rad",
        edited("testset.json", "answer_type", "BOTH"),
        r"1 unknown_answer_type",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_question_that_cannot_be_asked_ends_the_command(case: str, tmp_path: Path) -> None:
    name, edit, message = UNUSABLE[case]
    FORMS[name](tmp_path / "data")
    edit(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        listed(name, tmp_path)


def test_unusable_questions_are_counted_where_they_are_allowed(tmp_path: Path) -> None:
    FORMS["vqa-rad"](tmp_path / "data")
    (tmp_path / "data" / "images" / "b.png").unlink()
    found = listed("vqa-rad", tmp_path, max_bad_fraction=0.5)
    assert (found.num_questions, found.quarantined) == (2, {"missing_image": 1})
    [row] = pq.read_table(tmp_path / "out" / QUARANTINE).to_pylist()
    assert (row["id"], row["reason"]) == ("vqa-rad-test-3", "missing_image")


def test_two_questions_of_one_id_end_the_command(tmp_path: Path) -> None:
    FORMS["vqa-rad"](tmp_path / "data")
    edited("testset.json", "qid", 2)(tmp_path / "data")
    with pytest.raises(DataError, match="id='vqa-rad-test-2' is the id of two questions; give"):
        listed("vqa-rad", tmp_path)


def test_a_split_without_questions_ends_the_command(tmp_path: Path) -> None:
    FORMS["vqa-rad"](tmp_path / "data")
    (tmp_path / "data" / "testset.json").write_text("[]")
    with pytest.raises(DataError, match="holds no question; check the path and the split"):
        listed("vqa-rad", tmp_path)


def test_a_picture_that_changes_while_it_is_evaluated_is_noticed(tmp_path: Path) -> None:
    found = listed("vqa-rad", tmp_path)
    (tmp_path / "data" / "images" / "b.png").write_bytes(png(9))
    with pytest.raises(DataError, match=r"'vqa-rad-test-3' has changed .*its bytes are others"):
        found.read(0)
    (tmp_path / "data" / "images" / "b.png").unlink()
    with pytest.raises(DataError, match=r"has changed while it was evaluated \(missing_image"):
        found.read(0)


def test_an_unknown_benchmark_or_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="benchmark=vqa: is not a benchmark; use one of vqa-ra"):
        find_benchmark("vqa", None)
    with pytest.raises(ConfigError, match="split=dev: vqa-rad has no such split; use one of test,"):
        find_benchmark("vqa-rad", "dev")


@pytest.mark.parametrize(
    ("name", "images", "packed"),
    [
        ("slake-en", "imgs", "imgs.tar"),
        ("pmc-vqa", "images", "images.tgz"),
        ("medxpertqa-mm", "images", "images.tar.gz"),
        ("figure-chat", "images", "images.tar"),
    ],
)
def test_images_that_are_still_packed_are_to_be_unpacked(
    name: str, images: str, packed: str, tmp_path: Path
) -> None:
    FORMS[name](tmp_path / "data")
    (tmp_path / "data" / images).rename(tmp_path / "data" / "elsewhere")
    (tmp_path / "data" / packed).write_bytes(b"")
    with pytest.raises(DataError, match=f"its images are packed; unpack {packed} there"):
        listed(name, tmp_path)
