"""Build the projector from image features to token embeddings, as in Hugging Face's LLaVA.

A linear projector is a two-layer projector without activation whose second layer is the identity
and never trains.
"""

from torch import nn
from transformers import LlavaConfig, LlavaNextConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

ACTIVATIONS = {"linear": "linear", "mlp2x_gelu": "gelu"}
"""Hugging Face's name of the activation between the layers, by our name of the projector."""


def make_projector(config: LlavaConfig | LlavaNextConfig) -> LlavaMultiModalProjector:
    """Return a projector with random weights from torch's global generator.

    That of a LLaVA-NeXT has the same shape.
    """
    projector = LlavaMultiModalProjector(config)
    if config.projector_hidden_act == "linear":
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)
    return projector
