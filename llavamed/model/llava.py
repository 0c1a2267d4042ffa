"""Hugging Face's LLaVA: made of a tower and a language model, or loaded whole.

Nothing of it is our own class, so what is exported loads with plain transformers.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.utils.logging import disable_progress_bar

from llavamed.config.model import Model, Pretrained
from llavamed.errors import CheckpointError, ConfigError
from llavamed.model.projector import ACTIVATIONS, make_projector
from llavamed.processor.build import declared_config, num_image_tokens, part_config

disable_progress_bar()  # its bars, one a load and a save, say nothing that we do not

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
VOCABULARY_MULTIPLE = 64
"""Embedding rows are padded to a multiple of this, which tensor cores want."""


def build_model(
    model: Model, processor: LlavaProcessor, *, seed: int, precision: Literal["bf16", "fp32"]
) -> LlavaForConditionalGeneration:
    """The model a run begins with, the same for the same seed.

    Raises:
        ConfigError: Weights cannot be found or do not fit together.
        CheckpointError: Weights are damaged or not whole.
    """
    if model.weights is not None:
        return load_model(Path(model.weights), precision, model.attn_implementation)
    assert model.vision_tower is not None
    assert model.language_model is not None
    vision = part_config(model.vision_tower, "model.vision_tower")
    text = part_config(model.language_model, "model.language_model")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        language_model = _make_part(
            AutoModelForCausalLM, model.language_model, "model.language_model", text, precision
        )
        tower_class = CLIPVisionModel if vision.model_type == "clip_vision_model" else AutoModel
        tower = _make_part(tower_class, model.vision_tower, "model.vision_tower", vision, precision)
        _fit_vocabulary(language_model, processor, model.language_model)
        config = llava_config(model, tower.config, language_model.config)
        config.image_token_index = processor.image_token_id
        config.image_seq_length = num_image_tokens(processor)
        projector = make_projector(config).to(DTYPES[precision])
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = tower
    llava.model.multi_modal_projector = projector
    llava.model.language_model = language_model.get_decoder()
    llava.lm_head = language_model.get_output_embeddings()
    llava.generation_config = language_model.generation_config
    llava.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    llava.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    llava.generation_config.bos_token_id = processor.tokenizer.bos_token_id
    llava.set_attn_implementation(model.attn_implementation)
    return llava


def load_model(
    source: Path, precision: Literal["bf16", "fp32"], attn_implementation: str
) -> LlavaForConditionalGeneration:
    """A whole LLaVA from a folder or hub name.

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
    """The model without memory, for counting, from what the file declares; reads no weights.

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


def llava_config(model: Model, vision: Any, text: Any) -> LlavaConfig:
    """The config of a LLaVA of these two parts."""
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        projector_hidden_act=ACTIVATIONS[model.projector],
        vision_feature_layer=model.vision_feature_layer,
        vision_feature_select_strategy="default",
    )


def _make_part(
    auto_class: Any, part: Pretrained, key: str, config: Any, precision: Literal["bf16", "fp32"]
) -> Any:
    dtype = DTYPES[precision]
    if part.weights is not None:
        return _read_weights(auto_class, part.weights, f"{key}.weights", dtype=dtype)
    make = getattr(auto_class, "from_config", None) or auto_class._from_config
    return make(config, dtype=dtype)  # rotary frequencies stay float32, which `.to` would round


def _read_weights(auto_class: Any, source: str, key: str, **settings: Any) -> Any:
    """A model with all its weights from a folder or hub name. Raises: CheckpointError."""
    try:
        model_type = AutoConfig.from_pretrained(source).model_type
        if auto_class is LlavaForConditionalGeneration and model_type != "llava":
            raise ValueError(f"its model_type is {model_type}, not llava")
        model, report = auto_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{key}={source}: cannot be loaded: {str(error).strip().splitlines()[0]}; give a "
            "folder with config.json and safetensors, or a hub name this machine can reach"
        ) from error
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
