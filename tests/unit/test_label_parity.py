"""Token ids and labels equal the reference's, case by case.

An image is a run of tokens here and another block there; both are reduced to one mark. Where the
reference warned of a mismatch it masked the whole sample; those are listed with what we train.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llavamed.data.conversation import Encoded, encode, get_template
from llavamed.data.marked_text import repair_merges
from llavamed.data.sample import IGNORE_INDEX, IMAGE_PLACEHOLDER, Turn

ROLES = {"human": "user", "gpt": "assistant"}
IMAGE = (-200, IGNORE_INDEX)
NUM_IMAGE_TOKENS = 5

EMPTY = {"empty-answer": "</s>"}  # the reference writes no end after an empty answer
EOS_INSIDE = {"answer-holds-eos": "left</s> right</s>"}  # it splits the text at the end token
ROLE_INSIDE = {"answer-holds-role": "said ASSISTANT: fine</s>"}  # ... and at the role's name
VICUNA = EMPTY | EOS_INSIDE | ROLE_INSIDE
MISTRAL = EMPTY | {
    "answer-holds-eos": "left</s> right </s>",
    "answer-holds-inst": "said [/INST] fine </s>",
}

FILES = [
    ("llava_med_v0", "llava_med_v0", "tokenizer", {}),
    ("llava_med_vicuna_v1_1", "llava_med_vicuna_v1_1", "tokenizer", VICUNA),
    ("vicuna_v1", "vicuna_v1", "tokenizer", VICUNA),
    ("vicuna_v1-max64", "vicuna_v1", "tokenizer", VICUNA),
    ("mistral_instruct", "mistral_instruct", "tokenizer", MISTRAL),
    ("mistral_instruct-mistral_tokenizer", "mistral_instruct", "mistral-tokenizer", MISTRAL),
    ("plain", "plain", "tokenizer", {}),
]


@cache
def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    repair_merges(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]})
    return tokenizer


def reduced_reference(case: dict[str, Any], special: dict[str, int]) -> list[tuple[int, int]]:
    opening = special.get("<im_start>", -200)
    rest_of_block = {special.get("<im_patch>"), special.get("<im_end>")}
    pairs = zip(case["input_ids"], case["labels"], strict=True)
    return [
        IMAGE if token == opening else (token, label)
        for token, label in pairs
        if token not in rest_of_block
    ]


def reduced(encoded: Encoded, image_id: int) -> list[tuple[int, int]]:
    pairs = list(zip(encoded.input_ids, encoded.labels, strict=True))
    result, place = [], 0
    while place < len(pairs):
        if pairs[place][0] != image_id:
            result.append(pairs[place])
            place += 1
            continue
        assert pairs[place : place + NUM_IMAGE_TOKENS] == [(image_id, -100)] * NUM_IMAGE_TOKENS
        result.append(IMAGE)
        place += NUM_IMAGE_TOKENS
    return result


@pytest.mark.parametrize(
    ("file", "template", "tokenizer_name", "excepted"), FILES, ids=[file[0] for file in FILES]
)
def test_labels_equal_the_reference(
    reference_data: Path, file: str, template: str, tokenizer_name: str, excepted: dict[str, str]
) -> None:
    labels = reference_data / "golden" / "labels"
    golden = json.loads((labels / f"{file}.json").read_text())
    special = golden["meta"]["special"]
    tokenizer = load_tokenizer(labels / tokenizer_name)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    warned = {case["id"] for case in golden["cases"] if "tokenization mismatch" in case["stdout"]}
    assert warned == set(excepted)
    for case in golden["cases"]:
        turns = [Turn(ROLES[turn["from"]], turn["value"]) for turn in case["conversations"]]
        num_images = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
        # The reference's limit counts its own block for an image: 258 tokens, later 1.
        text_limit = golden["meta"]["model_max_length"] - num_images * (258 if special else 1)
        ours = encode(
            turns,
            template=get_template(template),
            tokenizer=tokenizer,
            num_image_tokens=NUM_IMAGE_TOKENS,
            max_length=text_limit + num_images * NUM_IMAGE_TOKENS,
        )
        theirs = reduced_reference(case, special)[: text_limit + num_images]
        got = reduced(ours, image_id)
        if case["id"] in excepted:
            trained = [label for _, label in got if label != IGNORE_INDEX]
            assert tokenizer.decode(trained) == excepted[case["id"]], case["id"]
            ids, their_ids = ([token for token, _ in pairs] for pairs in (got, theirs))
            end = [tokenizer.eos_token_id] if case["id"] == "empty-answer" else []
            assert ids == their_ids + end, case["id"]
        else:
            assert got == theirs, case["id"]


@pytest.mark.parametrize("text", ["at  closely", "a    b", "x\n   y  \n", "  ".join("abcdef")])
def test_runs_of_spaces_are_those_of_sentencepiece(reference_data: Path, text: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = reference_data / "golden" / "labels" / "mistral-tokenizer"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)


def test_repaired_merges_are_saved(reference_data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(reference_data / "golden" / "labels" / "mistral-tokenizer")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.tokenize("at  closely") == tokenizer.tokenize("at  closely")
