"""The strict scorer reads which lettered option an answer chooses."""

import pytest

from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.scorers.strict import score

DISEASES = {"A": "Pneumothorax", "B": "Pleural effusion", "C": "Pneumonia", "D": "Normal study"}
MODALITIES = {"A": "CT", "B": "MRI", "C": "Ultrasound", "D": "X-ray"}
KINDS = {
    "A": "Type A",
    "B": "Vitamin D deficiency",
    "C": "Hepatitis C",
    "D": "A and B",
    "I": "None",
}


def said(prediction, reference, *, options, question="?"):
    return score(Item("1", question, prediction, reference, "CLOSED", options))


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("[B]", "B"),
        ("**B**", "B"),
        ("B) Pleural effusion", "B"),
        ("B. Pleural effusion", "B"),
        ("b) pleural effusion", "B"),
        ("B - Pleural effusion", "B"),
        ("Option B", "B"),
        ("option b.", "B"),
        ("Answer: B", "B"),
        ("The answer is B.", "B"),
        ("The correct option is (B).", "B"),
        ("I choose B", "B"),
        ("I would go with B", "B"),
        ("B is correct.", "B"),
        ("B is the best answer because A is unlikely", "B"),
        ("It's B", "B"),
        ("Pleural effusion", "B"),
        ("pleural effusions", "B"),
        ("The image shows a pleural effusion.", "B"),
        ("A pleural effusion", "B"),
        ("A large pleural effusion", "B"),
        ("There is a pneumonia", "C"),
        ("A pneumonia is seen", "C"),
        ("I think it is a pneumonia", "C"),
        ("Not A but B", "B"),
        ("Not pneumonia but pleural effusion", "B"),
        ("Pleural effusion rather than pneumonia", "B"),
        ("It isn't C, it's B", "B"),
        ("A is less likely, so B", "B"),
        ("A is incorrect. C is incorrect. D is wrong. B", "B"),
        ("First I thought A. Wait, B.", "B"),
        ("<think>A or C?</think>B", "B"),
        ("\\boxed{B}", "B"),
        ('{"answer": "B"}', "B"),
        ("Probably B", "B"),
        ("答案是B", "B"),
        ("选B", "B"),
        ("Options are A, B, C and D. The answer is B", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("Answer A", "A"),
        ("D: Normal study", "D"),
        ("normal study", "D"),
    ],
)
def test_letters(prediction, letter):
    for reference in DISEASES:
        expected = float(reference == letter)
        assert said(prediction, reference, options=DISEASES) == expected, reference
        assert said(prediction, DISEASES[reference], options=DISEASES) == expected, reference


@pytest.mark.parametrize(
    "prediction",
    [
        "",
        "A or B",
        "A, B",
        "A and B",
        "Both A and B",
        "A/B",
        "Pneumonia or pleural effusion",
        "B: Pneumonia",
        "E",
        "F) Fracture",
        "I cannot tell",
        "Not B",
        "None of the above",
        "All of the above",
        "possibly B",
        "It could be B",
        "A chest film of an adult",
        "I see a chest film",
        "Influenza B",
    ],
)
def test_no_choice_among_letters(prediction):
    for reference in DISEASES:
        assert said(prediction, reference, options=DISEASES) == 0, reference


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("A CT scan", "A"),
        ("This is a CT", "A"),
        ("computed tomography", "A"),
        ("This is a magnetic resonance image", "B"),
        ("MR imaging", "B"),
        ("Sonography", "C"),
        ("a radiograph", "D"),
        ("An x ray", "D"),
        ("chest radiograph", "D"),
    ],
)
def test_names_of_an_option(prediction, letter):
    for reference in MODALITIES:
        assert said(prediction, reference, options=MODALITIES) == float(reference == letter)


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("Type A", "A"),
        ("vitamin D deficiency", "B"),
        ("Hepatitis C", "C"),
        ("A and B", "D"),
        ("D", "D"),
        ("I", "I"),
        ("I think it is hepatitis C", "C"),
    ],
)
def test_letters_inside_options(prediction, letter):
    for reference in KINDS:
        assert said(prediction, reference, options=KINDS) == float(reference == letter), reference


@pytest.mark.parametrize(
    "prediction",
    [
        "(B). Ruled out: A, C, D",
        "Eliminated: A, C, D. Remaining: B",
        "Incorrect options: A, C and D.\nCorrect: B",
    ],
)
def test_letters_in_a_list_of_rejected_ones_are_not_chosen(prediction):
    options = {"A": "Pneumonia", "B": "Effusion", "C": "Fracture", "D": "Tumor"}
    for letter in options:
        found = said(prediction, letter, question="Which is shown?", options=options)
        assert found == float(letter == "B")


@pytest.mark.parametrize("prediction", ["B", "D", "Spleen", "The spleen.", "D: spleen"])
@pytest.mark.parametrize("reference", ["B", "D", "spleen"])
def test_options_of_one_text_are_one_option(prediction, reference):
    """MedQA repeats an option to have five."""
    options = {"A": "Liver", "B": "Spleen", "C": "Kidney", "D": "Spleen"}
    for each, expected in ((prediction, 1), ("C", 0), ("Spleen or liver", 0)):
        assert said(each, reference, question="Which organ?", options=options) == expected


@pytest.mark.parametrize(
    ("question", "prediction", "letter"),
    [
        ("Is there a fracture?", "There is a fracture.", "A"),
        ("Is there a fracture?", "I cannot see a fracture", "B"),
        ("Is the lung abnormal?", "Normal", "B"),
        ("Is the lung normal?", "No abnormality", "A"),
        ("Is there a fracture?", "B. There is a fracture", "B"),
        ("Is there a fracture?", "Cannot tell", "C"),
        ("Is there a fracture?", "A tumor is seen.", None),
    ],
)
def test_a_sentence_chooses_between_the_options_yes_and_no(question, prediction, letter):
    options = {"A": "Yes", "B": "No", "C": "Cannot tell"}
    for each in options:
        found = said(prediction, each, question=question, options=options)
        assert found == float(each == letter)


def test_an_initial_is_a_side_among_options():
    for letter, initial in (("A", "L"), ("B", "R")):
        options = {"A": "Left", "B": "Right"}
        assert said(initial, letter, question="Which side?", options=options) == 1


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        *(("I must conclude C.", "C"), ("I should pick C", "C"), ("It's C, I would say", "C")),
        *(("C. I excluded D", "C"), ("I was unsure, so C", "C"), ("The answer is I.", "I")),
        *(("I. None of them", "I"), ("Option I is right", "I"), ("option c is correct", "C")),
        ("Option c fits best", "C"),
    ],
)
def test_the_pronoun_is_no_letter_and_a_named_option_may_be_small(prediction, letter):
    options = dict(
        zip(
            "ABCDEFGHI",
            ["mass", "cyst", "clot", "node", "ulcer", "scar", "burn", "wart", "none"],
            strict=True,
        )
    )
    for each in "CI":
        assert said(prediction, each, options=options) == (each == letter)


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [("There is one", "A"), ("One.", "A"), ("There are none", "B"), ("none", "B"), ("two", "C")],
)
def test_numbers_in_words_choose_options_that_are_numbers(prediction, letter):
    options = {"A": "1", "B": "0", "C": "2"}
    for each in options:
        assert said(prediction, each, options=options) == (each == letter)
