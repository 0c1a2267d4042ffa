"""Find out whether a language model changes the outputs of its output layer.

A LLaVA of transformers takes the decoder and the output layer of a language model, and nothing that
follows them. Some language models scale or bound these outputs. A LLaVA made of one would be
trained on other probabilities than those of its pretraining.
"""

import copy
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from llavamed.errors import ConfigError


class _Decoded(BaseModelOutputWithPast):
    """The output of any decoder: hidden states, and None for every other field."""

    def __getattr__(self, name: str) -> None:
        return None


def check_head(config: Any, key: str) -> None:
    """Check that the logits of a language model are what its output layer returns.

    The model is made on `meta`. Its decoder is replaced by one that returns given hidden states,
    and its output layer by the identity: the logits differ only if the model changes them
    elsewhere.

    Args:
        config: The Hugging Face config of the language model.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: The model changes them, or its output layer has a bias, which a LLaVA cannot
            hold.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ConfigError(
            f"{key}: the output layer of {config.model_type} has a bias, which a LLaVA of "
            "transformers does not have, so no export could hold it; use another language "
            "model"
        )
    hidden = torch.linspace(-40, 40, 2 * head.in_features).view(1, 2, -1)
    model.get_decoder().forward = lambda *_, **__: _Decoded(last_hidden_state=hidden)
    model.set_output_embeddings(nn.Identity())
    logits = hidden
    with suppress(Exception):  # a model of another structure tells nothing
        logits = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits
    if not torch.equal(logits, hidden):
        raise ConfigError(
            f"{key}: {config.model_type} scales or bounds the outputs of its output layer, which a "
            "LLaVA of transformers does not do, so it would be trained on other "
            "probabilities; use another language model"
        )
