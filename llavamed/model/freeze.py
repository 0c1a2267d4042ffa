"""Which parameters learn in a stage, and how many there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from llavamed.config.model import ModelPart


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
    tower, config = model.model.vision_tower, model.config
    num_layers = config.vision_config.num_hidden_layers
    behind: list[nn.Module] = []
    for name, module in tower.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            # hidden_states[-1] is the last layer's output, so -2 leaves one layer behind it.
            behind.extend(module[num_layers + 1 + config.vision_feature_layer :])
        elif name.rpartition(".")[2] == "post_layernorm":
            behind.append(module)
    if config.projector_hidden_act == "linear":
        behind.append(model.model.multi_modal_projector.linear_2)
    hidden = {id(parameter) for module in behind for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in hidden}


def is_adapter(parameter: str) -> bool:
    """Whether a parameter belongs to a low-rank adapter, by its name in the state dict."""
    return ".lora_" in parameter


def size_of(parameter: Any) -> int:
    """Elements of a parameter, also when ZeRO-3 has scattered it or four bits hold each."""
    if hasattr(parameter, "quant_state"):
        return int(parameter.quant_state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))
