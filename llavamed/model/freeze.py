"""Which parameters learn in a stage, and how many there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from llavamed.config.model import ModelPart
from llavamed.processor.tower import tower_of


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part of the model."""

    part: ModelPart
    num_trained: int
    num_frozen: int


def part_of(parameter: str) -> ModelPart:
    """The part a parameter of LLaVA belongs to, by its name in the state dict."""
    if "vision_tower." in parameter:
        return "vision_tower"
    return "projector" if "multi_modal_projector." in parameter else "language_model"


def freeze(model: Any, trainable: Sequence[ModelPart]) -> list[PartCount]:
    """Let exactly the given parts learn, and count.

    Parameters that no gradient reaches stay frozen whatever is asked: layers of the tower behind
    the one that is projected, and the identity layer of a linear projector. So do a language
    model's own parameters once it has adapters, which then learn in their place.
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
    """Return the parameters of tower and projector that the loss does not depend on."""
    hidden = {id(parameter) for parameter in _behind_features(model)}
    if model.config.projector_hidden_act == "linear":
        hidden |= {id(each) for each in model.model.multi_modal_projector.linear_2.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in hidden}


def _behind_features(model: Any) -> list[nn.Parameter]:
    """Return the tower's parameters that its projected hidden state does not depend on.

    They are found by a backward pass without memory: layers behind that state, the last norm, a
    pooling head, a mask token, whatever the kind of tower.
    """
    config = model.config
    with torch.device("meta"), torch.enable_grad():
        tower = AutoModel.from_config(config.vision_config)
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
    """Whether a parameter belongs to a low-rank adapter, by its name in the state dict."""
    return ".lora_" in parameter


def size_of(parameter: Any) -> int:
    """Elements of a parameter, also when ZeRO-3 has scattered it or four bits hold each."""
    if hasattr(parameter, "quant_state"):
        return int(parameter.quant_state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))
