"""Let a LLaVA compute with faster kernels, which change its numbers by rounding and dropout only.

No other module imports Liger.
"""

import shutil
import sys
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from llavamed.config.engine import Kernels
from llavamed.errors import ConfigError
from llavamed.model.attention import attend_per_sample, avoid_cudnn, is_exchangeable

_COMPILERS = {"compile": ("g++", "clang++"), "liger": ("gcc", "clang")}
"""The compilers, one of which inductor or Triton needs."""
_FLASH_CAPABILITY = (8, 0)
"""The compute capability that PyTorch's flash attention requires."""
_HEAD_MULTIPLE, _LARGEST_HEAD = 8, 256
"""What PyTorch's flash attention requires of the features of a head; `varlen_attn` pads none."""
_SWISH = ("silu", "swish")
_LIGER_ACTIVATIONS = {
    "gemma3_text": ("gelu_pytorch_tanh",),
    "llama": _SWISH,
    "mistral": _SWISH,
    "phi3": _SWISH,
    "qwen2": _SWISH,
    "qwen3": _SWISH,
}
"""The language models that Liger is used for, and what its feed-forward layer computes for each."""


def use_kernels(model: Any, kernels: Kernels, device: torch.device) -> None:
    """Let a LLaVA attend within each sample by itself, with the kernels of its stage.

    Args:
        model: A LLaVA, without adapters, whose layers know whether they recompute.
        device: Where it will compute.

    Raises:
        ConfigError: The kernels cannot run on this machine or with this model.
    """
    _check_machine(kernels, device)
    decoder = model.model.language_model
    check_kernels(decoder, kernels)
    avoid_cudnn()
    attend_per_sample(model, varlen=kernels.varlen)
    if kernels.liger:
        use_liger(decoder)
    if kernels.compile:
        _compile_layers(decoder)


def check_kernels(decoder: Any, kernels: Kernels) -> None:
    """Check that a language model, on any device, is one that the kernels are for.

    Raises:
        ConfigError: It is not, or Liger is not installed.
    """
    if kernels.varlen:
        _check_varlen(decoder)
    if kernels.liger:
        check_liger(decoder.config)
    if kernels.compile and not _layers(decoder):
        raise ConfigError(
            f"engine.kernels.compile=true: finds no layers in language models of the kind "
            f"{decoder.config.model_type}; set it to false"
        )


def _layers(decoder: Any) -> list[GradientCheckpointingLayer]:
    return [each for each in decoder.modules() if isinstance(each, GradientCheckpointingLayer)]


def _compile_layers(decoder: Any) -> None:
    """Compile the layers of a language model, and of those that recompute, their parts.

    A layer recomputes within its forward pass, where the compiler cannot look.
    """
    for layer in _layers(decoder):
        for part in layer.children() if layer.gradient_checkpointing else (layer,):
            part.compile()


def _check_varlen(decoder: Any) -> None:
    config = decoder.config
    if not is_exchangeable(decoder):
        raise ConfigError(
            f"engine.kernels.varlen=true: the attention of language models of the kind "
            f"{config.model_type} cannot be exchanged; set it to false"
        )
    if dropout := getattr(config, "attention_dropout", 0):
        raise ConfigError(
            f"engine.kernels.varlen=true: its kernel knows no dropout of attention, and the "
            f"language model has attention_dropout={dropout:g}; set one of the two to its default"
        )
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if size % _HEAD_MULTIPLE or size > _LARGEST_HEAD:
        raise ConfigError(
            f"engine.kernels.varlen=true: its kernel takes heads of a multiple of {_HEAD_MULTIPLE} "
            f"up to {_LARGEST_HEAD} features, and those of the language model have {size}; set it "
            "to false"
        )


def use_liger(decoder: Any) -> None:
    """Give the norms and feed-forward layers of a language model Liger's kernels.

    Rotary embeddings stay as they are, because Liger replaces them for all models of this process;
    and so does the loss, which we compute from the supervised tokens alone.

    Raises:
        ConfigError: Liger is not installed, or has no kernels for this language model.
    """
    apply = check_liger(decoder.config)
    # Liger also replaces classes for the models to come, which may run on a CPU: take that back.
    module = vars(sys.modules[type(decoder).__module__])
    before = dict(module)
    apply(model=decoder, rope=False, cross_entropy=False, fused_linear_cross_entropy=False)
    module.update(before)


def check_liger(config: Any) -> Any:
    """Return the function of Liger that gives a language model its kernels.

    Args:
        config: Transformers' config of the language model.

    Raises:
        ConfigError: Liger is not installed, or is not used for this kind or its activation.
    """
    if config.model_type not in _LIGER_ACTIVATIONS:
        raise ConfigError(
            f"engine.kernels.liger=true: is for language models of the kinds "
            f"{', '.join(sorted(_LIGER_ACTIVATIONS))}, and this one is {config.model_type}; set it "
            "to false"
        )
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    if activation not in (known := _LIGER_ACTIVATIONS[config.model_type]):
        raise ConfigError(
            f"engine.kernels.liger=true: its feed-forward layer computes {' or '.join(known)}, and "
            f"the language model has {activation}; set it to false"
        )
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ModuleNotFoundError as error:
        raise ConfigError(
            "engine.kernels.liger=true: needs the package liger-kernel, which is not installed; "
            "install llavamed[liger], or set it to false"
        ) from error
    return MODEL_TYPE_TO_APPLY_LIGER_FN[config.model_type]


def check_capability(capability: tuple[int, int], gpu: str) -> None:
    """Check that a GPU is not too old for PyTorch's flash attention. Raises: ConfigError.

    Args:
        gpu: Its name, for the error.
    """
    if capability < _FLASH_CAPABILITY:
        needed, found = ("{}.{}".format(*each) for each in (_FLASH_CAPABILITY, capability))
        raise ConfigError(
            f"engine.kernels.varlen=true: its kernel needs a GPU of compute capability {needed} or "
            f"more, such as A100 or L4, and {gpu} has {found}; set it to false, or use other GPUs"
        )


def _check_machine(kernels: Kernels, device: torch.device) -> None:
    for name in ("liger", "varlen"):
        if getattr(kernels, name) and device.type != "cuda":
            raise ConfigError(
                f"engine.kernels.{name}=true: its kernels are for NVIDIA GPUs, and this worker "
                f"computes on {device.type}; set it to false, or train where there is a GPU"
            )
    if kernels.varlen and torch.cuda.is_available():
        check_capability(
            torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
        )
    for name, compilers in _COMPILERS.items():
        if getattr(kernels, name) and not any(map(shutil.which, compilers)):
            raise ConfigError(
                f"engine.kernels.{name}=true: compiles kernels when they are first used, and this "
                f"machine has none of the compilers {', '.join(compilers)}; install one, or set it "
                "to false"
            )
