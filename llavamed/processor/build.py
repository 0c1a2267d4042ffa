"""Build the processor: tokenizer, image settings and chat template as one LlavaProcessor.

It is built once, before any dataset is prepared, is stored next to the prepared datasets, and goes
unchanged into every export. So training, evaluation and serving see the same tokens and pixels.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from transformers import AutoProcessor, LlavaNextProcessor, LlavaProcessor

from llavamed.config.model import Model
from llavamed.errors import ConfigError
from llavamed.processor.image_processor import make_image_processor, settings_of
from llavamed.processor.images import ImageSettings
from llavamed.processor.pretrained import (
    check_rows,
    load_pretrained,
    part_config,
    pinpoints_of,
    set_pinpoints,
    whole_config,
)
from llavamed.processor.templates import TOKENIZER, chat_template, get_template, own_chat_template
from llavamed.processor.thinking import with_thinking
from llavamed.processor.tiles import Tiling
from llavamed.processor.token_labels import check_tokenizer, repair_merges
from llavamed.processor.tokenizer import check_vocab_size, make_tokenizer, set_pad_token
from llavamed.processor.tower import tower_of
from llavamed.processor.turns import IMAGE_PLACEHOLDER

Processor: TypeAlias = LlavaProcessor | LlavaNextProcessor
"""The processor of a LLaVA, which reads an image in one tile, or of a LLaVA-NeXT."""


def build_processor(model: Model, texts: Iterator[str]) -> Processor:
    """Build the processor of a model.

    Args:
        texts: Text to train a tokenizer on; read only for a random language model without one.

    Raises:
        ConfigError: The tokenizer or the tower cannot be found, the template is unknown or says
            something else about thinking parts, or the parts do not fit together.
    """
    if model.weights is not None:
        processor = _whole_processor(model)
    else:
        assert model.vision_tower is not None
        vision = part_config(model.vision_tower, "model.vision_tower")
        tower = tower_of(vision, "model.vision_tower.config")
        kind = LlavaProcessor if model.image_grid_pinpoints is None else LlavaNextProcessor
        processor = kind(
            image_processor=make_image_processor(model, tower),
            tokenizer=make_tokenizer(model, texts),
            patch_size=tower.patch_size,
            vision_feature_select_strategy=tower.strategy,
            num_additional_image_tokens=tower.num_prefix_tokens,
        )
        check_vocab_size(model, processor.tokenizer)
    set_pad_token(processor.tokenizer)
    if model.template != TOKENIZER:
        processor.chat_template = chat_template(get_template(model.template))
        processor.tokenizer.chat_template = processor.chat_template
    else:
        # Older files of a whole LLaVA keep its template apart from that of its language model.
        processor.tokenizer.chat_template = (
            processor.chat_template or processor.tokenizer.chat_template
        )
        source = own_chat_template(processor.tokenizer)
        written = with_thinking(source, model.thinking)
        processor.chat_template = processor.tokenizer.chat_template = written
    return processor


def load_processor(folder: Path) -> Processor:
    """Load a processor that was saved by `save_pretrained`."""
    return AutoProcessor.from_pretrained(str(folder), backend="pil", trust_remote_code=False)


def image_settings(
    processor: Processor, backend: Literal["exact", "fast"] = "exact"
) -> ImageSettings:
    """Return what the processor does to an image, as settings of `llavamed.processor.images`.

    Raises:
        ConfigError: The processor does something that `llavamed.processor.images` does not support.
    """
    return settings_of(processor.image_processor, backend)


def tiling(processor: Processor) -> Tiling:
    """Return how the processor cuts images into tiles."""
    settings = image_settings(processor)
    return Tiling(settings.size, num_image_tokens(processor), settings.grid_pinpoints)


def num_image_tokens(processor: Processor) -> int:
    """Return the number of tokens an image takes in the text; with tiles, that of one tile."""
    size = image_settings(processor).size
    patches = (size // int(processor.patch_size)) ** 2
    is_cut = processor.vision_feature_select_strategy == "default"
    return patches + int(processor.num_additional_image_tokens) - is_cut


def tokenizer_hash(processor: Processor) -> str:
    """Return the SHA-256 of the tokenizer with its vocabulary, merges and special tokens."""
    return hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _whole_processor(model: Model) -> Processor:
    """Return the processor of a whole LLaVA, with its image tokens as in the model's config."""
    key, source = "model.weights", str(model.weights)
    for name in ("tokenizer", "projector", "vision_feature_layer"):
        if (value := getattr(model, name)) != Model.model_fields[name].default:
            raise ConfigError(
                f"model.{name}={value}: has no effect with model.weights, which come with their "
                "own; remove it"
            )
    config = whole_config(source, key)
    processor = load_pretrained(AutoProcessor, source, key, backend="pil")
    if not isinstance(processor, LlavaProcessor | LlavaNextProcessor):
        raise ConfigError(
            f"{key}={source}: holds a {type(processor).__name__}, not the processor of a LLaVA; "
            "add its processor_config.json and preprocessor_config.json"
        )
    tower = tower_of(config.vision_config, f"{key}={source}: vision_config")
    images = image_settings(processor)
    if images.size != tower.image_size:
        raise ConfigError(
            f"{key}={source}: its processor makes images of {images.size} pixels, and its tower "
            f"takes {tower.image_size}; correct size in its preprocessor_config.json"
        )
    if images.grid_pinpoints != pinpoints_of(config):
        raise ConfigError(
            f"{key}={source}: image_grid_pinpoints={pinpoints_of(config)} in its config, but its "
            f"processor has {images.grid_pinpoints}; correct one of the two"
        )
    set_pinpoints(model, config)
    if images.grid_pinpoints:
        processor.image_processor.image_grid_pinpoints = config.image_grid_pinpoints
    if model.image_aspect_ratio == "pad" and images.aspect_ratio != "pad":
        raise ConfigError(
            f"model.image_aspect_ratio=pad: the processor of {source} adds no borders to images, "
            "and its model was trained so; set it to square, which does as that processor does"
        )
    check_tokenizer(processor.tokenizer)
    repair_merges(processor.tokenizer)
    found = processor.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    if found != config.image_token_id:
        raise ConfigError(
            f"{key}={source}: image_token_index={config.image_token_id} in its config, but its "
            f"tokenizer has {IMAGE_PLACEHOLDER} at {found}; correct one of the two"
        )
    check_rows(processor.tokenizer, config, f"{key}={source}")
    # Older processors lack these fields, and the config of the model has them.
    processor.patch_size = tower.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.num_additional_image_tokens = tower.num_prefix_tokens
    return processor
