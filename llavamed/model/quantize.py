"""Quantize frozen linear layers to four bits. No other module imports bitsandbytes."""

from typing import Any

import torch
from torch import nn

from llavamed.errors import ConfigError

BLOCK = 64
"""Weights of a row that share a scale; a row must consist of whole blocks."""


def load_bitsandbytes(setting: str) -> Any:
    """Import bitsandbytes. Raises: ConfigError.

    Args:
        setting: The `key=value` that needs it, for the error.
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
    """Replace every linear layer below `module` by one with four bits a weight, on `device`.

    The values are NF4 in blocks whose scales are quantized too; products are computed in the dtype
    that the weights had. Source: QLoRA (arXiv 2305.14314), section 3.

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
    """Return whether a module is a linear layer of four bits."""
    return hasattr(getattr(module, "weight", None), "quant_state")


def dequantized(linear: Any) -> torch.Tensor:
    """Return the weights a layer of four bits computes with, on the CPU, in the dtype they had."""
    state = linear.weight.quant_state
    functional = load_bitsandbytes("lora.quantize=nf4").functional
    return functional.dequantize_4bit(linear.weight.data, state).cpu()


def _leave_out_scales(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Remove the scales from a state dict: DeepSpeed would save them without the frozen weights."""
    for name in [name for name in state if name.startswith(f"{prefix}weight.")]:
        del state[name]
