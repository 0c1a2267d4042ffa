"""Recompute the activations of some layers in the backward pass, so that they are not kept."""

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from llavamed.config.stage import Recomputed


def recompute(model: Any, layers: Recomputed) -> None:
    """Let the layers of the tower and of the language model of a LLaVA recompute their activations.

    Args:
        model: A LLaVA.
        layers: All of them, none, or every Nth of each part, the first among them.
    """
    if not layers:
        return
    model.activation_checkpointing_enable()
    for part in (model.model.vision_tower, model.model.language_model):
        found = [each for each in part.modules() if isinstance(each, GradientCheckpointingLayer)]
        for number, layer in enumerate(found):
            layer.gradient_checkpointing = number % int(layers) == 0
