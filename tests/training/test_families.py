"""Each family's own chat template trains exactly the answers and the token that ends a turn."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.load import override_config
from llavamed.config.model import Thinking
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError, SampleError
from llavamed.processor.templates import template_hash
from llavamed.processor.thinking import with_thinking
from llavamed.processor.turns import IGNORE_INDEX, Turn
from tests.support.labelled_dialogues import (
    OWN,
    assert_exactly_the_answers_are_trained,
    dialogues,
    encoded,
    prompt_ids,
    quick,
    said,
    stretches,
)
from tests.support.small_tokenizers import (
    CHATML,
    GEMMA,
    LLAMA_3,
    MISTRAL_V3,
    MISTRAL_V7,
    QWEN_3,
    QWEN_3_THINKING,
    family,
)

HEADER = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURN = ("<start_of_turn>", "<end_of_turn>")
INSTRUCTION = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
FAMILIES = {
    "chatml": (family(CHATML, end="<|im_end|>"), "<|im_end|>"),
    "llama 3": (
        family(LLAMA_3, end="<|eot_id|>", turns=HEADER, bos="<|begin_of_text|>"),
        "<|eot_id|>",
    ),
    "llama 3, ends in another token than eos": (
        family(LLAMA_3, end="<|end_of_text|>", turns=HEADER, bos="<|begin_of_text|>"),
        "<|eot_id|>",
    ),
    "gemma": (family(GEMMA, end="<eos>", turns=TURN, bos="<bos>"), "<end_of_turn>"),
    "mistral v0.3": (family(MISTRAL_V3, end="</s>", turns=INSTRUCTION[:2], bos="<s>"), "</s>"),
    "mistral v7": (family(MISTRAL_V7, end="</s>", turns=INSTRUCTION, bos="<s>"), "</s>"),
}
several = pytest.mark.parametrize("name", list(FAMILIES))


@several
@quick
@given(turns=dialogues())
def test_exactly_the_answers_of_a_family_are_trained(name: str, turns: list[Turn]) -> None:
    tokenizer, end = FAMILIES[name]
    if name == "mistral v0.3":
        turns = [turn for turn in turns if turn.role != "system"]
    assert_exactly_the_answers_are_trained(turns, tokenizer, end)
    ids = encoded(turns, tokenizer).input_ids
    if tokenizer.bos_token is not None:
        assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token is not None)


def test_a_system_turn_that_a_family_has_no_place_for_is_refused() -> None:
    turns = [Turn("system", "Be brief."), Turn("user", "Why?"), Turn("assistant", "So.")]
    with pytest.raises(SampleError, match="template_refuses: no system turns"):
        encoded(turns, FAMILIES["mistral v0.3"][0])


# --- thinking -------------------------------------------------------------------------------------

THINKING = {"qwen 3": QWEN_3, "qwen 3, thinking": QWEN_3_THINKING}
EMPTY = "<think>\n\n</think>\n\n"
on_both = pytest.mark.parametrize("name", list(THINKING))
thoughts = st.sampled_from(
    ["", "<think>\nIs it left?\n</think>\n\n", "<think>\na\n\nb\n</think>\n\n"]
)


@st.composite
def thoughtful(draw: st.DrawFn) -> list[Turn]:
    """Dialogues with a thinking part before some answers."""
    return [
        replace(turn, text=draw(thoughts) + turn.text.lstrip("\n"))
        if turn.role == "assistant"
        else turn
        for turn in draw(dialogues())
    ]


def plain(turn: Turn) -> Turn:
    return replace(turn, text=turn.text.rpartition("</think>\n\n")[2])


@on_both
@quick
@given(turns=thoughtful())
def test_thinking_that_is_left_out_is_in_no_answer_and_no_prompt(
    name: str, turns: list[Turn]
) -> None:
    tokenizer = family(with_thinking(THINKING[name], "leave_out"), end="<|im_end|>")
    spoken = [plain(turn) if turn.role == "assistant" else turn for turn in turns]
    assert_exactly_the_answers_are_trained(spoken, tokenizer, "<|im_end|>")
    assert encoded(turns, tokenizer) == encoded(spoken, tokenizer)
    assert "think>" not in tokenizer.decode(prompt_ids(turns[:-1], tokenizer))


@quick
@given(turns=thoughtful())
def test_thinking_that_is_masked_is_context_of_the_last_answer(turns: list[Turn]) -> None:
    """The template shows the thinking part of the last answer only, so earlier ones have none."""
    turns = [
        plain(turn) if turn.role == "assistant" and number < len(turns) - 1 else turn
        for number, turn in enumerate(turns)
    ]
    tokenizer = family(with_thinking(QWEN_3, "mask"), end="<|im_end|>")
    thought = turns[-1].text[: -len(plain(turns[-1]).text)] or EMPTY
    spoken = [*turns[:-1], plain(turns[-1])]
    sample = encoded(turns, tokenizer)
    assert thought in tokenizer.decode(sample.input_ids)
    trained = stretches(sample, tokenizer)
    answers = [turn for turn in spoken if turn.role == "assistant"]
    assert len(trained) == len(answers)
    for turn, text in zip(answers, trained, strict=True):
        assert "".join(text.split()) == "".join(f"{turn.text}<|im_end|>".split())


@quick
@given(answer=said.filter(str.strip), thought=thoughts)
def test_a_thinking_part_that_the_prompt_begins_is_masked_to_its_end(
    answer: str, thought: str
) -> None:
    tokenizer = family(with_thinking(QWEN_3_THINKING, "mask"), end="<|im_end|>")
    turns = [Turn("user", "Why?"), Turn("assistant", thought + answer.lstrip("\n"))]
    sample = encoded(turns, tokenizer)
    assert len(stretches(sample, tokenizer)) == 1
    first = next(n for n, label in enumerate(sample.labels) if label != IGNORE_INDEX)
    before = tokenizer.decode(sample.input_ids[:first])
    assert before.rstrip().endswith("</think>")
    assert tokenizer.decode(prompt_ids(turns[:1], tokenizer)).endswith("<think>\n")


@pytest.mark.parametrize("thinking", ["train", "mask", "leave_out"])
@on_both
@quick
@given(turns=thoughtful())
def test_a_conversation_goes_on_after_an_answer_with_a_thinking_part(
    name: str, thinking: Thinking, turns: list[Turn]
) -> None:
    """The template forgets how earlier answers were thought of, and the prompt does as it does."""
    tokenizer = family(with_thinking(THINKING[name], thinking), end="<|im_end|>")
    spoken = [plain(turn) if turn.role == "assistant" else turn for turn in turns]
    assert prompt_ids(turns[:-1], tokenizer) == prompt_ids(spoken[:-1], tokenizer)


def test_a_template_that_only_prompts_for_thinking_is_told_what_helps() -> None:
    """DeepSeek R1's begins a thinking part in its prompt, and writes none in any answer."""
    source = (
        "{% for message in messages %}"
        "{% if message.role == 'user' %}{{ '<|im_start|>' ~ message.content }}"
        "{% else %}{{ '<|im_end|>' ~ message.content ~ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_end|><think>\n' }}{% endif %}"
    )
    turns = [Turn("user", "<image> Why?"), Turn("assistant", "So.")]
    advice = r"answer there and which ends in <think>; set model.thinking to leave_out$"
    with pytest.raises(SampleError, match=advice):
        encoded(turns, family(source, end="</s>"))
    advised = family(with_thinking(source, "leave_out"), end="</s>")
    assert_exactly_the_answers_are_trained(turns, advised, "</s>")


def test_each_way_of_thinking_is_another_template() -> None:
    tokenizer = family(QWEN_3, end="<|im_end|>")
    hashes = set()
    ways: tuple[Thinking, ...] = ("train", "mask", "leave_out")
    for thinking in ways:
        tokenizer.chat_template = once = with_thinking(QWEN_3, thinking)
        assert with_thinking(once, thinking) == once
        hashes.add(template_hash(OWN, tokenizer))
    assert len(hashes) == 3


def test_thinking_needs_a_template_that_thinks(tiny_config: RunConfig) -> None:
    message = r"model.thinking=mask: only a tokenizer's own template writes thinking parts"
    with pytest.raises(ConfigError, match=message):
        override_config(tiny_config, ["model.thinking=mask"])
    accepted = override_config(tiny_config, ["model.thinking=mask", "model.template=tokenizer"])
    assert accepted.model.thinking == "mask"


@pytest.mark.parametrize("said", ["mask", "leave_out"])
@pytest.mark.parametrize("wanted", ["train", "mask", "leave_out"])
def test_a_template_that_says_what_becomes_of_thinking_is_used_for_that_alone(
    said: Thinking, wanted: Thinking
) -> None:
    template = with_thinking(QWEN_3, said)
    if wanted == said:
        assert with_thinking(template, wanted) == template
        return
    message = rf"^model.thinking={wanted}: .* trained with {said}, and says so; set it to {said}$"
    with pytest.raises(ConfigError, match=message):
        with_thinking(template, wanted)
