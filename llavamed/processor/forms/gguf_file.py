"""Read the configs of GGUF files, and refuse those of which transformers would make another model.

Transformers leaves out the tensors and the settings of such a file that it has no place for, and
only a log message at a level that is never shown says so. The list of a large vocabulary takes
seconds to read, and a start asks several times, so a file is read and checked once.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
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
    kind, fields, tensors = _read(file)
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


def _read(file: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the kind of model of a GGUF file, and the names of its fields and of its tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    kind = str(reader.fields["general.architecture"].contents())
    return kind, tuple(reader.fields), tuple(tensor.name for tensor in reader.tensors)
