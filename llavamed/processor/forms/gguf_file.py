"""Read the configs of GGUF files, and refuse those of which transformers would make another model.

Transformers leaves out the tensors and the settings of such a file that it has no place for, and
only a log message at a level that is never shown says so. It splits words as GPT-2 does wherever it
does not know the way that a file names.

A large vocabulary takes seconds to read, and a start asks for it several times, so a file is read
and checked once.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from llavamed.errors import ConfigError

_STATED_OTHERWISE = {
    "attention.key_length",
    "attention.value_length",
    "expert_count",
    "expert_used_count",
    "rope.dimension_count",
    "use_parallel_residual",
    "vocab_size",
}
"""Settings that repeat what the shapes of tensors or the kind of model say."""
_SHOWN = 4
_KNOWN = {"gpt-2", "jais", "mpt", "olmo", "phi-2", *GGUF_PRE_TOKENIZER_SPLITS}
"""Ways to split words, by their names in GGUF files: GPT-2's, and others that transformers has."""
_DIGIT_BY_DIGIT = {"codeshell", "command-r", "exaone", "refact", "smollm", "starcoder"}
"""Ways that are GPT-2's once each digit is split off."""


class _Content(NamedTuple):
    """What a GGUF file says of itself."""

    kind: str
    """The kind of model."""
    fields: tuple[str, ...]
    tensors: tuple[str, ...]
    vocabulary: str
    """The kind of vocabulary; `gpt2` is one of bytes."""
    split: str
    """The way to split words; empty if it is not named."""


def read_gguf_config(source: str, file: Path, key: str) -> Any:
    """Return the Hugging Face config that transformers makes of a GGUF file.

    Args:
        source: The folder of the file, or the name on the hub that it stands below.
        file: The file on this machine.
        key: The config key that names the file, with its value, for errors.

    Raises:
        ConfigError: A tensor or setting of the file has no place in transformers' model.
    """
    return deepcopy(_checked_config(source, file, key, file.stat().st_mtime_ns))


@cache
def _checked_config(source: str, file: Path, key: str, modified: int) -> Any:
    """Read a config once; a file that was changed at another time is read again."""
    config = AutoConfig.from_pretrained(source, gguf_file=file.name, trust_remote_code=False)
    _check(file, config, key)
    return config


def _check(file: Path, config: Any, key: str) -> None:
    kind, fields, tensors, *_ = _read(file, file.stat().st_mtime_ns)
    read = GGUF_CONFIG_MAPPING.get(config.model_type) or GGUF_CONFIG_MAPPING.get(kind, {})
    own = {name.removeprefix(f"{kind}.") for name in fields if name.startswith(f"{kind}.")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(kind, TensorProcessor)(config=config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    lost = [
        *sorted(own - read.keys() - _STATED_OTHERWISE),
        *(name for name in tensors if name not in places),
    ]
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        raise ConfigError(
            f"{key}: holds {', '.join(lost[:_SHOWN])}{more}, which transformers does "
            f"not read from GGUF files of the kind {kind}, so that it would be another model; "
            "give its weights as safetensors"
        )


def split_words(tokenizer: Any, file: Path, key: str) -> None:
    """Let the tokenizer that transformers makes of a GGUF file split words as the file says.

    Args:
        key: The config key that names the file, with its value, for errors.

    Raises:
        ConfigError: The file does not say it, or names a way that is not known.
    """
    content = _read(file, file.stat().st_mtime_ns)
    if content.split in _DIGIT_BY_DIGIT:
        parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)
    elif content.vocabulary == "gpt2" and content.split not in _KNOWN:
        raise ConfigError(
            f"{key}: tokenizer.ggml.pre={content.split or None}: names no way to split words that "
            "is known here, and transformers would split them as GPT-2 does; name a folder with "
            "the model's tokenizer.json in model.tokenizer"
        )


@cache
def _read(file: Path, modified: int) -> _Content:
    """Return what a GGUF file says; one that was changed at another time is read again."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    names = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    kind, vocabulary, split = (
        str(reader.fields[name].contents()) if name in reader.fields else "" for name in names
    )
    tensors = tuple(tensor.name for tensor in reader.tensors)
    return _Content(kind, tuple(reader.fields), tensors, vocabulary, split)
