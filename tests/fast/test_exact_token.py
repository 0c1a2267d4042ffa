import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llavamed.evaluate.scorers.exact_token import is_closed_correct, open_recall, tokens_of

TEXTS = st.text(max_size=60)
# Letters that spell no article and no number, so that a word is one token wherever it stands.
WORDS = st.text("bdgkmprs", min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        pytest.param("The Left  lung.", ["left", "lung"], id="case, space, article, full stop"),
        pytest.param("\uff34\uff12 \ufb01bres", ["t2", "fibres"], id="full-width and ligature"),
        pytest.param("Crohn's, Crohn\u2019s", ["crohns", "crohns"], id="apostrophes"),
        pytest.param("2.5 cm, 1,000 cells.", ["2.5", "cm", "1000", "cells"], id="numbers"),
        pytest.param("1,2 and 3", ["1", "2", "and", "3"], id="comma of a list"),
        pytest.param("lobe.Two", ["lobe", "2"], id="a point between words separates"),
        pytest.param("T2-weighted left_side/both", ["t2", "weighted", "left", "side", "both"]),
        pytest.param("None, zero, one, Ten", ["0", "0", "1", "10"], id="number words"),
        pytest.param("an A", ["a"], id="a last article is a letter"),
        pytest.param("hepatitis A", ["hepatitis", "a"], id="so that hepatitis A is not B"),
        pytest.param("?!", [], id="signs only"),
    ],
)
def test_tokens(text, tokens):
    assert tokens_of(text) == tokens


@pytest.mark.parametrize(
    ("prediction", "reference", "correct"),
    [
        ("No", "no", True),
        ("no.", "No", True),
        ("normal", "no", False),
        ("The lungs look abnormal", "no", False),
        ("I do not know", "no", False),
        ("Yes, the diagnosis is consistent", "no", False),
        ("Yes, the diagnosis is consistent", "yes", True),
        ("Yes, there is no effusion", "yes", True),
        ("Yes, there is no effusion", "no", False),
        ("There is no abnormality", "no", True),
        ("No, but yes on the left", "no", True),
        ("yesterday", "yes", False),
        ("Eyes", "yes", False),
        ("", "no", False),
        ("It is on the left side", "left", True),
        ("No, it is on the left", "left", True),
        ("It is not left", "left", False),
        ("not left, left-sided it is", "left", True),
        ("CT without contrast", "contrast", False),
        ("non-contrast CT", "contrast", False),
        ("non-contrast CT", "non-contrast", True),
        ("cleft", "left", False),
        ("T2 weighted image", "T2-weighted", True),
        ("weighted T2", "T2-weighted", False),
        ("left lower and upper lobe", "left upper lobe", False),
        ("no mass", "no mass", True),
        ("3 lesions", "three", True),
        ("hepatitis B", "hepatitis A", False),
        ("2.5 cm", "5 cm", False),
        ("left", "?", False),
    ],
)
def test_closed_answers(prediction, reference, correct):
    assert is_closed_correct(prediction, reference) is correct


@given(TEXTS)
def test_a_text_answers_itself(text):
    assert is_closed_correct(text, text)
    assert open_recall(text, text) == 1


@given(WORDS, WORDS, WORDS)
def test_a_substring_never_counts(before, word, after):
    for longer in (before + word, word + after, before + word + after):
        assert not is_closed_correct(f"it is {longer} here", word)
        assert open_recall(longer, word) == 0


@given(st.lists(WORDS), st.sampled_from(["no", "yes"]), WORDS, WORDS)
def test_a_yes_or_no_inside_words_never_counts(words, reference, before, after):
    said = " ".join([*words, before + reference + after])
    assert not is_closed_correct(said, reference)


@given(st.lists(WORDS), st.sampled_from(["yes", "no"]), TEXTS)
def test_the_first_yes_or_no_decides(words, first, rest):
    said = " ".join([*words, first, rest])
    assert is_closed_correct(said, first)
    assert not is_closed_correct(said, "no" if first == "yes" else "yes")


@given(st.lists(WORDS), st.lists(WORDS, min_size=1), st.lists(WORDS))
def test_a_run_of_the_reference_counts_anywhere(before, reference, after):
    assert is_closed_correct(" ".join([*before, *reference, *after]), " ".join(reference))


@given(TEXTS, TEXTS)
def test_recall_is_a_share(prediction, reference):
    assert 0 <= open_recall(prediction, reference) <= 1


@given(st.lists(WORDS), st.lists(WORDS), st.randoms())
def test_recall_knows_no_order(prediction, reference, random):
    expected = open_recall(" ".join(prediction), " ".join(reference))
    random.shuffle(prediction)
    random.shuffle(reference)
    assert open_recall(" ".join(prediction), " ".join(reference)) == expected


@given(WORDS, st.lists(WORDS, min_size=1), st.integers(1, 9))
def test_repetition_gains_nothing(word, reference, times):
    assume(reference.count(word) <= 1)
    text = " ".join(reference)
    assert open_recall(" ".join([word] * times), text) == open_recall(word, text)


@pytest.mark.parametrize(
    ("prediction", "reference", "recall"),
    [
        ("a right-sided pleural effusion", "pleural effusion", 1),
        ("MRI", "T2-weighted MRI", 1 / 3),
        ("cell cell cell", "cell to cell", 2 / 3),
        ("cell", "cell to cell", 1 / 3),
        ("abnormal", "normal", 0),
        ("", "mass", 0),
        ("mass", "+", 0),
        ("", "+", 1),
    ],
)
def test_open_recall(prediction, reference, recall):
    assert open_recall(prediction, reference) == pytest.approx(recall)
