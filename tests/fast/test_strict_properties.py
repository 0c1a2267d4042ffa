"""What holds for every answer that the strict scorer reads."""

import json
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.scorers.strict import score
from llavamed.evaluate.scorers.unpack import unpack


def said(prediction, reference, *, question="?", answer_type="CLOSED", options=None):
    return score(Item("1", question, prediction, reference, answer_type, options))


@given(st.text(max_size=80), st.sampled_from(["yes", "no", "left", "2.5 cm", "B", "不包含"]))
def test_any_text_has_a_score_between_zero_and_one(prediction, reference):
    for answer_type in ("OPEN", "CLOSED"):
        for options in (None, {"A": "left", "B": "right"}, ("left", "right")):
            got = said(prediction, reference, answer_type=answer_type, options=options)
            assert 0 <= got <= 1


@pytest.mark.parametrize("file", ["vqa-rad/testset.json", "slake/validate.json"])
def test_every_reference_of_a_benchmark_is_right_as_its_own_answer(reference_data, file):
    rows = json.loads((reference_data / "data" / file).read_text(encoding="utf-8"))
    wrong = [
        row
        for row in rows
        if said(
            answer := str(row["answer"]),
            answer,
            question=row["question"],
            answer_type=row["answer_type"].strip(),
        )
        != 1
    ]
    assert wrong == []


@given(st.text("bdgkmprs ", min_size=1, max_size=20).filter(str.strip))
def test_yes_and_no_are_never_both_right(prediction):
    for word in ("yes", "no", "not", "without"):
        both = [said(f"{word} {prediction}", reference) for reference in ("yes", "no")]
        assert sum(both) <= 1


@given(st.integers(1, 99), st.sampled_from(" \t\u00a0"))
def test_a_run_of_spaces_is_one_space_and_empty_lines_are_one(number, space):
    run = space * number
    assert unpack(f"It{run}is\n{run}\n{run}\nso") == "It is\n\nso"


WORDS = st.text("bdgkmprs ", max_size=30)


@given(st.sampled_from(["yes", "no"]), st.sampled_from(["Reason", "Explanation"]), WORDS)
def test_a_labelled_explanation_changes_no_answer(word, label, words):
    for explained in (f"{word}\n{label}: {words} yes", f"{word}. {label}: {words} no"):
        assert said(explained, word) == 1


@given(st.sampled_from(["left", "right"]), st.sampled_from(["although", "though", "even though"]))
def test_a_concession_changes_no_answer(side, word):
    other = {"left": "right", "right": "left"}[side]
    conceded = f"It is on the {side}, {word} the {other} is possible"
    assert (said(conceded, side), said(conceded, other)) == (1, 0)


@given(st.lists(st.text("bdgkmprs", min_size=2, max_size=8), min_size=3, max_size=5))
def test_an_acronym_of_the_reference_is_the_reference(words):
    acronym, name = "".join(word[0] for word in words).upper(), " ".join(words)
    for pair in ((acronym, name), (name, acronym)):
        assert said(*pair, answer_type="OPEN") == 1
    options = {"A": "heart", "B": name}
    assert said(acronym, "B", options=options) == 1


@given(st.permutations(["CT", "MRI", "ultrasound", "fluoroscopy"]))
def test_what_is_rejected_in_a_list_is_not_chosen(names):
    options = dict(zip("ABCD", ["CT", "MRI", "ultrasound", "fluoroscopy"], strict=True))
    *rejected, last, chosen = names
    answer = f"Not {', '.join(rejected)} or {last}. {chosen}."
    letter = next(letter for letter, name in options.items() if name == chosen)
    assert said(answer, letter, options=options) == 1


FINDINGS = st.sampled_from(
    ["fracture", "pleural effusion", "mass", "midline shift", "rib lesion", "dilated loop"]
)
STATED = st.sampled_from(
    ["There is a {}.", "I see a {}.", "The image shows a {}.", "A {} is present.", "A {} is seen."]
)


@given(FINDINGS, FINDINGS, STATED)
def test_a_finding_is_affirmed_in_its_own_words_and_by_no_other(asked, found, sentence):
    question = f"Is there a {asked}?"
    stated, denied = sentence.format(found), f"There is no {found}."
    is_asked = asked == found
    assert said(stated, "yes", question=question) == is_asked
    assert said(denied, "no", question=question) == is_asked
    assert said(stated, "no", question=question) == said(denied, "yes", question=question) == 0
    both = f"There is a {asked}, but no {found}."
    assert said(both, "yes", question=question) == (not is_asked)


@pytest.mark.parametrize(
    ("unit", "options"),
    [
        ("word ", None),
        ("I cannot determine that. However, ", None),
        ("```", None),
        ("( ", {"A": "left lung", "B": "heart"}),
        ("not A, B or C. ", {"A": "left lung", "B": "heart"}),
    ],
)
def test_a_long_answer_takes_time_in_proportion(unit, options):
    started = process_time()
    said(unit * (40_000 // len(unit)), "B" if options else "yes", options=options)
    assert process_time() - started < 3  # brackets and letters took over 20


def test_a_conclusion_is_read_whatever_stands_before_it():
    waverings = "Wait, the lungs look normal. So it may be clear. " * 500
    question = "Is there an effusion?"
    assert said(f"{waverings} Final answer: yes", "yes", question=question) == 1
    assert said(f"Final answer: yes. {waverings}", "yes", question=question) == 0


def test_an_answer_in_endless_brackets_is_scored():
    assert said('{"answer": ' + "[" * 20_000 + "}", "yes") == 0


PLAIN = [
    row
    for row in map(
        json.loads,
        (Path(__file__).parents[1] / "support" / "strict_items.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()[::40],
    )
    if not set(row["prediction"]) & set('<>{}[]`*"\\\n')
]


@pytest.mark.parametrize(
    "packaging",
    [
        *(
            "```\n{}\n```",
            "```text\n{}\n```",
            "```{}```",
            "`{}`",
            "**{}**",
            "__{}__",
            "# {}",
            "- {}",
        ),
        *(
            r"\boxed{{{}}}",
            r"$\boxed{{\text{{{}}}}}$",
            r"\textbf{{{}}}",
            '"{}"',
            "“{}”",
            "\u200b{}",
        ),
        *(
            "<answer>{}</answer>",
            "<p>{}</p>",
            "<think>Yes? No, A or B.</think>\n{}",
            "Assistant: {}",
        ),
        *('{{"answer": "{}"}}', "Answer: {}", "**Answer:** {}", "{}</s>", "{}\n\nHuman: And now?"),
    ],
)
def test_no_packaging_changes_an_answer(packaging):
    for row in PLAIN:
        options = row["options"]
        given = {
            "question": row["question"],
            "answer_type": row["answer_type"],
            "options": tuple(options) if isinstance(options, list) else options,
        }
        packed = packaging.format(row["prediction"])
        bare = said(row["prediction"], row["reference"], **given)
        assert said(packed, row["reference"], **given) == bare, packed
