"""Estimate the GPU memory that a stage needs from the shape of the model alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llavamed.config.engine import Engine
from llavamed.config.stage import Stage
from llavamed.model.adapters import adapted_layers
from llavamed.model.cost.flops import attention_widths, matrix_weights
from llavamed.model.freeze import PartCount
from llavamed.processor.tower import tower_of
from llavamed.storage.manifest import PlannedBytes

WORKSPACE_BYTES = 2e9
"""Kernels, communication buffers and fragmentation, which are not counted otherwise."""
_SUB_GROUP = 1e9
"""Weights that ZeRO-3 updates at a time, DeepSpeed's `sub_group_size`."""
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a quantized weight: 4 bits, a scale of 8 bits for 64 weights, and a second one of 32
bits for 256 scales."""
_WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a number, by its format."""


@dataclass(frozen=True)
class Memory:
    """The bytes of memory on one GPU."""

    counted: PlannedBytes
    """What is counted, by purpose."""
    workspace: float = WORKSPACE_BYTES

    @property
    def parts(self) -> dict[str, float]:
        """The bytes of all parts by their purpose, with the workspace as the last."""
        return {**vars(self.counted), "workspace": self.workspace}

    @property
    def total(self) -> float:
        """The most bytes of all parts at once."""
        return self.counted.total + self.workspace

    def times(self, factor: float) -> "Memory":
        """Return the same with what is counted multiplied."""
        parts = vars(self.counted).items()
        return Memory(PlannedBytes(**{name: factor * value for name, value in parts}))


def stage_memory(
    model: Any,
    counts: Sequence[PartCount],
    *,
    stage: Stage,
    engine: Engine,
    num_workers: int,
    longest: float,
    supervised: float,
    tiles_per_token: float,
) -> Memory:
    """Return the memory of one GPU at the peak of a step.

    Args:
        model: The model, on any device, with its adapters if the stage trains some.
        counts: The result of `freeze`.
        engine: ZeRO stage, precision and offload.
        num_workers: The GPUs among which ZeRO partitions the state.
        longest: Tokens of the longest sample.
        supervised: Fraction of the tokens that are supervised, whose logits are kept.
        tiles_per_token: Tiles of images that pass through the tower, divided by tokens, of the
            sample with most of them.
    """
    # Without packing the samples of a pass are padded to the longest.
    tokens = stage.pack_tokens if stage.packing else stage.micro_batch_size * longest
    number = sum(count.num_trained + count.num_frozen for count in counts)
    trained = sum(count.num_trained for count in counts)
    width = _WIDTHS[engine.precision]
    sums = engine.gradient_format(stage.forward_passes(num_workers))
    # Count AdamW's two moments and, for bf16 weights, the fp32 copy that is updated.
    moments = 2 if stage.optimizer.name == "adamw_8bit" else 8
    state = trained * (moments + (4 if engine.precision == "bf16" else 0))
    quantized = 0
    if stage.lora is not None and stage.lora.quantize == "nf4":
        quantized = matrix_weights(model)["language_model"]
    share = [1 / num_workers if engine.zero_stage >= level else 1.0 for level in (1, 2, 3)]
    counted = PlannedBytes(
        weights=((number - quantized) * width + quantized * NF4_BYTES) * share[2],
        gradients=trained * _WIDTHS[sums] * share[1],
        optimizer=0.0 if engine.offload_optimizer == "cpu" else state * share[0],
        activations=tokens * _activation_bytes_per_token(model, stage, engine, width)
        + tokens * tiles_per_token * _tower_bytes_per_tile(model, stage, width),
        logits=supervised * tokens * model.config.text_config.vocab_size * (width + 4 + 4),
        update=_update_bytes(stage, engine, trained * share[0], adds_in_bf16=sums == "bf16"),
    )
    return Memory(counted)


def _update_bytes(stage: Stage, engine: Engine, own: float, *, adds_in_bf16: bool) -> float:
    """Return what the optimizer's step holds beside the gradients and its state.

    ZeRO-1 and 2 join the gradients into one tensor, and copy one in bf16 in fp32; ZeRO-3 copies a
    billion at a time. Without ZeRO a gradient in bf16 is freed when its fp32 copy is there, but for
    `adamw_8bit`.

    Args:
        engine: ZeRO stage, precision and offload.
        own: The weights that this GPU updates.
        adds_in_bf16: Whether the gradients of a step's passes are added up in bf16.
    """
    if engine.offload_optimizer == "cpu":
        return 0.0
    is_bf16 = engine.precision == "bf16"
    if engine.zero_stage == 3:
        return 4 * min(own, _SUB_GROUP) if is_bf16 else 0.0
    if engine.zero_stage > 0:
        return own * (6 if adds_in_bf16 else 4)
    kept = 4 if stage.optimizer.name == "adamw_8bit" and adds_in_bf16 else 2
    return own * kept if is_bf16 else 0.0


def _activation_bytes_per_token(model: Any, stage: Stage, engine: Engine, width: int) -> float:
    """Return what the language model keeps for the backward pass, counted for a Llama layer.

    Frozen, these are the inputs of two norms in fp32, queries, keys, values and the attention
    output, and three wide vectors of the feed-forward part. Weights that train keep the inputs of
    their products too, and those of norms what they scale. Liger and compiled layers compute the
    fp32 copies and one of the wide vectors again. DeepSpeed's own product of ZeRO-3 keeps its
    inputs in any case.
    """
    text, wide = model.config.text_config, model.config.text_config.intermediate_size
    hidden, lora = text.hidden_size, stage.lora is not None
    learns = "language_model" in stage.trainable and not lora
    queries, keys = attention_widths(text)
    again = engine.kernels.liger or engine.kernels.compile
    layer = (2 if again else 4) * hidden + 2 * (queries + keys) + (2 if again else 3) * wide
    if learns or lora or engine.zero_stage == 3:
        layer += 2 * hidden + queries + wide
    if learns and not again:
        layer += 2 * hidden
    kept = width * layer + _adapter_bytes_per_token(model, stage, width) / text.num_hidden_layers
    return _kept(stage, text.num_hidden_layers, kept, hidden * width)


def _tower_bytes_per_tile(model: Any, stage: Stage, width: int) -> float:
    """Return what the tower holds of a tile: the layer at work, and if it trains all layers.

    A layer of a vision transformer has two norms, queries, keys and values, the attention output,
    two residuals, and two wide vectors of the feed-forward part.
    """
    vision = model.config.vision_config
    num_tokens = tower_of(vision, "vision_config").num_tokens
    hidden = vision.hidden_size
    wide = getattr(vision, "intermediate_size", 4 * hidden)
    layer = width * (10 * hidden + 2 * wide)
    if "vision_tower" not in stage.trainable:
        return float(num_tokens * layer)
    return num_tokens * _kept(stage, vision.num_hidden_layers, layer, hidden * width)


def _kept(stage: Stage, number: int, layer: float, own: float) -> float:
    """Return what some layers keep: all, or only their input and what one of them recomputes.

    Args:
        number: How many layers there are.
        layer: Bytes that a layer keeps.
        own: Bytes of its input.
    """
    recomputed = stage.recomputed_layers(number)
    return (number - recomputed) * layer + recomputed * own + (layer if recomputed else 0.0)


def _adapter_bytes_per_token(model: Any, stage: Stage, width: int) -> float:
    """Return what adapters keep: the vector between A and B, and with dropout their input.

    Without dropout the input is that of the layer, which is already counted.
    """
    if stage.lora is None:
        return 0.0
    wide = sum(layer.in_features for layer in adapted_layers(model).values())
    dropped = wide * (width + 1) if stage.lora.dropout else 0  # the input, and a byte of mask
    return float(len(adapted_layers(model)) * stage.lora.r * width + dropped)
