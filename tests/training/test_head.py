"""A language model whose logits are more than its output layer is refused before training."""

from typing import Any

import pytest
from transformers import AutoConfig

from llavamed.config.model import Model
from llavamed.errors import ConfigError
from llavamed.model.head import check_head
from llavamed.model.llava import check_forward, llava_config

TINY = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def config_of(kind: str, **settings: Any) -> Any:
    return AutoConfig.for_model(kind, **TINY, **settings)


@pytest.mark.parametrize(
    "config",
    [
        *(config_of(kind) for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "mixtral")),
        config_of("gemma3_text"),
        config_of("llama", tie_word_embeddings=True),
        config_of("granite", logits_scaling=1.0, embedding_multiplier=12.0),
        config_of("gemma2", final_logit_softcapping=None),
        config_of("cohere", logit_scale=1.0),
    ],
    ids=lambda config: str(config.model_type),
)
def test_a_language_model_whose_logits_are_its_output_layer_s_is_taken(config: Any) -> None:
    check_head(config, "model.language_model")


@pytest.mark.parametrize(
    "config",
    [
        config_of("granite", logits_scaling=8.0),
        config_of("gemma2", final_logit_softcapping=30.0),
        config_of("cohere", logit_scale=0.0625),
    ],
    ids=lambda config: str(config.model_type),
)
def test_one_that_changes_them_is_refused(config: Any) -> None:
    message = f"^model.language_model: {config.model_type} scales or bounds the outputs"
    with pytest.raises(ConfigError, match=message):
        check_head(config, "model.language_model")


def test_an_output_layer_with_a_bias_is_refused() -> None:
    with pytest.raises(ConfigError, match="the output layer of phi has a bias"):
        check_head(config_of("phi"), "model.language_model")


def clip_and(kind: str) -> tuple[Model, Any]:
    """Return the section of a tiny CLIP with a language model of this kind, and CLIP's config."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"model_type": "clip_vision_model", "num_attention_heads": 2}
    tower = AutoConfig.for_model(**vision, image_size=16, patch_size=8)
    parts = {"vision_tower": {"config": vision}, "language_model": {"config": {"model_type": kind}}}
    return Model.model_validate(parts), tower


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("siglip_vision_model", "is not a causal language model"),
        ("clip", "is not a causal language model"),
        ("t5", "is not a causal language model"),
        ("gemma3", "has parts besides text"),
    ],
)
def test_what_is_no_language_model_of_text_alone_is_refused(kind: str, problem: str) -> None:
    model, tower = clip_and(kind)
    key = f"model.language_model.config.model_type={kind}"
    with pytest.raises(ConfigError, match=f"^{key}: {problem}; name the weights of one for text"):
        llava_config(model, tower, AutoConfig.for_model(kind))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe"])
def test_a_mixture_of_experts_is_refused(kind: str) -> None:
    """Its adapters could not be merged, and its experts would not be kept in balance."""
    model, tower = clip_and(kind)
    for each in (kind, "llama"):
        config = llava_config(model, tower, config_of(each))
        if each == "llama":
            check_forward(config, "model")
            continue
        with pytest.raises(ConfigError, match=f"^model: {kind} is a mixture of experts, .*; use a"):
            check_forward(config, "model")
