"""Load a tokenizer that spells each text as its model was pretrained with, or train one.

Transformers 5 makes some tokenizers anew from the vocabulary in their files, and then splits words
as the class does that a file names, which is not always as the file says.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llavamed.config.model import Model
from llavamed.errors import ConfigError
from llavamed.processor.forms.form import find_file
from llavamed.processor.forms.gguf_file import split_words
from llavamed.processor.pretrained import load_pretrained, part_config, split_gguf
from llavamed.processor.token_labels import check_tokenizer, differing_ids, repair_merges
from llavamed.processor.turns import IMAGE_PLACEHOLDER
from llavamed.storage.fetch import fetch_once

_FILE = "tokenizer.json"
_PROBE = (
    "In 2024 the patient's X-ray (120 kV, 0.35mGy) wasn't repeated;\n\n1. pH 7.35,  10\u201320 mL "
    "H2O\n\t2. CT_scan & re\u0301sume\u0301: \uff21\uff22 \u80ba\u90e8 \U0001fac1 <= 5 % "
)
"""A text that tokenizers spell differently if they differ in how they split or normalize a text.
It begins with a letter and has no special token, where classes of transformers add a space or not.
"""


def make_tokenizer(model: Model, texts: Iterator[str]) -> Any:
    """Load the tokenizer of a model, or train one for a random language model without any.

    Args:
        texts: Text to train it on.

    Raises:
        ConfigError: It cannot be found, or is that of another language model.
    """
    assert model.language_model is not None
    source = model.tokenizer or model.language_model.weights
    if source is None:
        vocabulary = int(part_config(model.language_model, "model.language_model").vocab_size)
        return _train_tokenizer(texts, vocabulary)
    if model.tokenizer is None:
        return load_tokenizer(source, "model.language_model.weights")
    tokenizer = load_tokenizer(source, "model.tokenizer")
    own = None
    if model.language_model.weights is not None:
        with suppress(ConfigError):  # weights without a tokenizer do not say what they read
            own = load_tokenizer(model.language_model.weights, "model.language_model.weights")
    if own is not None and (differing := differing_ids(tokenizer, own)):
        raise ConfigError(
            f"model.tokenizer={model.tokenizer}: {differing} than in the tokenizer of "
            f"model.language_model.weights={model.language_model.weights}, so the model would read "
            "other words; remove it, or name the weights it belongs to"
        )
    return tokenizer


def load_tokenizer(source: str, key: str) -> Any:
    """Load a published tokenizer and add the image token.

    Args:
        source: A folder, its URI, or a name on the hub.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: The tokenizer cannot be found, cannot map tokens to places in the text, spells
            texts otherwise than its `tokenizer.model`, or is in a GGUF file that names no way to
            split words that is known.
    """
    more: dict[str, Any] = {"extra_special_tokens": {"image_token": IMAGE_PLACEHOLDER}}
    tokenizer = load_pretrained(AutoTokenizer, source, key, **more)
    check_tokenizer(tokenizer)
    place, gguf = split_gguf(source, key)
    if name := gguf.get("gguf_file"):
        file = find_file(fetch_once(place, weights=name), name)
        assert file is not None
        split_words(tokenizer, file, f"{key}={source}")
    elif getattr(tokenizer.backend_tokenizer, "fix_mistral_regex", None) is False:
        # Published for Mistral, it splits "pH" otherwise than the model knows; transformers warns.
        tokenizer = load_pretrained(AutoTokenizer, source, key, fix_mistral_regex=True, **more)
    elif not _spells_as_file(tokenizer, find_file(fetch_once(place, weights=False), _FILE)):
        tokenizer = load_pretrained(PreTrainedTokenizerFast, source, key, **more)
    repair_merges(tokenizer)
    _check_pieces(tokenizer, f"{key}={source}")
    return tokenizer


def _check_pieces(tokenizer: Any, where: str) -> None:
    """Check that a tokenizer which is read from a bare `tokenizer.model` spells texts as that does.

    Transformers reads its pieces, and not how it normalizes a text first.

    Args:
        where: The config key that names it, with its value, for errors.

    Raises:
        ConfigError: It does not.
    """
    file = Path(str(getattr(tokenizer, "vocab_file", None) or ""))
    if file.suffix != ".model" or file.with_name(_FILE).exists():
        return
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(file)).encode(_PROBE)
    if tokenizer(_PROBE, add_special_tokens=False)["input_ids"] != pieces:
        raise ConfigError(
            f"{where}: its {file.name} normalizes texts, or begins them without a space, which "
            f"transformers leaves out, so the model would read other words; add its {_FILE}"
        )


def _spells_as_file(tokenizer: Any, file: Path | None) -> bool:
    """Return whether a tokenizer splits and spells a text as its file says, if it has one."""
    if file is None or type(tokenizer) is PreTrainedTokenizerFast:  # which is made of the file
        return True
    own = Tokenizer.from_file(str(file))
    if getattr(own.model, "dropout", None):
        own.model.dropout = None
    return _spelled(own) == _spelled(tokenizer.backend_tokenizer)


def _spelled(tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """Return the words that a tokenizer splits a text into, and their tokens."""
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    text = normalizer.normalize_str(_PROBE) if normalizer else _PROBE
    words = [word for word, _ in splitter.pre_tokenize_str(text)] if splitter else [text]
    return words, [token.id for word in words for token in tokenizer.model.tokenize(word)]


def set_pad_token(tokenizer: Any) -> None:
    """Set a padding token; padding is never trained or attended to, so any token will do.

    Raises:
        ConfigError: The tokenizer has no token to use.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"tokenizer={tokenizer.name_or_path}: has no pad_token, unk_token or eos_token to pad "
            "with; name one in its tokenizer_config.json"
        )


def check_vocab_size(model: Model, tokenizer: Any) -> None:
    """Raise ConfigError if random weights have fewer embeddings than the tokenizer has tokens.

    Published weights get additional rows instead.
    """
    assert model.language_model is not None
    if model.language_model.weights is not None:
        return
    rows = int(part_config(model.language_model, "model.language_model").vocab_size)
    if len(tokenizer) > rows:
        raise ConfigError(
            f"model.language_model.config.vocab_size={rows}: the tokenizer has "
            f"{len(tokenizer)} entries; set it to at least {len(tokenizer)}"
        )


def _train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of the given size, which can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>", IMAGE_PLACEHOLDER],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE_PLACEHOLDER},
    )
