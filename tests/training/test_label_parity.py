"""What `llavamed data labels` prints equals the reference's ids and labels, case by case.

An image is a run of tokens here and another block there; both are reduced to one mark. Where the
reference warned of a mismatch it masked the whole sample; those are listed with what we train.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llavamed.processor.tokenizer import load_tokenizer
from llavamed.processor.turns import IGNORE_INDEX, IMAGE_PLACEHOLDER

IMAGE = (-200, IGNORE_INDEX)

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
def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(folder), "tokenizer")


def reduced(row: dict[str, Any], opening: int, rest_of_block: set[int]) -> list[tuple[int, int]]:
    """Pairs of id and label, where the opening token of an image stands for its whole block."""
    return [
        IMAGE if token == opening else (token, label)
        for token, label in zip(row["input_ids"], row["labels"], strict=True)
        if token not in rest_of_block
    ]


def reduced_runs(row: dict[str, Any], image: int, length: int) -> list[tuple[int, int]]:
    """The same where an image is a run of one token, which is never trained."""
    ids, labels = row["input_ids"], row["labels"]
    assert {labels[place] for place, token in enumerate(ids) if token == image} <= {IGNORE_INDEX}
    result, place = [], 0
    while place < len(ids):
        is_image = ids[place] == image
        assert not is_image or ids[place : place + length] == [image] * length
        result.append(IMAGE if is_image else (ids[place], labels[place]))
        place += length if is_image else 1
    return result


@pytest.mark.parametrize(
    ("file", "template", "tokenizer_name", "excepted"), FILES, ids=[file[0] for file in FILES]
)
def test_labels_equal_the_reference(
    reference_data: Path,
    tmp_path: Path,
    llavamed: Callable[..., tuple[int, str, str]],
    file: str,
    template: str,
    tokenizer_name: str,
    excepted: dict[str, str],
) -> None:
    labels = reference_data / "golden" / "labels"
    golden = json.loads((labels / f"{file}.json").read_text())
    special = golden["meta"]["special"]
    limit = golden["meta"]["model_max_length"]
    length = 258 if special else 1  # what the reference counts for an image, later replaced
    keys = ("id", "conversations")
    cases = tmp_path / "cases.jsonl"
    cases.write_text("".join(f"{json.dumps({k: c[k] for k in keys})}\n" for c in golden["cases"]))
    code, out, err = llavamed(
        *("data", "labels", str(cases), "--template", template),
        *("--tokenizer", str(labels / tokenizer_name)),
        *("--max-length", str(limit), "--image-tokens", str(length)),
    )
    assert (code, err) == (0, f"{len(golden['cases'])} dialogues, 0 with a problem\n")
    rows = [json.loads(line) for line in out.splitlines()]
    tokenizer = tokenizer_of(labels / tokenizer_name)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    warned = {case["id"] for case in golden["cases"] if "tokenization mismatch" in case["stdout"]}
    assert warned == set(excepted)
    for case, row in zip(golden["cases"], rows, strict=True):
        assert row["id"] == case["id"]
        got = reduced_runs(row, image_id, length)
        rest = {special["<im_patch>"], special["<im_end>"]} if special else set()
        cut = {key: case[key][:limit] for key in ("input_ids", "labels")}  # as its collator does
        theirs = reduced(cut, special.get("<im_start>", -200), rest)
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
    tokenizer = tokenizer_of(folder)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)


def test_repaired_merges_are_saved(reference_data: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(reference_data / "golden" / "labels" / "mistral-tokenizer")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.tokenize("at  closely") == tokenizer.tokenize("at  closely")
