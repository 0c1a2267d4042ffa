"""What a model costs: floating-point operations and bytes, by arithmetic from its shape alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llavamed.config.engine import Engine
from llavamed.config.model import ModelPart
from llavamed.config.stage import Stage
from llavamed.model.adapters import adapted_layers
from llavamed.model.freeze import PartCount, is_adapter, part_of, size_of


@dataclass(frozen=True)
class Accelerator:
    """A GPU: dense bf16 operations a second and bytes of memory, as its maker states them."""

    flops_per_second: float
    memory_bytes: float


ACCELERATORS = {
    "A100-40G": Accelerator(312e12, 40e9),
    "A100": Accelerator(312e12, 80e9),
    "H100": Accelerator(989e12, 80e9),
    "H200": Accelerator(989e12, 141e9),
    "L40S": Accelerator(362e12, 48e9),
    "A10G": Accelerator(70e12, 24e9),
}
"""By Ray's accelerator names. Source: NVIDIA's data sheets, without sparsity."""

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
"""CUDA's names of them; cards of another power limit (H100 PCIe, H100 NVL) are left out."""

WORKSPACE_BYTES = 2e9
"""Kernels, communication buffers and fragmentation, beside what is counted."""


NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""A quantised weight: four bits, a scale of eight for 64 of them, and one of 32 for 256 scales."""


@dataclass(frozen=True)
class Workload:
    """Sums over all samples of a stage, all epochs; or, as arrays, over those of each step."""

    num_images: float
    num_tokens: float
    num_supervised: float
    sum_squared_tokens: float
    """Of the squared length of each sample, which attention costs."""


def peak_flops(device: str) -> float | None:
    """Dense bf16 operations a second of a GPU by CUDA's name of it; none of one we do not know."""
    return ACCELERATORS[_DEVICES[device]].flops_per_second if device in _DEVICES else None


def stage_flops(model: Any, stage: Stage, work: Workload) -> Any:
    """Operations of a stage, or of each step, a multiplication and addition counted as two.

    A forward pass costs 2 a weight and token; a backward pass the same again for the gradient of
    the input, where anything before it learns, and the same again for that of the weight, where it
    learns. Causal attention is counted half, and recomputed activations not at all. Source: the
    counting of PaLM, appendix B.

    Args:
        model: Of the run, on any device; with its adapters, when the stage trains some.
        stage: Which stage.
        work: What it processes.
    """
    config = model.config
    text, vision = config.text_config, config.vision_config
    weights = matrix_weights(model)
    image_tokens = (vision.image_size // vision.patch_size) ** 2
    trained = stage.trainable
    tower = 3 if "vision_tower" in trained else 1
    projector = 1 + ("projector" in trained) + ("vision_tower" in trained)
    # Gradients cross it to reach the others; beside adapters its own weights need none.
    language = 3 if "language_model" in trained and stage.lora is None else 2
    adapters = sum(size_of(weight) for name, weight in model.named_parameters() if is_adapter(name))
    attention = 2 * text.num_hidden_layers * text.hidden_size * work.sum_squared_tokens
    tower_attention = 4 * vision.num_hidden_layers * vision.hidden_size * (image_tokens + 1) ** 2
    return (
        tower
        * work.num_images
        * (2 * weights["vision_tower"] * (image_tokens + 1) + tower_attention)
        + projector * work.num_images * 2 * weights["projector"] * image_tokens
        + language * 2 * weights["language_model"] * work.num_tokens
        + 3 * 2 * adapters * work.num_tokens
        + 3 * attention  # it has no weights: both its factors need a gradient, frozen or not
        + language * 2 * text.vocab_size * text.hidden_size * work.num_supervised
    )


def matrix_weights(model: Any) -> dict[ModelPart, int]:
    """Weights a token is multiplied with, by part: all matrices but embeddings and the output.

    Adapters are not among them.
    """
    counts: dict[ModelPart, int] = {"vision_tower": 0, "projector": 0, "language_model": 0}
    for name, parameter in model.named_parameters():
        is_other = "embed" in name or name.startswith("lm_head") or is_adapter(name)
        if parameter.ndim >= 2 and not is_other:
            counts[part_of(name)] += size_of(parameter)
    return counts


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU needs, by what for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    workspace: float = WORKSPACE_BYTES

    @property
    def total(self) -> float:
        """All of it."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.workspace
        )


def stage_memory(
    model: Any,
    counts: Sequence[PartCount],
    *,
    stage: Stage,
    engine: Engine,
    num_workers: int,
    tokens: float,
    supervised: float,
) -> Memory:
    """Bytes of one GPU at the peak of a step.

    Args:
        model: Of the run, on any device; with its adapters, when the stage trains some.
        counts: What `freeze` found.
        stage: Which stage.
        engine: ZeRO stage, precision and offload.
        num_workers: GPUs that share out what the ZeRO stage shares.
        tokens: Tokens of one forward pass.
        supervised: Supervised tokens of one forward pass, whose logits are kept.
    """
    number = sum(count.num_trained + count.num_frozen for count in counts)
    trained = sum(count.num_trained for count in counts)
    width = 2 if engine.precision == "bf16" else 4
    # AdamW's two moments, and beside bf16 weights the fp32 copy they are updated from.
    moments = 2 if stage.optimizer.name == "adamw_8bit" else 8
    state = trained * (moments + (4 if engine.precision == "bf16" else 0))
    quantized = 0
    if stage.lora is not None and stage.lora.quantize == "nf4":
        quantized = matrix_weights(model)["language_model"]
    share = [1 / num_workers if engine.zero_stage >= level else 1.0 for level in (1, 2, 3)]
    return Memory(
        weights=((number - quantized) * width + quantized * NF4_BYTES) * share[2],
        gradients=trained * width * share[1],
        optimizer=0.0 if engine.offload_optimizer == "cpu" else state * share[0],
        activations=tokens * _activation_bytes_per_token(model, stage, width),
        logits=supervised * model.config.text_config.vocab_size * (width + 4 + 4),
    )


def _activation_bytes_per_token(model: Any, stage: Stage, width: int) -> float:
    """What the language model keeps for the backward pass, counted by hand for a Llama layer.

    Two norms with their fp32 copies, queries, keys and values before and after rotation, attention
    output, two residuals, and four of the wide vectors between the feed-forward matrices.
    """
    text = model.config.text_config
    keys = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    layer = width * (11 * text.hidden_size + 4 * keys + 4 * text.intermediate_size)
    adapters = _adapter_bytes_per_token(model, stage, width)
    if stage.gradient_checkpointing:
        own = text.num_hidden_layers * text.hidden_size * width
        return own + layer + adapters / text.num_hidden_layers
    return text.num_hidden_layers * layer + adapters


def _adapter_bytes_per_token(model: Any, stage: Stage, width: int) -> float:
    """What adapters keep beside it: the vector between their halves, and with dropout their input.

    Without dropout that is the input of the layer, which is counted there.
    """
    if stage.lora is None:
        return 0.0
    wide = sum(layer.in_features for layer in adapted_layers(model).values())
    dropped = wide * (width + 1) if stage.lora.dropout else 0  # the input, and a byte of mask
    return float(len(adapted_layers(model)) * stage.lora.r * width + dropped)
