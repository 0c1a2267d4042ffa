"""Answers of all conditions are scored in groups, with intervals and gains over the controls."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.evaluate.answers import Answer
from llavamed.evaluate.measures import MEASURES, NO_ANSWER, STRICT, measure
from llavamed.evaluate.scorers import exact_token, legacy, strict
from llavamed.evaluate.scoring import BLANK, find_group, score_answers


def answer(number, prediction, reference="yes", answer_type="CLOSED", **others):
    there = {"image": f"image {number // 2}"} | others
    references = reference if isinstance(reference, tuple) else (reference,)
    return Answer(
        str(number),
        "trained",
        "Is it?",
        references,
        None,
        answer_type,
        prediction=prediction,
        **there,
    )


def answers():
    """Four closed and four open questions of four images, and a control that always says no."""
    trained = [
        answer(0, "yes", question_type="PRES"),
        answer(1, "No.", question_type="PRES"),
        answer(2, "maybe", question_type="SIZE"),
        answer(3, "There is none", "no", question_type="SIZE"),
        answer(4, "left lung", "left lung", "OPEN", organ="chest"),
        answer(5, "right lung", "left lung", "OPEN", organ="chest"),
        answer(6, "liver", ("spleen", "the liver"), "OPEN"),
        answer(7, "", "spleen", "OPEN"),
    ]
    return {"trained": trained, BLANK: [replace(each, prediction="no") for each in trained]}


def test_every_group_holds_its_questions_and_the_mean_of_their_scores():
    found = score_answers(answers())
    names = {(each.by, each.name, each.part): each.num_questions for each in found.groups}
    assert names == {
        ("all", "all", "all"): 8,
        ("all", "all", "closed"): 4,
        ("all", "all", "open"): 4,
        ("question_type", "", "open"): 4,
        ("question_type", "PRES", "closed"): 2,
        ("question_type", "SIZE", "closed"): 2,
        ("organ", "", "closed"): 4,
        ("organ", "", "open"): 2,
        ("organ", "chest", "open"): 2,
    }
    closed, everything = find_group(found.groups, "closed"), find_group(found.groups)
    assert closed.scores["trained"][STRICT].value == 0.5
    assert closed.scores[BLANK][STRICT].value == 0.25
    assert closed.scores["trained"][NO_ANSWER].value == 0.25
    assert closed.num_images == 2
    assert everything.scores["trained"][STRICT].value == pytest.approx((2 + 1 + 0 + 1 + 0) / 8)
    assert "token_f1" not in closed.scores["trained"]
    assert ("open", "brain") not in [(each.part, each.name) for each in found.groups]


def test_the_gain_is_the_mean_difference_question_by_question():
    found = score_answers(answers())
    for group in found.groups:
        for name, gain in group.gains[BLANK].items():
            there = group.scores["trained"][name].value - group.scores[BLANK][name].value
            assert gain.value == pytest.approx(there)
            assert -1 <= gain.low <= gain.value <= gain.high <= 1
    alone = score_answers({"trained": answers()["trained"]})
    assert all(group.gains == {} for group in alone.groups)


def test_an_answer_scores_by_its_best_reference():
    for references in (("liver", "spleen"), ("spleen", "liver")):
        found = measure([answer(0, "spleen.", references, "OPEN")])
        assert found["strict"][0] == found["token_recall"][0] == found["exact_match"][0] == 1
    both = measure([answer(0, "", ("yes", "no"))])
    assert both[NO_ANSWER][0] == 1


def test_items_of_a_pair_are_right_only_together():
    given = answers()["trained"][:4]
    pairs = ["a", "b", "b", "a"]  # the first and last are right, the others wrong
    found = score_answers(
        {"trained": [replace(each, pair=pair) for each, pair in zip(given, pairs, strict=True)]}
    )
    group = find_group(found.groups, "pairs")
    assert group.num_questions == 2
    assert group.scores["trained"][STRICT].value == 0.5


TEXT = st.text("abc лев左 12.,", max_size=20) | st.sampled_from(["yes", "No mass.", "left lung"])


ROWS = st.tuples(TEXT, TEXT, st.sampled_from(["OPEN", "CLOSED"]))


@given(st.lists(ROWS, min_size=1, max_size=6))
def test_every_measure_is_between_zero_and_one_where_it_is_and_a_number_only_there(rows):
    given_ = [
        answer(number, said, wanted, kind) for number, (said, wanted, kind) in enumerate(rows)
    ]
    found = measure(given_)
    assert list(found) == [each.name for each in MEASURES]
    for each in MEASURES:
        values = found[each.name]
        there = np.array([each.part in ("all", one.answer_type.lower()) for one in given_])
        assert np.isnan(values[~there]).all()
        assert ((values[there] >= 0) & (values[there] <= 1)).all()
    items = [one.items()[0] for one in given_]
    assert found["strict"].tolist() == [strict.score(one) for one in items]
    assert found["legacy"].tolist() == [legacy.score(one) for one in items]


@given(st.text("abcd ", min_size=1, max_size=30).filter(str.strip))
def test_an_open_answer_equal_to_its_reference_has_every_overlap_whole(text):
    found = measure([answer(0, text, text, "OPEN")])
    for name in ("token_recall", "exact_match", "bleu_1", "bleu_2", "bleu_3", "bleu_4"):
        assert found[name][0] == pytest.approx(1), name
    if exact_token.tokens_of(text):
        assert found["token_f1"][0] == found["token_precision"][0] == 1


@pytest.mark.parametrize(
    ("said", "wanted", "precision", "recall", "bleu_1"),
    [
        ("left lung", "left upper lung", 1, 2 / 3, np.exp(1 - 3 / 2)),
        ("the left upper lung zone", "left lung", 0.5, 1, 2 / 5),
        ("lung lung", "lung", 0.5, 1, 0.5),
        ("heart", "lung", 0, 0, 0),
        ("肺炎", "肺炎", 1, 1, 1),
    ],
)
def test_overlap_counts_each_token_as_often_as_both_have_it(
    said, wanted, precision, recall, bleu_1
):
    found = measure([answer(0, said, wanted, "OPEN")])
    assert found["token_precision"][0] == pytest.approx(precision)
    assert found["token_recall"][0] == pytest.approx(recall)
    assert found["bleu_1"][0] == pytest.approx(bleu_1)


def test_every_measure_names_the_rules_that_it_goes_by():
    rules = {each.name: each.rules for each in MEASURES}
    assert (rules["strict"], rules["legacy"]) == (strict.NAME, legacy.NAME)
    assert rules["bleu_1"].startswith("sacrebleu 2.")


def test_what_all_questions_have_alike_makes_no_group():
    alike = [replace(each, language="en", organ="") for each in answers()["trained"]]
    found = score_answers({"trained": alike})
    assert {each.by for each in found.groups} == {"all", "question_type"}
