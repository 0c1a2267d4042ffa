"""The scorers of other people's tables give those people's numbers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.errors import ConfigError
from llavamed.evaluate.scorers import legacy
from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.scorers.predictions import SCORERS, find_scorer

OPTIONS = {"A": "Pneumothorax", "B": "Pleural effusion"}


def item(prediction, reference, answer_type="CLOSED", options=None):
    return Item("1", "?", prediction, reference, answer_type, options)


@pytest.fixture(scope="module")
def golden(reference_data):
    return json.loads((reference_data / "golden/metrics/vqa_metrics.json").read_text())


def test_legacy_gives_the_reference_scripts_numbers_of_each_item(golden):
    for row in golden["items"]:
        found = legacy.measure(item(row["prediction"], row["answer"], row["answer_type"]))
        assert legacy.normalize(row["answer"]) == row["answer_normalized"]
        assert legacy.normalize(row["prediction"]) == row["prediction_normalized"]
        assert found.exact_match == pytest.approx(row["exact_match"], abs=1e-12)
        three = (found.f1, found.precision, found.recall)
        assert three == pytest.approx(row["f1_precision_recall"], abs=1e-12)
        assert found.closed_substring == row["closed_substring"]
        assert found.closed_run_eval == row["closed_run_eval"]


def test_legacy_gives_the_reference_scripts_averages(golden):
    items = [item(row["prediction"], row["answer"], row["answer_type"]) for row in golden["items"]]
    found = legacy.aggregate(items, golden["candidates"])
    for script, expected in golden["aggregate"].items():
        assert found[script] == pytest.approx(expected, abs=1e-12)


def test_legacy_keeps_the_known_faults():
    assert legacy.score(item("normal", "no")) == 1
    assert legacy.measure(item("lung lung lung", "lung", "OPEN")).precision == 1
    without = legacy.aggregate([])
    assert "open accuracy" not in without["run_eval"]
    assert legacy.aggregate([], ["lung"])["run_eval"] == without["run_eval"] | {"open accuracy": 0}


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("It is an X ray", "X-ray", 1),
        ("no", "No.", 1),
        ("two kidneys", "2", 1),
        ("liver, and spleen", "liver and spleen", 1),
        ("2.5cm", "2.5 cm", 0),
        ("none", "no", 0),
        ("B", "A", 1),
    ],
)
def test_legacy_looks_for_the_normalized_reference_in_the_normalized_answer(
    prediction, reference, right
):
    assert legacy.score(item(prediction, reference)) == right


def test_legacy_takes_the_candidate_that_has_the_greatest_share_of_its_words_in_the_answer():
    words = {each: frozenset(each.split()) for each in ("left upper lobe mass", "lobe", "mass")}
    assert legacy.nearest_candidate("a mass of the left lobe", words) == "lobe"
    assert legacy.nearest_candidate("heart", words) == "left upper lobe mass"


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("I'm sure it couldnt've shed", "i'm sure it couldn't've shed"),
        ("im", "im"),
        ("somebody'd", "somebodyd"),
        ("y'allll thats whys", "y'all'll that's why's"),
    ],
)
def test_legacy_knows_the_contractions_of_the_scripts(text, normalized):
    assert legacy.normalize(text) == normalized


@pytest.mark.parametrize(
    ("scorer", "prediction", "reference", "options", "expected"),
    [
        ("vlmevalkit", "Yes, there is", "yes", None, 1),
        ("vlmevalkit", "There is no doubt: yes", "yes", None, 0),
        ("vlmevalkit", "The aorta looks normal", "no", None, 0),
        ("vlmevalkit", "The answer is B.", "B", OPTIONS, 1),
        ("vlmevalkit", "It is a pleural effusion", "B", OPTIONS, 1),
        ("vlmevalkit", "A or B", "A", OPTIONS, 0),
        ("vlmevalkit", "left lung", "left", None, 0),
        ("vlmevalkit", "**yes**", "yes", None, 0),
        ("vlmevalkit", "yes!", "yes", None, 1),
        ("vlmevalkit", "'B'", "B", OPTIONS, 0),
        ("vlmevalkit", "B is what I see here", "B", OPTIONS, 0),
        ("vlmevalkit", "I see that B is right", "B", OPTIONS, 1),
        ("vlmevalkit", "The answer is **B** for the angle on the left is blunted", "B", OPTIONS, 1),
        ("vlmevalkit", f"Pleural effusion,{' as I said' * 6}", "B", OPTIONS, 0),  # too long
        ("vlmevalkit", "Cannot determine the answer, pleural effusion?", "B", OPTIONS, 0),
        ("vlmevalkit", "Z pleural effusion", "B", OPTIONS, 0),
        ("lmms-eval", "Yes.", "yes", None, 1),
        ("lmms-eval", "Yes, there is", "yes", None, 0),
        ("lmms-eval", "正常", "yes", None, 1),
        ("lmms-eval", "Nope!", "no", None, 1),
        ("lmms-eval", "y", "yes", None, 0),
        ("lmms-eval", "不存在", "no", None, 0),
        ("lmms-eval", "不能。", "没有", None, 1),
        ("lmms-eval", "X-Ray", "xray", None, 1),
        ("lmms-eval", "liver [right lobe]", "liver", None, 0),
        ("lmms-eval", "right_lobe", "right lobe", None, 1),
        ("lmms-eval", "Liver (right lobe)", "liver", None, 1),
        ("medevalkit", "<answer>\nLeft\n</answer>", "left", None, 1),
        ("medevalkit", "left \n", "left", None, 1),
        ("medevalkit", "lung", "B", {"A": "Lung", "B": "lung"}, 1),
        ("medevalkit", "The diagnosis is an abnormality", "no", None, 1),
        ("medevalkit", "yes and no", "yes", None, 0),
        ("medevalkit", "b", "B", OPTIONS, 1),
        ("medevalkit", "(b)", "B", OPTIONS, 0),  # like no option, so it is the first one's
        ("medevalkit", "(b)", "A", OPTIONS, 1),
        ("medevalkit", "B. Pleural effusion", "B", OPTIONS, 1),
        ("medevalkit", "Option:B", "B", OPTIONS, 1),
        ("medevalkit", "b\n\nPneumothorax would show a line.", "B", OPTIONS, 1),
        ("medevalkit", "A line is absent.\n\nB. An effusion.", "B", OPTIONS, 1),
        ("medevalkit", "The final answer is B.", "B", OPTIONS, 1),
        ("medevalkit", "so \\boxed{B}", "B", OPTIONS, 1),
        ("medevalkit", "<think>pneumothorax</think><answer>B</answer>", "B", OPTIONS, 1),
        ("medevalkit", "It is normal. The answer is yes", "yes", None, 1),
        ("medevalkit", "\\boxed{yes}, not no", "yes", None, 1),
        ("medevalkit", "Answer: left", "left", None, 0),  # " left" is another text
        ("medevalkit", "left", "Left", None, 1),
        ("medevalkit", "pleural fluid", "B", OPTIONS, 1),
        ("exact-token", "There is no abnormality", "no", None, 1),
    ],
)
def test_the_rules_of_other_kits(scorer, prediction, reference, options, expected):
    assert find_scorer(scorer)(item(prediction, reference, options=options)) == expected


@given(
    st.sampled_from(sorted(SCORERS)),
    st.text(max_size=40),
    st.text(min_size=1, max_size=20),
    st.sampled_from(["OPEN", "CLOSED"]),
    st.sampled_from([None, OPTIONS, ("left", "right")]),
)
def test_every_scorer_gives_every_text_a_share(scorer, prediction, reference, kind, options):
    assert 0 <= find_scorer(scorer)(item(prediction, reference, kind, options)) <= 1


def test_an_unknown_scorer_is_refused():
    with pytest.raises(ConfigError, match=r"scorer=stric: is not a scorer; use one of strict, leg"):
        find_scorer("stric")
