"""Hugging Face's LLaVA: made of a tower and a language model, or loaded whole.

Nothing of it is our own class, so what is exported loads with plain transformers.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.utils.logging import disable_progress_bar

from llavamed.config.engine import Precision
from llavamed.config.model import Model, Pretrained
from llavamed.errors import CheckpointError, ConfigError
from llavamed.model.projector import ACTIVATIONS, make_projector
from llavamed.processor.build import num_image_tokens
from llavamed.processor.pretrained import declared_config, loading_problem, part_config
from llavamed.processor.tower import check_feature_layer, tower_of
from llavamed.storage.fetch import fetch_once

disable_progress_bar()  # its bars, one a load and a save, say nothing that we do not

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
VOCABULARY_MULTIPLE = 64
"""Embedding rows are padded to a multiple of this, which tensor cores want."""


def build_model(
    model: Model, processor: LlavaProcessor, *, seed: int, precision: Precision
) -> LlavaForConditionalGeneration:
    """Return the model a run begins with, the same for the same seed.

    Raises:
        ConfigError: Weights cannot be found or do not fit together.
        CheckpointError: Weights are damaged or not whole.
    """
    if model.weights is not None:
        return load_model(model.weights, precision, model.attn_implementation)
    assert model.vision_tower is not None
    assert model.language_model is not None
    vision = part_config(model.vision_tower, "model.vision_tower")
    text = part_config(model.language_model, "model.language_model")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        language_model = _make_part(
            AutoModelForCausalLM, model.language_model, "model.language_model", text, precision
        )
        # By its own config: the folder may hold a whole CLIP or SigLIP, with a text encoder.
        tower_class = MODEL_MAPPING[type(vision)]
        tower = _make_part(tower_class, model.vision_tower, "model.vision_tower", vision, precision)
        _fit_vocabulary(language_model, processor, model.language_model)
        config = llava_config(model, tower.config, language_model.config)
        config.image_token_index = processor.image_token_id
        config.image_seq_length = num_image_tokens(processor)
        config.text_config.architectures = [type(language_model).__name__]  # other engines ask
        projector = make_projector(config).to(DTYPES[precision])
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = tower
    llava.model.multi_modal_projector = projector
    llava.model.language_model = language_model.get_decoder()
    llava.lm_head = language_model.get_output_embeddings()
    llava.generation_config = language_model.generation_config
    llava.set_attn_implementation(model.attn_implementation)
    return llava


def load_model(
    source: str | Path, precision: Precision, attn_implementation: str
) -> LlavaForConditionalGeneration:
    """Return a whole LLaVA from a folder, the URI of one, or a hub name.

    Raises:
        CheckpointError: It cannot be found, or is not a whole LLaVA.
    """
    return _read_weights(
        LlavaForConditionalGeneration,
        str(source),
        "weights",
        dtype=DTYPES[precision],
        attn_implementation=attn_implementation,
    )


def shape_on_meta(model: Model) -> LlavaForConditionalGeneration:
    """Return the model without memory, for counting, from what the file declares.

    Raises:
        ConfigError: The file names weights without declaring their shape.
    """
    if model.vision_tower is None or model.language_model is None:
        raise ConfigError(
            f"model.weights={model.weights}: planning needs shapes; describe the model by "
            "vision_tower.config and language_model.config"
        )
    for key, part in (
        ("vision_tower", model.vision_tower),
        ("language_model", model.language_model),
    ):
        if not part.config:
            raise ConfigError(
                f"model.{key}.config: planning needs the shape of {part.weights}; declare it with "
                "model_type, hidden_size, num_hidden_layers ..."
            )
    config = llava_config(
        model,
        declared_config(model.vision_tower, "model.vision_tower"),
        declared_config(model.language_model, "model.language_model"),
    )
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)


def check_forward(config: LlavaConfig, key: str) -> None:
    """Pass an image and a few tokens through a LLaVA without memory, before anything is started.

    Args:
        config: Of the LLaVA.
        key: What names it in the run's config, for the error.

    Raises:
        ConfigError: The tower is of no known kind, has no such hidden state or makes another
            number of tokens than the text gets; or the language model takes no embeddings.
    """
    tower = tower_of(config.vision_config, f"{key}: vision_config")
    check_feature_layer(config.vision_feature_layer, tower, f"{key}: vision_feature_layer")
    number = tower.num_image_tokens(config.vision_feature_select_strategy)
    try:
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
            pixels = torch.empty(1, 3, tower.image_size, tower.image_size)
            features = torch.stack(model.get_image_features(pixels).pooler_output)
            # A mask of four dimensions: any other is looked into, which `meta` has no values for.
            mask = torch.zeros(1, 1, number, number)
            model.model.language_model(inputs_embeds=features, attention_mask=mask, use_cache=False)
    except Exception as error:  # a tower raises whatever its code meets
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{key}: an image cannot pass through the model: {type(error).__name__}: {reason}; "
            "correct its config, or use another tower or language model"
        ) from error
    if features.shape[1] != number:
        raise ConfigError(
            f"{key}: its tower makes {features.shape[1]} tokens of an image, not the {number} of "
            f"image_size={tower.image_size} and patch_size={tower.patch_size}; correct its config"
        )


def llava_config(model: Model, vision: Any, text: Any) -> LlavaConfig:
    """Return the config of a LLaVA of these two parts.

    Raises:
        ConfigError: The tower is of no known kind, or has no such hidden state.
    """
    tower = tower_of(vision, "model.vision_tower.config")
    check_feature_layer(model.vision_feature_layer, tower, "model.vision_feature_layer")
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        projector_hidden_act=ACTIVATIONS[model.projector],
        vision_feature_layer=model.vision_feature_layer,
        vision_feature_select_strategy=tower.strategy,
    )


def _make_part(
    auto_class: Any, part: Pretrained, key: str, config: Any, precision: Precision
) -> Any:
    dtype = DTYPES[precision]
    if part.weights is not None:
        return _read_weights(auto_class, part.weights, f"{key}.weights", dtype=dtype)
    make = getattr(auto_class, "from_config", None) or auto_class._from_config
    return make(config, dtype=dtype)  # rotary frequencies stay float32, which `.to` would round


def _read_weights(auto_class: Any, source: str, key: str, **settings: Any) -> Any:
    """Return a model with all its weights, and never run code that lies beside them.

    Raises:
        CheckpointError: They cannot be found or loaded, or are not whole.
    """
    try:
        folder = fetch_once(source)
        model_type = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if auto_class is LlavaForConditionalGeneration and model_type != "llava":
            raise ValueError(f"its model_type is {model_type}, not llava")
        model, report = auto_class.from_pretrained(
            folder,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **settings,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{key}={source}: {loading_problem(error)}") from error
    misshapen = {name for name, *_ in report["mismatched_keys"]}
    if wrong := sorted(report["missing_keys"] | misshapen):
        raise CheckpointError(
            f"{key}={source}: {len(wrong)} tensors are missing or of another shape, e.g. "
            f"{wrong[0]}; name a folder that holds a whole {type(model).__name__}"
        )
    return model


def _fit_vocabulary(language_model: Any, processor: LlavaProcessor, part: Pretrained) -> None:
    rows, needed = language_model.config.vocab_size, len(processor.tokenizer)
    if needed <= rows:
        return
    if part.weights is None:
        raise ConfigError(
            f"model.language_model.config.vocab_size={rows}: the tokenizer has {needed} entries; "
            f"set it to at least {needed}"
        )
    language_model.resize_token_embeddings(needed, pad_to_multiple_of=VOCABULARY_MULTIPLE)
