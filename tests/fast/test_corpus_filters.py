"""The rules find what a model should not have written, and leave alone what it should."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.corpus.dialogues.choose import choose, share_out
from llavamed.corpus.dialogues.filters import load_filters
from llavamed.corpus.dialogues.prompt import SpokenTurn, load_prompt, notes
from llavamed.corpus.dialogues.repeats import Repeats
from llavamed.errors import ConfigError

NOTES = "Axial CT of the liver. A lesion of 4.0 cm in segment 7 and 1,200 small cysts; SUV 3,5."
GOOD = ("Which organ is shown?", "The liver, with a dark lesion in its right lobe.")
FILTERS = load_filters(None)


def turns(*texts, speakers=("user", "assistant")):
    return [
        SpokenTurn(speaker=speakers[number % 2], text=text) for number, text in enumerate(texts)
    ]


def judge(*texts, scores=None, earlier=None, name="here", spoken=None):
    return FILTERS.judge(
        spoken or turns(*texts),
        NOTES,
        name=name,
        scores=scores,
        earlier=Repeats() if earlier is None else earlier,
    )


BAD = {
    "refusal": [
        "I'm sorry, but that is hard to say.",
        "I cannot see the image.",
        "As an AI model, it is beyond me.",
        "It is not possible to determine the cause.",
        "The stage is not specified.",
    ],
    "betrays_caption": [
        "The caption speaks of a lesion.",
        "As described in the report, it is dark.",
        "According to the authors it grew.",
        "The lesion mentioned in the text is dark.",
        "Panel A has a lesion.",
        "In the figure there is a lesion.",
        "The provided context says so.",
    ],
    "advice": [
        "You should have it removed.",
        "I recommend a biopsy.",
        "Please see a doctor about it.",
        "It is treated with 50 mg of a drug.",
        "Surgery is recommended for this lesion.",
    ],
    "identifying": [
        "It belongs to a 63-year-old man.",
        "The patient is aged 63.",
        "It was taken in March 2019.",
        "It was taken on 12/03/2019.",
        "The scan of Mr. Miller shows a lesion.",
        "It was made at Springfield Hospital.",
        "Write to someone@example.org about it.",
    ],
    "ungrounded_number": [
        "The lesion measures 5 cm.",
        "It lies in segment 8.",
        "There are 1,201 cysts.",
        "Its diameter is 4.01 cm.",
    ],
}
FINE = [
    "The lesion of 4 cm lies in segment 7.",
    "The cysts are 1200 in number.",
    "An uptake of 3.5 is seen.",
    "A 3D view of vertebra L4 on a T2-weighted image.",
    "The patient's liver may be cirrhotic; no sign of malignancy is visible.",
    "The configuration of the vessels is regular.",
    "Contextual signs are absent.",
]


@pytest.mark.parametrize("rule", BAD)
def test_a_rule_finds_each_of_its_kind_and_drops_that_exchange_alone(rule):
    for text in BAD[rule]:
        verdict = judge(*GOOD, "What else is there?", text)
        assert {(each.rule, each.exchange) for each in verdict.findings} >= {(rule, 1)}, text
        assert [(each.question, each.answer) for each in verdict.kept] == [GOOD], text


@pytest.mark.parametrize("text", FINE)
def test_what_is_fine_passes(text):
    verdict = judge(*GOOD, "What else is there?", text)
    assert (len(verdict.kept), verdict.findings) == (2, ())


def test_the_examples_that_models_are_shown_pass_every_rule():
    for example in load_prompt(None).examples:
        spoken = example.written().turns
        seen = notes(example.caption, example.mentions)
        verdict = FILTERS.judge(spoken, seen, name="", scores=None, earlier=Repeats())
        assert verdict.findings == ()
        assert len(verdict.kept) == len(spoken) // 2


@pytest.mark.parametrize(
    "spoken",
    [
        turns("Which organ is it?"),
        turns("The liver it is.", "Which organ is it?", speakers=("assistant", "user")),
        turns("Which organ?", "Is it the liver?", speakers=("user", "user")),
        turns(*GOOD, "And now what?"),
    ],
)
def test_turns_out_of_order_drop_the_dialogue(spoken):
    verdict = judge(spoken=spoken)
    assert verdict.kept == ()
    assert [each.rule for each in verdict.findings] == ["turn_order"]


def test_a_leaked_answer_and_turns_of_odd_length_are_found():
    leak = ("Is this a dark lesion of the liver?", "A dark lesion of the liver.")
    found = {
        each.rule
        for texts in (leak, ("Why?", "It is."), ("What is seen?", "A"), ("What is?", "x" * 1300))
        for each in judge(*texts).findings
    }
    assert found >= {"leaked_answer", "short_question", "short_answer", "long_turn"}


def test_a_dialogue_without_a_good_exchange_or_with_too_many_is_dropped():
    assert judge("What is this here?", "I cannot tell.").findings[-1].rule == "num_questions"
    many = [text for n in range(9) for text in (f"What is the {'very ' * n}detail?", "A cyst.")]
    assert judge(*many).kept == ()


def test_low_scores_of_a_checker_drop_the_dialogue_and_no_scores_do_not():
    assert judge(*GOOD, scores={"grounded": 5, "visible": 5}).kept
    assert judge(*GOOD).kept
    for scores in ({"grounded": 3, "visible": 5}, {"grounded": 5, "visible": 1}):
        verdict = judge(*GOOD, scores=scores)
        assert (verdict.kept, len(verdict.findings)) == ((), 1)


def test_a_near_duplicate_is_dropped_and_names_the_first():
    seen = Repeats()
    text = "dark lesion with a sharp border and without uptake lies near the upper pole"
    words = text.split()
    long = " ".join(words * 4)
    assert judge("What is seen here?", long, earlier=seen, name="first").kept
    again = judge("What is seen here?", long + "!", earlier=seen, name="second")
    assert [(each.rule, each.found) for each in again.findings] == [("near_duplicate", "first")]
    other = " ".join(reversed(words * 4))
    assert judge("What is seen here?", other, earlier=seen, name="third").kept


WORDS = st.lists(st.sampled_from([f"word{chr(97 + n)}" for n in range(26)]), min_size=30)


@given(WORDS, WORDS)
def test_texts_repeat_each_other_when_they_share_most_of_their_runs(one, two):
    def runs(words):
        return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}

    share = len(runs(one) & runs(two)) / len(runs(one) | runs(two))
    seen = Repeats()
    assert seen.add("one", " ".join(one), 0.8) is None
    assert seen.add("same", " ".join(one), 0.8) == "one"
    if share < 0.5:
        assert seen.add("two", " ".join(two), 0.8) is None


TEXTS = st.sampled_from([*FINE, *(text for texts in BAD.values() for text in texts)])


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_what_passed_passes_again(answers):
    texts = [part for text in answers for part in ("What is to be seen here?", text)]
    kept = judge(*texts).kept
    again = judge(*(part for each in kept for part in (each.question, each.answer)))
    if kept:
        assert again.kept == kept
        assert again.findings == ()


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(0, 30), min_size=1), st.integers(0, 120)
)
def test_figures_are_shared_out_as_evenly_as_there_are_any(available, total):
    shares = share_out(available, total)
    assert sum(shares.values()) == min(total, sum(available.values()))
    unmet = [shares[name] for name in shares if shares[name] < available[name]]
    if unmet:
        assert max(shares.values()) - min(unmet) <= 1


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(0, 5))
def test_more_dialogues_with_the_same_seed_keep_the_chosen_figures(domains, seed):
    figures = [(str(number), domain) for number, domain in enumerate(domains)]
    sets = [set(choose(figures, total, seed)) for total in range(len(figures) + 1)]
    assert [len(each) for each in sets] == list(range(len(figures) + 1))
    assert all(less < more for less, more in pairwise(sets))
    assert choose(figures[::-1], None, seed) == choose(figures, None, seed)


@pytest.mark.parametrize(
    ("load", "content", "message"),
    [
        (load_filters, None, r"filters=.*: no such file; check the path"),
        (load_filters, "version: 1\nrules: [{kind: odd}]", r"filters=.*: are not rules .*give ver"),
        (
            load_filters,
            "version: 1\nrules: [{name: a, kind: phrases, drops: dialogue, speakers: [user], "
            "expressions: ['(']}]",
            r"'\(' is not a regular expression",
        ),
        (load_prompt, None, r"prompt=.*: no such file; check the path"),
        (load_prompt, "system: [", r"prompt=.*: is not a prompt .*give system and examples"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, load, content, message):
    file = tmp_path / "file.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(str(file))
