"""Labels of any text are those of a derivation by bytes, which shares nothing with ours.

A byte-level token is a run of bytes, so whether it is part of an answer can be counted off the text
that a template is known to write.
"""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llavamed.processor.encode import encode
from llavamed.processor.templates import TEMPLATES, get_template
from llavamed.processor.turns import IGNORE_INDEX, Turn
from tests.support.labelled_dialogues import quick
from tests.support.small_tokenizers import CHATML, GEMMA, LLAMA_3, MISTRAL_V7, family

BYTES = {letter: number for number, letter in bytes_to_unicode().items()}
Pieces = Iterator[tuple[str, bool]]

TRICKY = [
    *("USER:", " ASSISTANT:", "### Human: ", "###", "[INST] ", "[/INST]", "<<SYS>>\n", "user"),
    *("<|im_start|>assistant\n", "<|im_end|>", "<|im_end|>\n", "<|eot_id|>", "</s>", "<s>"),
    *("<start_of_turn>model\n", "<end_of_turn>", "<think>", "</think>", "{% generation %}"),
    *("{{ x }}", "▁", " ▁a", " ", "  ", "\n", "\n\n", "\r\n", "\r", "\t", "\x0b", "\x00", "\x85"),
    *("\u00a0", "\u2028", "\u3000", "\ufeff", "e\u0301", "👩\u200d⚕️", "İ", "ﬁ", "病", "\U000f0000"),
    *("a", "1", "12", ":", "'s", "Yes."),
]
texts = st.lists(st.sampled_from(TRICKY), max_size=5).map("".join)


@st.composite
def tricky_dialogues(draw: st.DrawFn) -> list[Turn]:
    turns = [Turn("system", draw(texts))] * draw(st.booleans())
    for number in range(draw(st.integers(1, 3))):
        turns.append(Turn("user", "<image>\n" * (number == 0) + draw(texts)))
        turns.append(Turn("assistant", draw(texts), draw(st.booleans())))
    return turns


def chatml(turns: list[Turn]) -> Pieces:
    for turn in turns:
        yield f"<|im_start|>{turn.role}\n", False
        yield f"{turn.text}<|im_end|>", turn.role == "assistant" and turn.trained
        yield "\n", False


def llama_3(turns: list[Turn]) -> Pieces:
    yield "<|begin_of_text|>", False
    for turn in turns:
        yield f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n", False
        yield f"{turn.text.strip()}<|eot_id|>", turn.role == "assistant" and turn.trained


def gemma(turns: list[Turn]) -> Pieces:
    yield "<bos>", False
    first = ""
    for turn in turns:
        if turn.role == "system":
            first = f"{turn.text}\n\n"
            continue
        yield f"<start_of_turn>{'model' if turn.role == 'assistant' else 'user'}\n", False
        yield f"{first}{turn.text.strip()}<end_of_turn>", turn.role == "assistant" and turn.trained
        yield "\n", False
        first = ""


def mistral(turns: list[Turn]) -> Pieces:
    yield "<s>", False
    around = {"system": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "user": ("[INST]", "[/INST]")}
    for turn in turns:
        before, after = around.get(turn.role, ("", "</s>"))
        yield f"{before}{turn.text}{after}", turn.role == "assistant" and turn.trained


def vicuna(turns: list[Turn]) -> Pieces:
    own = turns[0].text if turns[0].role == "system" else TEMPLATES["vicuna_v1"].system
    yield f"<s>{own} " if own else "<s>", False
    for number, turn in enumerate(turns):
        text = turn.text
        if "<image>" in text:
            text = f"<image>\n{text.replace('<image>', '').strip()}".strip()
        if turn.role == "user":
            yield f"USER: {text} " if text else "USER:", False
        elif turn.role == "assistant":
            yield "ASSISTANT:", False
            end = "</s>" if number == len(turns) - 1 else ""
            yield f" {text}</s>" if text else end, turn.trained


HEADER = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MARKS = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
SENTENCES = family(CHATML, end="</s>", bos="<s>")
CASES: dict[str, tuple[PreTrainedTokenizerBase, str, Callable[[list[Turn]], Pieces]]] = {
    "chatml": (family(CHATML, end="<|im_end|>"), "tokenizer", chatml),
    "llama 3": (
        family(LLAMA_3, end="<|eot_id|>", turns=HEADER, bos="<|begin_of_text|>"),
        "tokenizer",
        llama_3,
    ),
    "gemma": (
        family(GEMMA, end="<eos>", turns=("<start_of_turn>", "<end_of_turn>"), bos="<bos>"),
        "tokenizer",
        gemma,
    ),
    "mistral": (family(MISTRAL_V7, end="</s>", turns=MARKS, bos="<s>"), "tokenizer", mistral),
    "vicuna": (SENTENCES, "vicuna_v1", vicuna),
}


@pytest.mark.parametrize("name", list(CASES))
@quick
@given(turns=tricky_dialogues())
def test_a_token_is_trained_where_its_bytes_belong_to_a_trained_answer(
    name: str, turns: list[Turn]
) -> None:
    tokenizer, template, write = CASES[name]
    sample = encode(
        turns,
        template=get_template(template),
        tokenizer=tokenizer,
        num_image_tokens=1,
        max_length=None,
    )
    pieces = list(write(turns))
    trained = [flag for text, flag in pieces for _ in text.encode()]
    added = {number: token for token, number in tokenizer.get_added_vocab().items()}
    spelled = b""
    for token, label in zip(sample.input_ids, sample.labels, strict=True):
        assert label == (token if trained[len(spelled)] else IGNORE_INDEX)
        letters = tokenizer.convert_ids_to_tokens(token)
        own = added[token].encode() if token in added else bytes(map(BYTES.__getitem__, letters))
        spelled += own
    assert spelled == "".join(text for text, _ in pieces).encode()
