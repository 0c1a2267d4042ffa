"""Recompute the activations of some layers in the backward pass, so that they are not kept."""

from typing import Any

from llavamed.config.stage import Recomputed


def recompute(model: Any, layers: Recomputed) -> None:
    """Let the layers of the tower and of the language model of a LLaVA recompute their activations.

    Calling transformers' method on a whole LLaVA would make the input of the first layers require a
    gradient, also in a frozen tower, which would then keep activations and run backward.

    Args:
        model: A LLaVA.
        layers: All of them, none, or every Nth of each part, beginning with the first.
    """
    if not layers:
        return
    for part in (model.model.vision_tower, model.model.language_model):
        part.activation_checkpointing_enable(every_n_layers=int(layers))
