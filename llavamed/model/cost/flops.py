"""Count the floating-point operations of a stage from the shape of the model alone."""

from dataclasses import dataclass
from typing import Any

from llavamed.config.model import ModelPart
from llavamed.config.stage import Stage
from llavamed.model.freeze import is_adapter, part_of, size_of
from llavamed.processor.tower import tower_of


@dataclass(frozen=True)
class Accelerator:
    """A GPU, as its maker states it."""

    flops_per_second: float
    """Dense bfloat16 operations a second."""
    memory_bytes: float
    """Size of its memory."""
    bytes_per_second: float
    """Bandwidth of its memory."""


ACCELERATORS = {
    "A100-40G": Accelerator(312e12, 40e9, 1.555e12),
    "A100": Accelerator(312e12, 80e9, 2.039e12),
    "H100": Accelerator(989e12, 80e9, 3.35e12),
    "H200": Accelerator(989e12, 141e9, 4.8e12),
    "L40S": Accelerator(362e12, 48e9, 0.864e12),
    "A10G": Accelerator(70e12, 24e9, 0.6e12),
}
"""GPUs by Ray's accelerator names. Source: NVIDIA's data sheets, without sparsity."""

_DEVICES = {
    "NVIDIA A100-SXM4-40GB": "A100-40G",
    "NVIDIA A100-PCIE-40GB": "A100-40G",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100 80GB PCIe": "A100",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA L40S": "L40S",
    "NVIDIA A10G": "A10G",
}
"""Accelerator names by CUDA's device names. Cards with another power limit (H100 PCIe, H100 NVL)
are left out."""


@dataclass(frozen=True)
class Workload:
    """The work of a stage as sums over all samples and epochs, or as arrays of sums by step."""

    num_tiles: float
    """Tiles of images that pass through the tower: one per image without pinpoints."""
    num_tokens: float
    num_supervised: float
    sum_squared_tokens: float
    """Sum of the squared length of each sample, to which attention is proportional."""


def accelerator_name(device: str) -> str | None:
    """Return Ray's name of a GPU, or None if it is unknown.

    Args:
        device: CUDA's name of the device.
    """
    return _DEVICES.get(device)


def peak_flops(device: str) -> float | None:
    """Return the dense bfloat16 operations a second of a GPU, or None if it is unknown.

    Args:
        device: CUDA's name of the device.
    """
    return ACCELERATORS[_DEVICES[device]].flops_per_second if device in _DEVICES else None


def stage_flops(model: Any, stage: Stage, work: Workload) -> Any:
    """Return the operations of a stage, or of each step, where a multiply-add counts as two.

    A forward pass costs 2 operations a weight and token. A backward pass costs as much again for
    the gradient of the input if anything before it trains, and as much again for the gradient of
    the weight if that trains. Causal attention counts half, and recomputed activations do not
    count. Source: PaLM (arXiv 2204.02311), appendix B.

    Args:
        model: The model, on any device, with its adapters if the stage trains some.
        work: The samples it processes.
    """
    config = model.config
    text, vision = config.text_config, config.vision_config
    weights = matrix_weights(model)
    shape = tower_of(vision, "vision_config")
    tile_tokens = shape.num_image_tokens(config.vision_feature_select_strategy)
    trained = stage.trainable
    tower = 3 if "vision_tower" in trained else 1
    projector = 1 + ("projector" in trained) + ("vision_tower" in trained)
    # Gradients pass through it to reach other parts; with adapters its weights need none.
    language = 3 if "language_model" in trained and stage.lora is None else 2
    adapters = sum(size_of(weight) for name, weight in model.named_parameters() if is_adapter(name))
    queries, _ = attention_widths(text)
    attention = 2 * text.num_hidden_layers * queries * work.sum_squared_tokens
    tower_attention = 4 * vision.num_hidden_layers * vision.hidden_size * shape.num_tokens**2
    return (
        tower * work.num_tiles * (2 * weights["vision_tower"] * shape.num_tokens + tower_attention)
        + projector * work.num_tiles * 2 * weights["projector"] * tile_tokens
        + language * 2 * weights["language_model"] * work.num_tokens
        + 3 * 2 * adapters * work.num_tokens
        + 3 * attention  # both factors are activations, which need a gradient in any case
        + language * 2 * text.vocab_size * text.hidden_size * work.num_supervised
    )


def attention_widths(text: Any) -> tuple[int, int]:
    """Return the features of all queries of a token, and of all its keys.

    Args:
        text: Transformers' config of a language model, whose heads may have a size of their own.
    """
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return heads * size, (getattr(text, "num_key_value_heads", None) or heads) * size


def matrix_weights(model: Any) -> dict[ModelPart, int]:
    """Return the number of weights each token is multiplied with, by part.

    These are all matrices except embeddings, the output layer and adapters.
    """
    counts: dict[ModelPart, int] = {"vision_tower": 0, "projector": 0, "language_model": 0}
    for name, parameter in model.named_parameters():
        is_other = "embed" in name or name.startswith("lm_head") or is_adapter(name)
        if parameter.ndim >= 2 and not is_other:
            counts[part_of(name)] += size_of(parameter)
    return counts
