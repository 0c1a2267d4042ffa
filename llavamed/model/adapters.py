"""Low-rank adapters in the language model, by peft, and the plain weights they end as.

They are injected into the layers, so the model stays Hugging Face's own LLaVA and its parameters
keep their names but for `base_layer`. Nothing else of ours imports peft.
"""

from typing import Any

import torch
from torch import nn

from llavamed.config.stage import Lora
from llavamed.errors import ConfigError
from llavamed.model.quantize import BLOCK, dequantized, is_quantized, quantize_linears

_NAME = "default"


def check_layers(decoder: nn.Module, lora: Lora) -> None:
    """Find out whether a language model, which may be on `meta`, has the layers that are adapted.

    Raises:
        ConfigError: A target is no linear layer, or a layer's rows are not whole blocks of NF4.
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
    """Give the language model adapters, which change nothing before they are trained.

    On the device `meta` nothing is quantised, for there is nothing to quantise.

    Args:
        model: A LLaVA.
        lora: Their settings.
        seed: Of their random halves; the other halves are zero.
        device: Where quantised layers go.

    Raises:
        ConfigError: As `check_layers`, or a package is missing.
    """
    from peft import LoraConfig, inject_adapter_in_model  # two seconds that only adapters cost

    decoder = model.model.language_model
    check_layers(decoder, lora)
    is_meta = device.type == "meta"
    if lora.quantize == "nf4" and not is_meta:
        quantize_linears(decoder, device)
        decoder.is_loaded_in_4bit = True  # how peft finds out
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
    """The layers that have adapters, by name."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def merge_adapters(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights a model without adapters needs to compute the same, in their dtype.

    A frozen matrix W becomes W + B A * alpha / r, added in fp32; one of four bits is unpacked
    first. A model without adapters gives back its weights.

    Args:
        model: With adapters.
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
