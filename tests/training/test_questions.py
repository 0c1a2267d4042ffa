"""Whether questions can be scored is found when they are prepared."""

import numpy as np
import pytest

from llavamed.data.prepared.questions import NO_TYPE, check_questions
from llavamed.errors import DataError
from tests.support.small_datasets import dialogue, make_row, write

KEY = "stages.vqa.evaluation.data"


def questions(folder, changes):
    random = np.random.default_rng(0)
    rows = [make_row(random, number, 1) | {"answer_type": "OPEN"} for number in range(20)]
    for number, change in changes.items():
        rows[number] |= change
    return write(f"{folder}/test", rows).dataset


def test_questions_that_can_be_scored_are_let_through(tmp_path):
    three = [{"role": "system", "text": "Be brief."}, *dialogue("What?", "A lung.")]
    check_questions(questions(tmp_path, {3: {"turns": three, "answer_type": "CLOSED"}}), KEY)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({3: {"id": ""}, 9: {"id": ""}}, "2 of 20 without an id .* give each question an id$"),
        ({9: {"id": "sample-3"}}, "1 of 20 with the id of another .the first is 'sample-3'"),
        ({9: {"answer_type": ""}}, "1 of 20 without an answer type .*'sample-9'.; say OPEN"),
        ({9: {"turns": dialogue("What?", " ")}}, "1 of 20 without a reference answer .the"),
        ({9: {"turns": dialogue("What?", "x")[:1]}}, "1 of 20 without a reference answer"),
        ({9: {"turns": dialogue("What?", "x")[1:]}}, "1 of 20 not asked by a user at the end"),
        (
            {9: {"id": "", "turns": dialogue("What?", " "), "answer_type": ""}},
            "1 of 20 without an id .*, 1 of 20 without a reference .*, 1 of 20 without an answer",
        ),
    ],
    ids=["no id", "same id", "no type", "blank", "no answer", "no question", "in this order"],
)
def test_what_cannot_be_scored_is_refused_with_its_numbers(changes, sentence, tmp_path):
    with pytest.raises(DataError, match=f"{KEY}=test: its questions cannot be scored: {sentence}"):
        check_questions(questions(tmp_path, changes), KEY)


def test_questions_that_only_count_their_answers_need_types_and_nothing_else(tmp_path):
    key = "stages.vqa.evaluation.majority_from"
    check_questions(questions(tmp_path / "a", {9: {"id": "sample-3"}}), key, [NO_TYPE])
    with pytest.raises(DataError, match=f"{key}=test: .* 1 of 20 without an answer type"):
        check_questions(questions(tmp_path / "b", {9: {"answer_type": ""}}), key, [NO_TYPE])
