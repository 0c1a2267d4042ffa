"""Read the configs of GGUF files, and refuse those of which transformers would make another model.

Transformers leaves out the tensors and the settings of such a file that it has no place for, and
only a log message at a level that is never shown says so. The list of a large vocabulary takes
seconds to read, and a start asks several times, so what a file says is read once.
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


def read_gguf_config(source: str, file: Path) -> Any:
    """Return the Hugging Face config that transformers makes of a GGUF file.

    Args:
        source: The folder of the file, or the name on the hub that it stands below.
        file: The file on this machine.
    """
    return deepcopy(_config(source, file, file.stat().st_mtime_ns))


def check_gguf(file: Path, config: Any, key: str) -> None:
    """Check that every tensor and setting of a GGUF file has a place in transformers' model.

    Args:
        file: The file.
        config: The Hugging Face config that transformers makes of it.
        key: The config key that names the file, with its value, for errors.

    Raises:
        ConfigError: One has none.
    """
    kind, fields, tensors = _read(file, file.stat().st_mtime_ns)
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


@cache
def _read(file: Path, modified: int) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the kind of model of a GGUF file, and the names of its fields and of its tensors.

    Args:
        file: The file.
        modified: The time of its last change, so that a file that has changed is read again.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)
    kind = str(reader.fields["general.architecture"].contents())
    return kind, tuple(reader.fields), tuple(tensor.name for tensor in reader.tensors)


@cache
def _config(source: str, file: Path, modified: int) -> Any:
    """Read a config; a file that was changed at another time is read again."""
    return AutoConfig.from_pretrained(source, gguf_file=file.name, trust_remote_code=False)
