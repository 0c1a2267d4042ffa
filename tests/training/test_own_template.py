"""A tokenizer's own chat template trains the answers as they are and their ends, or refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from llavamed.config.sources import LlavaJson
from llavamed.data.inspect.labels import label_rows
from llavamed.data.prepare.remarks import warn_of_endless_answers
from llavamed.data.sources import open_source
from llavamed.errors import ConfigError, SampleError
from llavamed.processor.encode import Encoded, check_template
from llavamed.processor.tokenizer import load_tokenizer
from llavamed.processor.turns import IGNORE_INDEX, Turn
from tests.support.labelled_dialogues import (
    OWN,
    assert_exactly_the_answers_are_trained,
    dialogues,
    encoded,
    quick,
    stretches,
)
from tests.support.small_tokenizers import (
    CHATML,
    CHATML_MARKED,
    HEAD,
    OWN_TEMPLATES,
    chatml,
    llama_like,
)

TOKENIZERS = {
    "byte-level": chatml(),
    "byte-level, joins lines": chatml(joins_lines=True),
    "sentencepiece": llama_like(),
}
several = pytest.mark.parametrize("name", list(OWN_TEMPLATES))
on_each = pytest.mark.parametrize("kind", list(TOKENIZERS))


def tokenizer_with(kind: str, template: str) -> PreTrainedTokenizerBase:
    tokenizer = TOKENIZERS[kind]
    tokenizer.chat_template = template
    return tokenizer


@several
@on_each
@quick
@given(turns=dialogues())
def test_each_prompt_begins_the_sample_and_its_answer_is_trained_to_the_end(
    kind: str, name: str, turns: list[Turn]
) -> None:
    tokenizer = tokenizer_with(kind, OWN_TEMPLATES[name])
    end = "<|im_end|>" if "im_end" in OWN_TEMPLATES[name] else tokenizer.eos_token
    assert_exactly_the_answers_are_trained(turns, tokenizer, end)


@several
@quick
@given(turns=dialogues(), data=st.data())
def test_an_excluded_answer_has_no_label_and_changes_nothing_else(
    name: str, turns: list[Turn], data: st.DataObject
) -> None:
    tokenizer = tokenizer_with("byte-level", OWN_TEMPLATES[name])
    flags = [data.draw(st.booleans()) for _ in turns]
    some = [replace(turn, trained=flag) for turn, flag in zip(turns, flags, strict=True)]
    rest = [replace(turn, trained=not flag) for turn, flag in zip(turns, flags, strict=True)]
    whole, here, there = (encoded(each, tokenizer).labels for each in (turns, some, rest))
    for label, one, other in zip(whole, here, there, strict=True):
        assert sorted([one, other]) == sorted([label, IGNORE_INDEX])


SPOKEN = [
    Turn("user", "<image>\nWhat is shown?"),
    Turn("assistant", "A clear lung."),
    Turn("user", "Sure?"),
    Turn("assistant", "Yes, it is."),
]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("message.content", "message.content | upper"), "writes 'WHAT IS"),
        (
            CHATML.replace("message.content", "message.content[:9]"),
            "leaves out the words of turn 0",
        ),
        (
            CHATML.replace("message.content", "message.content | replace('<image>', '')"),
            "writes 0 <image> for 1 images",
        ),
        (
            CHATML.replace("message.content", "message.content | replace('clear', 'dull')"),
            r"writes '.*A dull lung\.' for 'A clear lung\.' in turn 1 \(assistant\)",
        ),
        (
            CHATML.replace("message.content", "message.content ~ message.content"),
            "writes 2 times the words of turn 0",
        ),
        (
            CHATML.replace("messages -", "messages[-2:] -"),
            r"leaves out the words of turn 0 \(user\): 'What is shown\?'",
        ),
        (
            CHATML.replace("message.content", "message.content ~ loop.revindex"),
            r"writes something else before turn 1 \(assistant\) than the prompt",
        ),
        (CHATML.replace("message.content", "message.content | length"), "leaves out the words"),
    ],
)
def test_a_template_that_changes_a_dialogue_is_refused(template: str, message: str) -> None:
    with pytest.raises(SampleError, match=f"template_rewrites: the chat template {message}"):
        encoded(SPOKEN, tokenizer_with("byte-level", template))


def test_a_system_turn_that_the_template_drops_is_refused() -> None:
    template = CHATML.replace(
        "{{ '<|im_start|>'",
        "{%- if message.role == 'system' %}{% continue %}{% endif %}{{ '<|im_start|>'",
    )
    tokenizer = tokenizer_with("byte-level", template)
    assert encoded(SPOKEN, tokenizer)
    with pytest.raises(SampleError, match=r"leaves out the words of turn 0 \(system\): 'Be brief"):
        encoded([Turn("system", "Be brief."), *SPOKEN], tokenizer)


@pytest.mark.parametrize(
    "program",
    ["1 / 0", "[].x.y", "messages[0].content + 1", "range(10 ** 9)", "raise_exception('no')"],
)
def test_whatever_a_template_raises_refuses_the_sample(program: str) -> None:
    tokenizer = tokenizer_with("byte-level", f"{{{{ {program} }}}}")
    with pytest.raises(SampleError, match="template_refuses: "):
        encoded(SPOKEN, tokenizer)


def test_a_template_that_is_not_jinja_is_no_fault_of_a_sample() -> None:
    tokenizer = tokenizer_with("byte-level", "{% for message in %}")
    with pytest.raises(ConfigError, match=r"template=tokenizer: the chat template of .* line 1: "):
        check_template(OWN, tokenizer)


def test_marks_on_a_turn_that_is_no_answer_are_refused() -> None:
    template = HEAD + "{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}"
    message = r"template_marks: the chat template marks turn 0 \(user\) as answer"
    with pytest.raises(SampleError, match=message):
        encoded(SPOKEN, tokenizer_with("byte-level", template))


def test_an_answer_that_is_asked_in_other_words_is_refused() -> None:
    for template in (CHATML, CHATML_MARKED):
        thinking = template.replace("|im_start|>assistant\n'", "|im_start|>assistant\n<think>'")
        with pytest.raises(SampleError, match=r"writes something else before turn \d \(assistant"):
            encoded(SPOKEN, tokenizer_with("byte-level", thinking))


def test_an_answer_may_be_written_shorter_once_more_turns_follow() -> None:
    template = CHATML.replace(
        "{{ message.content }}",
        "{% if loop.last and message.role == 'assistant' %}(none)\n{% endif %}"
        "{{ message.content }}",
    )
    tokenizer = tokenizer_with("byte-level", template)
    assert stretches(encoded(SPOKEN, tokenizer), tokenizer) == [
        "A clear lung.<|im_end|>",
        "(none)\nYes, it is.<|im_end|>",
    ]


def test_eos_token_behind_another_end_is_trained_with_it() -> None:
    template = CHATML.replace("<|im_end|>\n", "<|im_start|>' ~ eos_token ~ '\n")
    tokenizer = tokenizer_with("byte-level", template)
    assert stretches(encoded(SPOKEN[:2], tokenizer), tokenizer) == [
        "A clear lung.<|im_start|><|im_end|>"
    ]


def test_a_template_that_ends_no_answer_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for template in OWN_TEMPLATES.values():
        warn_of_endless_answers("tokenizer", tokenizer_with("byte-level", template))
    assert not caplog.messages
    endless = CHATML.replace("<|im_end|>", "")
    warn_of_endless_answers("vicuna_v1", tokenizer_with("byte-level", endless))
    assert not caplog.messages
    warn_of_endless_answers("tokenizer", tokenizer_with("byte-level", endless))
    (message,) = caplog.messages
    assert message.startswith("model.template=tokenizer: the chat template of ")
    assert "writes no special token after an answer" in message


def test_one_of_several_named_templates_is_the_default() -> None:
    tokenizer = tokenizer_with("byte-level", CHATML)
    expected = encoded(SPOKEN, tokenizer)
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools }}"}
    assert encoded(SPOKEN, tokenizer) == expected
    tokenizer.chat_template = {"tool_use": CHATML}
    with pytest.raises(ConfigError, match=r"template=tokenizer: .* templates tool_use, none of "):
        encoded(SPOKEN, tokenizer)


LUNG = ["The lung is clear.", "It is."]
CASES = [
    ("vlm", "byte-level", "vlm.jsonl", {"a": LUNG[:1]}),
    ("chatml-eot--chatml-gen-words", "byte-level", "dialogues.jsonl", {"two": LUNG}),
    ("mistral-tokenizer--gen-trailing-space", "mistral", "dialogues.jsonl", {"spaceend": LUNG}),
    ("prompt-ends-in-space", "llama", "vqa.jsonl", {"yes": ["yes"], "A": ["A"]}),
    (
        None,
        "byte-level",
        "generation.jsonl",
        {"a": ["Answer one.", "Answer two.", "Answer three."]},
    ),
    ("history", "llama", "history.jsonl", {"ok0": ["A lung."], "sys": []}),
]


@pytest.mark.parametrize(("template", "kind", "file", "answers"), CASES)
def test_reported_cases(
    reference_data: Path, template: str | None, kind: str, file: str, answers: dict[str, list[str]]
) -> None:
    cases, golden = reference_data / "cases/data/templates", reference_data / "golden/labels"
    folders = {
        "byte-level": cases / "tok-byte-level",
        "mistral": golden / "mistral-tokenizer",
        "llama": golden / "tokenizer",
    }
    tokenizer = load_tokenizer(str(folders[kind]), "tokenizer")
    if template:
        tokenizer.chat_template = (cases / f"{template}.jinja").read_text()
    if "eot" in (template or ""):
        tokenizer.eos_token = "<|endoftext|>"
    source = open_source(LlavaJson(source="llava_json", path=str(cases / file), image_folder="."))
    rows = label_rows(
        source, template=OWN, tokenizer=tokenizer, num_image_tokens=1, max_length=None
    )
    labelled = {row["id"]: row for row in rows}
    for name, wanted in answers.items():
        sample = Encoded(labelled[name]["input_ids"], labelled[name]["labels"], 0)
        trained = [text.strip() for text in stretches(sample, tokenizer)]
        ends = "<|im_end|>" if kind == "byte-level" else "</s>" * (kind == "llama")
        assert trained == [answer + ends for answer in wanted]
        assert bool(labelled[name]["problem"]) == (not wanted)
