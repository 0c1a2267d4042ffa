"""Add low-rank adapters to the language model with peft, and merge them into plain weights.

The adapters are injected into the layers, so the model stays Hugging Face's own LLaVA, and its
parameters keep their names except for `base_layer`. No other module imports peft.
"""

from typing import Any

import torch
from torch import nn

from llavamed.config.stage import Lora
from llavamed.errors import ConfigError
from llavamed.model.quantize import BLOCK, dequantized, is_quantized, quantize_linears

_NAME = "default"


def check_layers(decoder: nn.Module, lora: Lora) -> None:
    """Check that a language model, which may be on `meta`, has the layers to adapt.

    Raises:
        ConfigError: A target is not a linear layer, or the rows of a layer are not whole NF4
            blocks.
    """
    linears = {name: each for name, each in decoder.named_modules() if isinstance(each, nn.Linear)}
    for target in lora.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in linears):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise ConfigError(
                f"lora.target_modules={target}: the language model has no linear layer of this "
                f"name; use some of: {known}"
            )
    if lora.quantize == "nf4":
        for name, linear in linears.items():
            if linear.in_features % BLOCK:  # bitsandbytes 0.50 unpacks them wrongly on CPUs
                raise ConfigError(
                    f"lora.quantize=nf4: the layer {name} has {linear.in_features} inputs, not "
                    f"a multiple of the blocks of {BLOCK} that share a scale; set it to none"
                )


def add_adapters(model: Any, lora: Lora, *, seed: int, device: torch.device) -> None:
    """Add adapters to the language model, which change nothing until they are trained.

    On the device `meta` the layers are not quantized.

    Args:
        model: A LLaVA.
        seed: Seed for the A matrices; the B matrices are zero.
        device: The device of quantized layers.

    Raises:
        ConfigError: The layers do not fit (see `check_layers`), or a package is missing.
    """
    from peft import LoraConfig, inject_adapter_in_model  # importing it takes two seconds

    decoder = model.model.language_model
    check_layers(decoder, lora)
    is_meta = device.type == "meta"
    if lora.quantize == "nf4" and not is_meta:
        quantize_linears(decoder, device)
        decoder.is_loaded_in_4bit = True  # peft looks for this attribute
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, decoder, _NAME, low_cpu_mem_usage=is_meta)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that have adapters, by name."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def merge_adapters(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights with which a model without adapters computes the same, in their dtype.

    A frozen matrix W becomes W + B A * alpha / r, added in float32; a matrix of four bits is
    dequantized first. The weights of a model without adapters are returned unchanged. Source: LoRA
    (arXiv 2106.09685), section 4.1.

    Args:
        model: The model with adapters.
        weights: All its weights on the CPU, by state-dict name.
    """
    plain = {
        name.replace(".base_layer.", "."): weight
        for name, weight in weights.items()
        if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if is_quantized(module):
            plain[f"{name.removesuffix('.base_layer')}.weight"] = dequantized(module)
    for name, layer in adapted_layers(model).items():
        base = plain[f"{name}.weight"]
        a, b = (weights[f"{name}.lora_{which}.{_NAME}.weight"].float() for which in "AB")
        plain[f"{name}.weight"] = (base.float() + layer.scaling[_NAME] * (b @ a)).to(base.dtype)
    return plain
