import pytest
from transformers import PreTrainedTokenizerBase

from llavamed.errors import ConfigError, SampleError
from llavamed.processor.encode import Encoded, encode, encode_prompt
from llavamed.processor.templates import (
    TEMPLATES,
    bind,
    chat_template,
    get_template,
    render,
    stop_strings,
    template_hash,
)
from llavamed.processor.turns import IGNORE_INDEX, Turn
from tests.support.small_tokenizers import CHATML, CHATML_MARKED, chatml, llama_like

OWN = get_template("tokenizer")
QUESTION = Turn("user", "<image>\nWhere is the lesion?")
TURNS = [
    QUESTION,
    Turn("assistant", "In the left lobe."),
    Turn("user", "Sure?"),
    Turn("assistant", "Yes."),
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return chatml()


def encode_own(turns: list[Turn], tokenizer: PreTrainedTokenizerBase) -> Encoded:
    return encode(turns, template=OWN, tokenizer=tokenizer, num_image_tokens=4, max_length=None)


def trained_text(turns: list[Turn], tokenizer: PreTrainedTokenizerBase) -> str:
    labels = encode_own(turns, tokenizer).labels
    return tokenizer.decode([label for label in labels if label != IGNORE_INDEX])


@pytest.mark.parametrize("text", [CHATML, CHATML_MARKED], ids=["by_prefix", "marked"])
@pytest.mark.parametrize("last", ["Yes.", "<|im_end|>", "\n\nNo  \n", "病 user\n"])
def test_own_template_trains_answers_and_their_end(tokenizer, text, last) -> None:
    tokenizer.chat_template = text
    turns = [*TURNS[:3], Turn("assistant", last)]
    assert trained_text(turns, tokenizer) == f"In the left lobe.<|im_end|>{last}<|im_end|>"


def test_own_template_trains_the_end_of_an_empty_answer(tokenizer) -> None:
    turns = [QUESTION, Turn("assistant", ""), *TURNS[2:]]
    assert trained_text(turns, tokenizer) == "<|im_end|>Yes.<|im_end|>"


@pytest.mark.parametrize("text", [CHATML, CHATML_MARKED], ids=["by_prefix", "marked"])
def test_own_template_prompt_begins_the_sample(tokenizer, text) -> None:
    tokenizer.chat_template = text
    prompt = encode_prompt(TURNS[:-1], template=OWN, tokenizer=tokenizer, num_image_tokens=4)
    encoded = encode_own(TURNS, tokenizer)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert IGNORE_INDEX not in encoded.labels[len(prompt) : -1]
    assert encoded.labels[-1] == IGNORE_INDEX  # the line break between turns


def test_own_template_that_rewrites_earlier_turns_is_refused(tokenizer) -> None:
    tokenizer.chat_template = CHATML.replace("{{ message.content }}", "{{ loop.revindex }}")
    with pytest.raises(SampleError, match=r"template_rewrites: .* leaves out the words of turn 0"):
        encode_own(TURNS, tokenizer)


def test_own_template_may_refuse_a_sample(tokenizer) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(SampleError, match="template_refuses: roles must alternate"):
        encode_own(TURNS, tokenizer)
    with pytest.raises(SampleError, match="must begin with a question"):
        encode_own(TURNS[1:], tokenizer)


def test_own_template_must_exist(tokenizer) -> None:
    tokenizer.chat_template = None
    message = r"template=tokenizer: .* has no chat template; use one of llava_med_v0"
    with pytest.raises(ConfigError, match=message):
        encode_own(TURNS, tokenizer)
    with pytest.raises(ConfigError, match=message):
        template_hash(OWN, tokenizer)


def test_an_unknown_template_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"template=vicuna: .*use one of llava_med_v0, .*tokenizer"
    ):
        get_template("vicuna")


def test_hashes_tell_templates_apart(tokenizer) -> None:
    hashes = {template_hash(get_template(name), tokenizer) for name in [*TEMPLATES, "tokenizer"]}
    assert len(hashes) == len(TEMPLATES) + 1
    tokenizer.chat_template += " "
    assert template_hash(OWN, tokenizer) not in hashes
    assert template_hash(TEMPLATES["plain"], tokenizer) in hashes


def test_stop_strings() -> None:
    assert stop_strings(get_template("llava_med_v0")) == ("###",)
    assert stop_strings(get_template("vicuna_v1")) == ()


def test_own_template_has_its_jinja_text_already() -> None:
    with pytest.raises(ValueError, match="needs no other Jinja text"):
        chat_template(OWN)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vicuna_v1", "ASSISTANT: First.</s>USER:ASSISTANT: Second.</s>"),
        ("mistral_instruct", "[/INST] First. </s> Second. </s>"),
        ("llava_med_v0", "Assistant: First.\n### Human: \n### Assistant: Second.\n### "),
    ],
)
def test_an_empty_question_is_written_as_the_reference_does(name, text) -> None:
    rounds = [QUESTION, Turn("assistant", "First."), Turn("user", ""), Turn("assistant", "Second.")]
    bound = bind(get_template(name), llama_like())
    assert "".join(segment.text for segment in render(rounds, bound)).endswith(text)
