"""Probing pairs say of a picture only what its questions say."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.evaluate.probes import ProbingPairs, negate
from llavamed.evaluate.questions import Question
from tests.support.asked_questions import picture, question


@pytest.mark.parametrize(
    ("asked", "turned"),
    [
        ("Is there a pneumothorax?", "Is pneumothorax absent?"),
        ("Is there evidence of a pleural effusion?", "Is pleural effusion absent?"),
        ("Are there any lesions in the left lobe?", "Are lesions in the left lobe absent?"),
        ("is there a fracture present?", "Is fracture absent?"),
        ("Is there no effusion?", None),
        ("Is there more than one lesion?", None),
        ("Is there a mass or a cyst?", None),
        ("Which lobe is affected?", None),
        ("Is the heart enlarged?", None),
        ("", None),
    ],
)
def test_only_plain_questions_are_turned(asked: str, turned: str | None) -> None:
    assert negate(asked) == turned


@dataclass(frozen=True)
class Given:
    questions: list[Question]
    num_chunks: int = 1

    def read(self, chunk: int, *, with_pictures: bool = True) -> list[Question]:
        return self.questions


def pairs_of(*questions: Question) -> dict[str, list[Question]]:
    pairs: dict[str, list[Question]] = {}
    for each in ProbingPairs(Given(list(questions))).read(0):
        pairs.setdefault(each.pair, []).append(each)
    return pairs


def test_a_finding_is_asked_as_present_and_as_absent() -> None:
    one = question(1, question="Is there a mass?", references=("yes",))
    [(present, absent)] = pairs_of(one).values()
    assert (present.question, present.references) == ("Is there a mass?", ("yes",))
    assert (absent.question, absent.references) == ("Is mass absent?", ("no",))
    assert absent.turns[-1].text == "<image>\nIs mass absent?"
    assert absent.pictures == one.pictures


def test_a_finding_that_is_there_goes_with_one_that_is_not_there_on_the_same_picture() -> None:
    there = question(1, question="Is there a mass?", references=("yes",), pictures=(picture(1),))
    not_there = question(2, question="Is there air?", references=("no",), pictures=(picture(1),))
    elsewhere = question(3, question="Is there pus?", references=("no",), pictures=(picture(2),))
    pairs = pairs_of(there, not_there, elsewhere)
    assert [each.question for each in pairs["q1~q2"]] == ["Is there a mass?", "Is there air?"]
    assert [name for name in pairs if not name.endswith("~absent")] == ["q1~q2"]


REFERENCES = st.sampled_from(["yes", "no", "left", "2"])
ASKED = st.sampled_from(["Is there a mass?", "Is there air?", "Where is it?", "Is it normal?"])


@given(st.lists(st.tuples(ASKED, REFERENCES, st.integers(0, 2)), max_size=8))
def test_pairs_are_two_questions_of_one_picture_with_ids_of_their_own(
    rows: list[tuple[str, str, int]],
) -> None:
    questions = [
        question(number, question=text, references=(reference,), pictures=(picture(image),))
        for number, (text, reference, image) in enumerate(rows)
    ]
    pairs = pairs_of(*questions)
    ids = [each.id for pair in pairs.values() for each in pair]
    assert len(ids) == len(set(ids))
    for pair in pairs.values():
        assert len(pair) == 2
        assert len({each.image for each in pair}) == 1
        assert {each.references[0] for each in pair} == {"yes", "no"}
