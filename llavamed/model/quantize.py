"""Frozen linear layers in four bits, and nothing else of ours imports bitsandbytes."""

from typing import Any

import torch
from torch import nn

from llavamed.errors import ConfigError

BLOCK = 64
"""Weights of a row that share a scale; a row must be made of whole blocks."""


def load_bitsandbytes(setting: str) -> Any:
    """The library.

    Args:
        setting: `key=value` that needs it, for the error.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(
            f"{setting}: needs the package bitsandbytes, which is not installed; install "
            "llavamed[quantize], or choose a setting without it"
        ) from error
    return bitsandbytes


def quantize_linears(module: nn.Module, device: torch.device) -> None:
    """Replace every linear layer below `module` by one of four bits a weight, on `device`.

    The values are NF4 in blocks, whose scales are quantised once more; the product is
    computed in the dtype the weights had. Source: QLoRA (arXiv 2305.14314), section 3.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    layers = load_bitsandbytes("lora.quantize=nf4").nn
    for parent in list(module.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, nn.Linear):
                small = layers.Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=linear.bias is not None,
                    compute_dtype=linear.weight.dtype,
                    compress_statistics=True,
                    quant_type="nf4",
                    device="meta",
                )
                small.weight = layers.Params4bit(
                    linear.weight.data, requires_grad=False, quant_type="nf4", module=small
                )
                small.bias = linear.bias
                small.register_state_dict_post_hook(_leave_out_scales)
                setattr(parent, name, small.to(device))


def is_quantized(module: nn.Module) -> bool:
    """Whether it is a linear layer of four bits."""
    return hasattr(getattr(module, "weight", None), "quant_state")


def dequantized(linear: Any) -> torch.Tensor:
    """The weights a layer of four bits computes with, on the CPU, in their dtype before."""
    state = linear.weight.quant_state
    functional = load_bitsandbytes("lora.quantize=nf4").functional
    return functional.dequantize_4bit(linear.weight.data, state).cpu()


def _leave_out_scales(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """The scales are no parameters, so DeepSpeed would save them without what they scale."""
    for name in [name for name in state if name.startswith(f"{prefix}weight.")]:
        del state[name]
