"""The strict scorer reads answers as a careful person would, as far as rules can tell."""

import json
from pathlib import Path

import pytest

from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.scorers.strict import score


def said(prediction, reference, *, question="?", answer_type="CLOSED", options=None):
    return score(Item("1", question, prediction, reference, answer_type, options))


@pytest.mark.parametrize(
    ("prediction", "yes_or_no"),
    [
        ("Yes", "yes"),
        ("YES!!", "yes"),
        ("**Yes**", "yes"),
        ("yes, clearly", "yes"),
        ("Yep", "yes"),
        ("Correct.", "yes"),
        ("True", "yes"),
        ("Indeed, it is.", "yes"),
        ("Affirmative.", "yes"),
        ("Y", "yes"),
        ("N", "no"),
        ("Absolutely.", "yes"),
        ("Absolutely not.", "no"),
        ("Definitely not", "no"),
        ("Certainly not.", "no"),
        ("Of course not", "no"),
        ("Not really", "no"),
        ("Not at all.", "no"),
        ("Probably yes", "yes"),
        ("Probably not.", "no"),
        ("Most likely not", "no"),
        ("Likely yes", "yes"),
        ("I think so, yes", "yes"),
        ("I believe the answer is no.", "no"),
        ("The answer is yes because the heart is not small", "yes"),
        ("Answer: No", "no"),
        ("A: yes", "yes"),
        ("Based on the image, no.", "no"),
        ("In this image, yes, there is.", "yes"),
        ("Yes, but it is not large.", "yes"),
        ("No, although it may be seen elsewhere", "no"),
        ("No abnormality is seen", "no"),
        ("There is no pleural effusion in this image.", "no"),
        ("There isn't any effusion", "no"),
        ("There isn\u2019t any effusion", "no"),
        ("I do not see an effusion", "no"),
        ("I don't see any effusion.", "no"),
        ("The effusion is not visible.", "no"),
        ("Not seen.", "no"),
        ("Not present", "no"),
        ("Absent", "no"),
        ("It is absent.", "no"),
        ("Present", "yes"),
        ("It is present.", "yes"),
        ("An effusion is present.", "yes"),
        ("Negative", "no"),
        ("Negative for effusion.", "no"),
        ("Positive for effusion", "yes"),
        ("None seen", "no"),
        ("None.", "no"),
        ("Free of effusion.", "no"),
        ("No imaging evidence of effusion.", "no"),
        ("There are no imaging signs of an effusion", "no"),
        ("Without effusion", "no"),
        ("Effusion has been ruled out.", "no"),
        ("Effusion is ruled out", "no"),
        ("The image lacks any effusion", "no"),
        ("There is no doubt that an effusion is there.", "yes"),
        ("No doubt, yes", "yes"),
        ("Without a doubt.", "yes"),
        ("Not only is there an effusion, it is present on both sides: yes", "yes"),
        ("No. Wait, yes.", "yes"),
        ("Yes - sorry, no.", "no"),
        ("Yes... actually, no.", "no"),
        ("I first thought yes. Final answer: no", "no"),
        ("Initially no effusion was suspected; the answer is yes", "yes"),
        ("<think>It could be no. The angle is blunted, so no... hmm</think> Yes", "yes"),
        ("no</think>yes", "yes"),
        ('{"answer": "No"}', "no"),
        ('```json\n{"answer": "yes", "confidence": 0.9}\n```', "yes"),
        ('{"answer": true}', "yes"),
        ("\\boxed{No}", "no"),
        ("$\\boxed{\\text{yes}}$", "yes"),
        ("<answer> yes </answer>", "yes"),
        ("Is there an effusion? Yes", "yes"),
        ("Question: Is there an effusion? Answer: no", "no"),
        ("ASSISTANT: Yes", "yes"),
        ("Yes\n### Human: Is there a mass?", "yes"),
        ("Yes\nUser: is it large?\nAssistant: No", "yes"),
        ("Oui", "yes"),
        ("Non, pas d'épanchement", "no"),
        ("Sí", "yes"),
        ("Ja, ein Erguss", "yes"),
        ("Nein.", "no"),
        ("Es ist kein Erguss zu sehen", "no"),
        ("Да", "yes"),
        ("Нет", "no"),
        ("是的", "yes"),
        ("是", "yes"),
        ("不是", "no"),
        ("没有", "no"),
        ("否", "no"),
        ("有", "yes"),
        ("图中没有胸腔积液", "no"),
        ("存在胸腔积液", "yes"),
        ("未见胸腔积液", "no"),
    ],
)
def test_yes_and_no(prediction, yes_or_no):
    question = "Is there an effusion?"
    other = "no" if yes_or_no == "yes" else "yes"
    assert said(prediction, yes_or_no, question=question) == 1
    assert said(prediction, other, question=question) == 0


@pytest.mark.parametrize(
    "prediction",
    [
        "",
        "   ",
        "yes and no",
        "Yes/No",
        "yes or no",
        "No, yes",
        "Yes. No.",
        "Maybe",
        "Maybe yes",
        "Possibly.",
        "Perhaps there is",
        "It could be",
        "There might be an effusion",
        "There may be an effusion",
        "I cannot tell",
        "I can't determine that from this image.",
        "Cannot be ruled out",
        "An effusion cannot be excluded.",
        "It is unclear",
        "Not sure",
        "I'm not sure.",
        "I do not know.",
        "No idea",
        "Unable to determine",
        "As an AI model I cannot diagnose.",
        "It is difficult to say",
        "I'm sorry, but I can't help with that.",
        "The lungs look abnormal",
        "The diagnosis is known",
        "Normal",
        "The costophrenic angle is blunted.",
        "Eyesight",
        "no way to know",
        "The final answer cannot be determined",
        "There is no mass. Final answer: unclear",
        "可能有",
        "无法确定",
        "是否有积液",
    ],
)
def test_what_decides_nothing_is_no_answer(prediction):
    assert said(prediction, "yes", question="Is there an effusion?") == 0
    assert said(prediction, "no", question="Is there an effusion?") == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("left", "left", 1),
        ("Left.", "left", 1),
        ("left-sided", "left", 1),
        ("The left lung", "left", 1),
        ("On the left side of the chest", "left", 1),
        ("right", "left", 0),
        ("left and right", "left", 0),
        ("both", "left", 0),
        ("bilateral", "both", 1),
        ("both sides", "bilateral", 1),
        ("left", "both", 0),
        ("It isn't on the left", "left", 0),
        ("It is not on the right, it is on the left", "left", 1),
        ("It is not on the right but on the left", "left", 1),
        ("Left, not right.", "left", 1),
        ("left instead of right", "left", 1),
        ("neither left nor right", "left", 0),
        ("No, it is on the left", "left", 1),
        ("the right side... wait, the left", "left", 1),
        ("cleft", "left", 0),
        ("possibly left", "left", 0),
        ("probably left", "left", 1),
        ("axial", "axial", 1),
        ("Transverse plane", "axial", 1),
        ("axial or coronal", "axial", 0),
        ("coronal", "axial", 0),
        ("MRI", "mri", 1),
        ("magnetic resonance imaging", "MRI", 1),
        ("This is an MR image of the brain", "mri", 1),
        ("CT scan", "CT", 1),
        ("computed tomography", "ct", 1),
        ("PET-CT", "CT", 0),
        ("CXR", "x-ray", 1),
        ("X ray", "x-ray", 1),
        ("x-rays", "xray", 1),
        ("T1", "t2", 0),
        ("T2W", "T2-weighted", 1),
        ("T2 weighted MRI", "T2", 1),
        ("PA", "PA", 1),
        ("posteroanterior", "PA", 1),
        ("AP view", "PA", 0),
        ("with contrast", "with contrast", 1),
        ("contrast-enhanced CT", "with contrast", 1),
        ("without contrast", "with contrast", 0),
        ("non-contrast", "without contrast", 1),
        ("3", "three", 1),
        ("three lesions", "3", 1),
        ("13", "3", 0),
        ("two lesions, the largest 3 cm", "2", 1),
        ("2 or 3", "2", 0),
        ("Grade II", "grade 2", 1),
        ("abnormal", "normal", 0),
        ("normal", "abnormal", 0),
        ("not normal", "normal", 0),
        ("liver", "Liver", 1),
        ("the liver and the spleen", "liver", 0),
        ("kidneys", "kidney", 1),
        ("male", "female", 0),
        ("", "left", 0),
        ("I cannot tell whether it is left", "left", 0),
        ("左侧", "左", 1),
        ("右侧", "左", 0),
        ("不是左侧", "左", 0),
        ('{"answer": "left"}', "left", 1),
        ("Final answer: left", "left", 1),
    ],
)
def test_other_closed_answers(prediction, reference, right):
    assert said(prediction, reference) == right


@pytest.mark.parametrize(
    ("prediction", "reference", "lowest", "highest"),
    [
        ("right lower lobe", "Right lower lobe", 1, 1),
        ("The mass is in the right lower lobe of the lung.", "right lower lobe", 1, 1),
        ("lower lobe of the right lung", "right lower lobe", 1, 1),
        ("left lower lobe", "right lower lobe", 0, 0),
        ("right upper lobe", "right lower lobe", 0, 0),
        ("left, right, upper, lower lobe", "left upper lobe", 0, 0),
        ("no pneumothorax", "pneumothorax", 0, 0),
        ("without pneumothorax", "pneumothorax", 0, 0),
        ("pneumothorax", "no pneumothorax", 0, 0),
        ("pneumothorax is not seen", "pneumothorax", 0, 0),
        ("pleural effusion", "pleural effusion and atelectasis", 0.4, 0.6),
        ("atelectasis", "pleural effusion, atelectasis", 0.4, 0.6),
        ("atelectasis and pleural effusion", "pleural effusion and atelectasis", 1, 1),
        ("25 mm", "2.5 cm", 1, 1),
        ("2,5 cm", "2.5 cm", 1, 1),
        ("2.6 cm", "2.5 cm", 1, 1),
        ("2.5 mm", "2.5 cm", 0, 0),
        ("about 3 cm", "2.5 cm", 0, 0),
        ("hemorrhage", "haemorrhage", 1, 1),
        ("oedema", "edema", 1, 1),
        ("tumour", "tumor", 1, 1),
        ("fractures", "fracture", 1, 1),
        ("lung abscess", "lung cancer", 0, 0),
        ("", "edema", 0, 0),
        ("I cannot tell", "edema", 0, 0),
        ("computed tomography", "CT", 1, 1),
        ("chest x-ray", "Chest radiograph", 1, 1),
        ("kidney, liver, spleen, heart or stomach", "liver", 0, 0),
        ("<think>liver?</think>The spleen", "spleen", 1, 1),
        ("大脑", "脑", 1, 1),
        ("右肺", "左肺", 0, 0),
    ],
)
def test_open_answers(prediction, reference, lowest, highest):
    assert lowest <= said(prediction, reference, answer_type="OPEN") <= highest


def test_the_reference_and_not_the_answer_type_makes_a_question_yes_or_no():
    assert said("There is no effusion", "no", answer_type="OPEN") == 1
    assert said("Yes.", "No, it is normal", answer_type="OPEN") == 0
    assert said("No.", "No, it is normal", answer_type="OPEN") == 1


def said_by(item):
    """Score an item of a file, where options are a list or a mapping."""
    options = item["options"]
    return said(
        item["prediction"],
        item["reference"],
        question=item["question"],
        answer_type=item["answer_type"],
        options=tuple(options) if isinstance(options, list) else options,
    )


def test_it_agrees_with_a_careful_reader(reference_data):
    found = json.loads((reference_data / "golden/metrics/strict_items.json").read_text())["items"]
    decided = [item for item in found if item["reach"] == "rule"]
    assert len(decided) == 50
    for item in decided:
        assert abs(said_by(item) - item["verdict"]) <= 0.25, item


READ_BY_HAND = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "support" / "strict_items.jsonl").open(
        encoding="utf-8"
    )
]


def test_it_agrees_with_items_read_by_hand():
    wrong = []
    for item in READ_BY_HAND:
        if abs((got := said_by(item)) - item["verdict"]) > 0.25:
            wrong.append((got, item))
    assert wrong == []


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        *((each, 1) for each in ("not seen", "They are not seen.", "The kidneys are not seen.")),
        *((each, 0) for each in ("", ".", "the", "banana", "on the left", "no tumor seen")),
    ],
)
def test_a_reference_of_no_content_is_met_by_its_denial_alone(prediction, score):
    question = "Where are the kidneys?"
    assert said(prediction, "Not seen here", question=question, answer_type="OPEN") == score


@pytest.mark.parametrize("reference", ["here", ".", "Not seen here", "both", "a mass", "none"])
def test_an_empty_answer_is_never_right(reference):
    assert said("", reference, answer_type="OPEN") == 0
