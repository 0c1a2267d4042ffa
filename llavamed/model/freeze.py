"""Choose which parameters train in a stage, and count them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from llavamed.config.model import ModelPart
from llavamed.processor.tower import tower_of


@dataclass(frozen=True)
class PartCount:
    """The number of parameters in one part of the model."""

    part: ModelPart
    num_trained: int
    num_frozen: int


def part_of(parameter: str) -> ModelPart:
    """Return the part of LLaVA that a parameter belongs to, by its state-dict name."""
    if "vision_tower." in parameter:
        return "vision_tower"
    is_projector = "multi_modal_projector." in parameter or "image_newline" in parameter
    return "projector" if is_projector else "language_model"


def freeze(model: Any, trainable: Sequence[ModelPart]) -> list[PartCount]:
    """Make exactly the given parts trainable, and count parameters.

    Parameters that no gradient reaches stay frozen in any case: layers of the tower after the
    projected one, and the identity layer of a linear projector. So do the language model's own
    parameters once it has adapters, which then train in their place.

    Args:
        model: A LLaVA.

    Returns:
        The trained and frozen parameters of each part.
    """
    frozen = _unreached(model)
    if any(is_adapter(name) for name, _ in model.named_parameters()):
        names = [name for name, _ in model.named_parameters() if part_of(name) == "language_model"]
        frozen |= {name for name in names if not is_adapter(name)}
    counts: dict[ModelPart, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(part in trainable and name not in frozen)
        count = counts.setdefault(part, [0, 0])
        count[0 if parameter.requires_grad else 1] += size_of(parameter)
    return [PartCount(part, trained, frozen) for part, (trained, frozen) in sorted(counts.items())]


def _unreached(model: Any) -> set[str]:
    """Return the names of the parameters that the loss does not depend on."""
    hidden = {id(parameter) for parameter in _behind_features(model)}
    if model.config.projector_hidden_act == "linear":
        hidden |= {id(each) for each in model.model.multi_modal_projector.linear_2.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in hidden}


def _behind_features(model: Any) -> list[nn.Parameter]:
    """Return the parameters of the tower that its projected hidden state does not depend on.

    A backward pass on `meta` finds them for any kind of tower: the layers after that state, the
    last norm, a pooling head, a mask token.
    """
    config = model.config
    with torch.device("meta"), torch.enable_grad():
        # Not every attention computes on `meta`, and the model keeps its own.
        tower = AutoModel.from_config(deepcopy(config.vision_config), attn_implementation="eager")
        states = tower(
            torch.empty(1, 3, *[tower_of(config.vision_config, "vision_config").image_size] * 2),
            output_hidden_states=True,
        ).hidden_states
        layers = config.vision_feature_layer
        for layer in [layers] if isinstance(layers, int) else layers:
            states[layer].sum().backward(retain_graph=True)
    behind = {name for name, parameter in tower.named_parameters() if parameter.grad is None}
    parameters = model.model.vision_tower.named_parameters()
    return [parameter for name, parameter in parameters if name in behind]


def is_adapter(parameter: str) -> bool:
    """Return whether a parameter belongs to a low-rank adapter, by its state-dict name."""
    return ".lora_" in parameter


def size_of(parameter: Any) -> int:
    """Return the number of elements of a parameter, even if ZeRO-3 partitions or NF4 packs it."""
    if hasattr(parameter, "quant_state"):
        return int(parameter.quant_state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))
