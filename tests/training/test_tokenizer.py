"""A tokenizer spells each text as its model was pretrained with, or is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llavamed.errors import ConfigError
from llavamed.processor.tokenizer import load_tokenizer
from tests.support.labelled_dialogues import quick
from tests.support.small_tokenizers import CHATML

SPLITS: dict[str, list[Any]] = {
    "as GPT-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "digit by digit": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "lines joined": [
        pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
CLASSES = [
    *("GPT2Tokenizer", "Qwen2TokenizerFast", "GPTNeoXTokenizerFast", "CodeGenTokenizer"),
    *("LlamaTokenizerFast", "PreTrainedTokenizerFast"),
]
KINDS = ["llama", "qwen2", "olmo2", None]
TEXTS = st.text(alphabet="ab1 2\n\re\u0301.'sé病", max_size=20)


def published(folder: Path, split: str, name: str, kind: str | None) -> Tokenizer:
    """Write a byte-level tokenizer, as published with a class that may split otherwise."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[split])
    own.train_from_iterator(
        ["In 2024, 12 of 120.\n\n1. a  b\n\n2. It isn't 病."] * 9,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": name}))
    if kind is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("split", list(SPLITS))
def test_texts_are_spelled_as_the_file_says_whatever_class_it_names(
    tmp_path: Path, split: str, name: str
) -> None:
    spelling = []
    for kind in KINDS:
        folder = tmp_path / str(kind)
        spelling.append(published(folder, split, name, kind))
        loaded = load_tokenizer(str(folder), "tokenizer")
        loaded.save_pretrained(folder / "saved")
        again = AutoTokenizer.from_pretrained(folder / "saved")
        assert loaded.eos_token == again.eos_token == "<|im_end|>"
        assert loaded.chat_template == again.chat_template == CHATML
        spelling += [loaded.backend_tokenizer, again.backend_tokenizer]

    @quick
    @given(text=TEXTS)
    def check(text: str) -> None:
        first, *others = (each.encode(text, add_special_tokens=False).ids for each in spelling)
        assert others == [first] * len(others)

    check()


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_a_bare_sentencepiece_model_that_changes_texts_is_refused(
    tmp_path: Path, rule: str
) -> None:
    """LLaMA's, Vicuna's and Mistral's change none but for a space before the first word."""
    for begins, joins in itertools.product((True, False), repeat=2):
        folder = tmp_path / f"{begins}-{joins}"
        folder.mkdir()
        SentencePieceTrainer.train(
            sentence_iterator=iter(["In 2024, 12 of 120  are résumé 肺部 ＡＢ."] * 9),
            model_prefix=f"{folder}/tokenizer",
            vocab_size=320,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name=rule,
            add_dummy_prefix=begins,
            remove_extra_whitespaces=joins,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
        if (rule, begins, joins) == ("identity", True, False):
            own = SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")
            text = "of  120 résume\u0301"
            loaded = load_tokenizer(str(folder), "tokenizer")
            assert loaded(text, add_special_tokens=False)["input_ids"] == own.encode(text)
        else:
            with pytest.raises(ConfigError, match=r"tokenizer=/.*: its tokenizer.model normalizes"):
                load_tokenizer(str(folder), "tokenizer")
