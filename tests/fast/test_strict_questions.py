"""What a question asks for decides what the strict scorer reads in an answer."""

import pytest

from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.scorers.strict import score, verdict


def check(prediction, question, *, says):
    """An answer is right for what it says, wrong for the opposite, and no answer for None."""
    for reference in ("yes", "no"):
        found = verdict(Item("1", question, prediction, reference, "CLOSED"))
        expected = None if says is None else float(says == reference)
        assert found == expected, (question, prediction, reference)


@pytest.mark.parametrize(
    "question",
    [
        "Are the lungs free of consolidation?",
        "Is the chest without consolidation?",
        "Is consolidation absent?",
        "Is there an absence of consolidation?",
        "Is the film negative for consolidation?",
        "Are the lungs clear of consolidation?",
    ],
)
def test_a_denial_affirms_that_what_was_asked_is_absent(question):
    for prediction in (
        "Yes",
        "No consolidation",
        "No consolidation is seen.",
        "There is no evidence of consolidation.",
        "I see no consolidation",
        "Consolidation is absent",
        "The lungs are free of consolidation.",
        "Yes, there is no consolidation",
        "Correct, no consolidation.",
    ):
        check(prediction, question, says="yes")
    for prediction in (
        "No",
        "No.",
        "There is consolidation.",
        "Consolidation is present.",
        "No, there is a consolidation",
        "The lungs are not free of consolidation",
        "Well, no, there is consolidation.",
    ):
        check(prediction, question, says="no")
    check("No consolidation on the left, but there is some on the right.", question, says=None)


@pytest.mark.parametrize(
    "question",
    [
        "Is it normal?",
        "Is this a normal image?",
        "Does the heart look normal?",
        "Is the brain healthy?",
        "Is the lung field unremarkable?",
        "Are the lungs clear?",
    ],
)
def test_what_has_no_abnormality_is_normal(question):
    for prediction in (
        "No abnormality",
        "No abnormalities are seen.",
        "There is no evidence of abnormality",
        "Nothing abnormal",
        "No pathology",
    ):
        check(prediction, question, says="yes")
    for prediction in ("No", "No, an abnormality is seen", "There are abnormalities."):
        check(prediction, question, says="no")


@pytest.mark.parametrize(
    "question",
    ["Is there an abnormality?", "Are there abnormalities?", "Any abnormality in the lungs?"],
)
def test_what_is_normal_has_no_abnormality(question):
    for prediction in ("Normal", "It is normal.", "Unremarkable", "WNL", "No abnormality"):
        check(prediction, question, says="no")
    for prediction in ("Abnormal", "It is not normal."):
        check(prediction, question, says="yes")


def test_a_comparison_and_contrast_are_no_absence_of_a_finding():
    check("No abnormality is seen.", "Is the heart larger than normal?", says="no")
    check("No contrast was given.", "Was this taken without contrast?", says="yes")


@pytest.mark.parametrize(
    "prediction",
    [
        "MRI or CT, probably MRI",
        "It could be CT or MRI, but most likely MRI.",
        "Either CT or MRI. Likely MRI.",
        "CT/MRI, more likely MRI",
        "CT or MRI; MRI is more likely.",
        "CT or MRI, with MRI favoured",
        "MRI more likely than CT",
        "MRI (less likely CT)",
        "MRI; CT is less likely",
        "Probably MRI, possibly CT",
    ],
)
def test_of_two_alternatives_the_likelier_is_the_answer(prediction):
    for answer_type in ("CLOSED", "OPEN"):
        for reference, expected in (("MRI", 1.0), ("CT", 0.0)):
            item = Item("1", "Which modality is it?", prediction, reference, answer_type)
            assert score(item) == expected


@pytest.mark.parametrize("prediction", ["MRI or CT", "MRI or CT, probably", "CT vs MRI"])
def test_alternatives_without_a_preference_are_no_answer(prediction):
    for reference in ("MRI", "CT"):
        assert score(Item("1", "Which modality is it?", prediction, reference, "CLOSED")) == 0


@pytest.mark.parametrize(
    ("prediction", "side"),
    [
        ("L", "left"),
        ("r", "right"),
        ("(R)", "right"),
        ("On the L", "left"),
        ("R lung", "right"),
        ("L-sided", "left"),
        ("B/L", "bilateral"),
        ("L and R", "bilateral"),
        ("R/L", "bilateral"),
        ("5 mmol/L", None),
        ("R/O pneumonia", None),
        ("L4", None),
    ],
)
def test_a_letter_is_a_side_where_a_side_is_asked(prediction, side):
    for reference in ("left", "right", "bilateral"):
        item = Item("1", "On which side is it?", prediction, reference, "CLOSED")
        assert score(item) == float(reference == side)


def test_a_letter_of_a_reference_is_a_side():
    item = Item("1", "Where is it?", "right frontal lobe", "R frontal lobe", "OPEN")
    assert score(item) == 1


BIGGER = "Which is bigger in this image, kidney or liver?"
SMALLER = "Which is smaller in this image,kidney or spinal cord?"
PLACE = "Where is the spleen in this image, right or lower right?"


@pytest.mark.parametrize(
    ("question", "prediction", "answer"),
    [
        (BIGGER, "The liver is bigger than the kidney.", "Liver"),
        (BIGGER, "The kidney is smaller than the liver", "Liver"),
        (BIGGER, "The liver is larger in size than the kidney", "Liver"),
        (BIGGER, "The kidney is larger.", "Kidney"),
        (BIGGER, "Liver and kidney", None),
        (BIGGER, "They are the same size.", None),
        (SMALLER, "The spinal cord is smaller than the kidney.", "Spinal cord"),
        (SMALLER, "The kidney is bigger than the spinal cord", "Spinal cord"),
        (SMALLER, "Kidney and spinal cord", None),
        (PLACE, "Right", "Right"),
        (PLACE, "It is in the lower right of the image", "Lower Right"),
        (PLACE, "Bottom right", "Lower Right"),
        ("Which lung is bigger, left or right?", "right", "Right Lung"),
        ("Which lung is bigger, left or right?", "the left one is larger", "Left Lung"),
        ("Is it normal or abnormal?", "No abnormality", "normal"),
        ("Is it normal or abnormal?", "There is an abnormality", "abnormal"),
        ("Is the mass regular or irregular?", "not regular", "irregular"),
        ("Are they symmetric or asymmetric?", "Not symmetrical.", "asymmetric"),
        ("Is there a single lesion or multiple?", "one lesion", "single"),
        ("Is there a single lesion or multiple?", "Several", "multiple"),
        ("Is there a single lesion or multiple?", "3", "multiple"),
    ],
)
def test_an_answer_is_one_of_those_that_the_question_offers(question, prediction, answer):
    offered = {
        BIGGER: ["Kidney", "Liver"],
        SMALLER: ["Kidney", "Spinal cord"],
        PLACE: ["Right", "Lower Right"],
        "Which lung is bigger, left or right?": ["Left Lung", "Right Lung"],
        "Is it normal or abnormal?": ["normal", "abnormal"],
        "Is the mass regular or irregular?": ["regular", "irregular"],
        "Are they symmetric or asymmetric?": ["symmetric", "asymmetric"],
    }.get(question, ["single", "multiple"])
    for reference in offered:
        item = Item("1", question, prediction, reference, "CLOSED")
        assert score(item) == float(reference == answer), reference


@pytest.mark.parametrize(
    ("question", "prediction", "says"),
    [
        ("Is the heart enlarged?", "The heart is normal in size.", "no"),
        ("Is the heart enlarged?", "Heart size is within normal limits.", "no"),
        ("Is the heart enlarged?", "The cardiac silhouette is normal.", "no"),
        ("Is the heart enlarged?", "Normal", "no"),
        ("Is the heart enlarged?", "The lungs are normal.", None),
        ("Is the heart enlarged?", "The heart is larger than normal.", None),
        ("Is the heart enlarged?", "The heart is not normal.", None),
        ("Is the heart enlarged?", "There is cardiomegaly.", "yes"),
        ("Is the heart enlarged?", "Cardiomegaly.", "yes"),
        ("Is the heart enlarged?", "The heart size is increased.", "yes"),
        ("Is the heart enlarged?", "No cardiomegaly.", "no"),
        ("Is the heart enlarged?", "Splenomegaly.", None),
        ("Is the aorta dilated?", "The aorta is of normal caliber", "no"),
        ("Is there a mass in the liver?", "The liver appears normal without focal lesions.", "no"),
        ("Is there a mass in the liver?", "The spleen is normal.", None),
        ("Is there a lesion in the right lung?", "The left lung is normal.", None),
        ("Does the patient have a fracture?", "The bones are intact.", "no"),
        ("Where the liver lies, is the heart?", "The liver is normal.", None),
        ("Is there a pneumothorax?", "Right pneumothorax.", "yes"),
        ("Is there a pneumothorax?", "Pneumothorax", None),
        ("Is there a pneumothorax?", "Right pneumothorax?", None),
        ("Is there a pneumothorax?", "A CT would be needed to exclude pneumothorax.", None),
        ("Is there a mass?", "Mass (-)", "no"),
        ("Is the lesion in the left lung?", "right", "no"),
        ("Is the lesion in the left lung?", "Left.", "yes"),
        ("Is the right lung collapsed?", "That is right.", "yes"),
        ("Is this a CT scan?", "This is a chest X-ray.", "no"),
        ("Are there multiple lesions?", "There is only one lesion.", "no"),
        ("Are there multiple lesions?", "There are three lesions", "yes"),
        ("Are there multiple lesions?", "Solitary", "no"),
        ("Are there multiple lesions?", "Multiple", "yes"),
        ("Is the patient male?", "male", "yes"),
        ("Was this taken without contrast?", "non-contrast CT", "yes"),
        ("Was this taken without contrast?", "with contrast", "no"),
        ("Was contrast used?", "with contrast", "yes"),
        ("Was contrast used?", "No contrast was used", "no"),
        ("Is the lung healthy?", "The lung is abnormal.", "no"),
        ("Is the lung healthy?", "unhealthy", "no"),
        ("Is the lung healthy?", "The lung is normal.", "yes"),
        ("Are the ventricles larger than normal?", "The ventricles are normal in size.", "no"),
        ("Are the ventricles larger than normal?", "The ventricles are larger than normal.", "yes"),
    ],
)
def test_a_word_says_what_it_means_for_the_question(question, prediction, says):
    check(prediction, question, says=says)


@pytest.mark.parametrize(
    ("question", "prediction", "says"),
    [
        ("这是正常的图像吗?", "没有异常", "是的"),
        ("这是正常的图像吗?", "未见明显异常。", "是的"),
        ("这是正常的图像吗?", "图像正常", "是的"),
        ("这是正常的图像吗?", "有异常", "不是"),
        ("这是正常的图像吗?", "图像异常", "不是"),
        ("这是正常的图像吗?", "不是正常的", "不是"),
        ("图像有异常吗?", "图像正常", "不是"),
        ("图像有异常吗?", "没有异常", "不是"),
        ("图像有异常吗?", "有异常", "是的"),
        ("图像有肿瘤吗?", "否", "不是"),
    ],
)
def test_the_same_holds_in_chinese(question, prediction, says):
    for reference in ("是的", "不是"):
        item = Item("1", question, prediction, reference, "CLOSED")
        assert score(item) == float(reference == says), reference


def test_planes_and_colours_in_chinese():
    assert score(Item("1", "?", "轴位", "横断面", "CLOSED")) == 1
    assert score(Item("1", "?", "冠状位", "横断面", "CLOSED")) == 0
    assert score(Item("1", "?", "黑色", "白色", "OPEN")) == 0


@pytest.mark.parametrize(
    ("question", "prediction"),
    [
        ("Is the liver larger than the spleen?", "The spleen is larger than the liver."),
        ("Is the mass above the kidney?", "The kidney is above the mass."),
        ("Is the chest normal?", "There is no bony abnormality."),
        ("Is the lung normal?", "The normal lung is compressed."),
        ("Is the heart normal?", "The heart is not enlarged."),
        ("Is the heart normal?", "No mass is seen."),
        ("图中有积液吗?", "是否有积液"),
    ],
)
def test_what_does_not_answer_the_question_is_neither_yes_nor_no(question, prediction):
    check(prediction, question, says=None)


@pytest.mark.parametrize("greeting", ["Sure!", "Certainly.", "Of course,", "Great question!"])
def test_a_greeting_changes_no_answer(greeting):
    question = "Is there emphysema?"
    for word, reference in (("Nope.", "no"), ("True", "yes"), ("Да, есть", "yes")):
        item = Item("1", question, f"{greeting} {word}", reference, "CLOSED")
        assert score(item) == 1


@pytest.mark.parametrize(
    ("question", "prediction", "says"),
    [
        ("Is the heart size normal?", "The heart is not enlarged.", "yes"),
        ("Is the liver normal?", "There is no mass and the liver is normal.", "yes"),
        ("Is this a normal chest film?", "Normal", "yes"),
        ("Is contrast present?", "Intravenous contrast material has been given.", "yes"),
        ("Is there contrast?", "No contrast was given.", "no"),
    ],
)
def test_health_and_contrast_are_read_as_they_are_asked_for(question, prediction, says):
    check(prediction, question, says=says)


def test_a_choice_need_not_repeat_the_noun_of_its_question():
    question = "Which lung is affected?"
    found = [
        score(Item("1", question, side, "right lung", "CLOSED"))
        for side in ("right", "right-sided", "left")
    ]
    assert found == [1, 1, 0]
