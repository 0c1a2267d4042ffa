"""Build the processor: tokenizer, image settings and chat template as one LlavaProcessor.

It is built once, before any dataset is prepared, is stored next to the prepared datasets, and goes
unchanged into every export. So training, evaluation and serving see the same tokens and pixels.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from llavamed.config.model import Model
from llavamed.errors import ConfigError
from llavamed.processor.encode import chat_template, get_template
from llavamed.processor.forms.find import find_form
from llavamed.processor.forms.form import find_file
from llavamed.processor.images import ImageSettings
from llavamed.processor.pretrained import (
    check_rows,
    load_pretrained,
    part_config,
    pinpoints_of,
    set_pinpoints,
    whole_config,
)
from llavamed.processor.templates import TOKENIZER, own_chat_template
from llavamed.processor.thinking import with_thinking
from llavamed.processor.tiles import Tiling, check_pinpoints
from llavamed.processor.token_labels import check_tokenizer, differing_ids, repair_merges
from llavamed.processor.tower import Tower, tower_of
from llavamed.processor.turns import IMAGE_PLACEHOLDER
from llavamed.storage.fetch import fetch_once

Processor: TypeAlias = LlavaProcessor | LlavaNextProcessor
"""The processor of a LLaVA, which reads an image in one tile, or of a LLaVA-NeXT."""

_IMAGE_FILES = ("processor_config.json", "preprocessor_config.json")
"""Files that an image processor is in, by the version of transformers that wrote it."""
_RESAMPLING: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Filters that `llavamed.processor.images` supports, by the numbers Pillow gives them."""


def build_processor(model: Model, texts: Iterator[str]) -> Processor:
    """Build the processor of a model.

    Args:
        model: The model section of the config.
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
            image_processor=_image_processor(model, tower),
            tokenizer=_tokenizer(model, texts),
            patch_size=tower.patch_size,
            vision_feature_select_strategy=tower.strategy,
            num_additional_image_tokens=tower.num_prefix_tokens,
        )
        _check_vocabulary(model, processor)
    _set_pad_token(processor.tokenizer)
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


def load_tokenizer(source: str, key: str) -> Any:
    """Load a published tokenizer and add the image token.

    Args:
        source: A folder, its URI, or a name on the hub.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: The tokenizer cannot be found, or cannot map tokens to places in the text.
    """
    more: dict[str, Any] = {"extra_special_tokens": {"image_token": IMAGE_PLACEHOLDER}}
    tokenizer = load_pretrained(AutoTokenizer, source, key, **more)
    check_tokenizer(tokenizer)
    if getattr(tokenizer.backend_tokenizer, "fix_mistral_regex", None) is False:
        # Published for Mistral, it splits "pH" otherwise than the model knows; transformers warns.
        tokenizer = load_pretrained(AutoTokenizer, source, key, fix_mistral_regex=True, **more)
    repair_merges(tokenizer)
    return tokenizer


def image_settings(
    processor: Processor, backend: Literal["exact", "fast"] = "exact"
) -> ImageSettings:
    """Return what the processor does to an image, as settings of `llavamed.processor.images`.

    Raises:
        ConfigError: The processor does something that `llavamed.processor.images` does not support.
    """
    return _settings_of(processor.image_processor, backend)


def model_images(model: Model) -> ImageSettings | None:
    """Return what the processor of a model does to an image, without its tokenizer.

    Raises:
        ConfigError: See `whole_images`, or the config of its tower cannot be found.
    """
    if model.weights is not None:
        return whole_images(model.weights, "model.weights")
    assert model.vision_tower is not None
    vision = part_config(model.vision_tower, "model.vision_tower")
    return _settings_of(_image_processor(model, tower_of(vision, "model.vision_tower.config")))


def whole_images(source: str, key: str) -> ImageSettings | None:
    """Return what the processor of a whole LLaVA does to an image, or None if it has no processor.

    Args:
        source: A folder, its URI, or a name on the hub.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: It cannot be loaded, or does what `llavamed.processor.images` does not support.
    """
    folder = fetch_once(source, weights=False)
    if find_form(folder) is None and not any(find_file(folder, name) for name in _IMAGE_FILES):
        return None
    found = load_pretrained(AutoImageProcessor, source, key, backend="pil")
    try:
        return _settings_of(found)
    except ConfigError as error:
        raise ConfigError(f"{key}={source}: {error}") from error


def _settings_of(images: Any, backend: Literal["exact", "fast"] = "exact") -> ImageSettings:
    facts = images.to_dict()
    size = dict(facts.get("size") or {})
    crop = dict(facts.get("crop_size") or {}) if facts.get("do_center_crop") else {}
    edges = {*size.values(), *crop.values()}
    stretches = size.keys() == {"height", "width"}
    if len(edges) != 1 or not (stretches or (size.keys() == {"shortest_edge"} and crop)):
        raise ConfigError(
            f"image_processor.size={size}, crop_size={crop or None}: must make a square of one "
            "size, by stretching (height, width) or by cropping the centre (shortest_edge and "
            "crop_size); correct preprocessor_config.json, or use another model"
        )
    _check_scale(facts)
    if facts["resample"] not in _RESAMPLING:
        raise ConfigError(
            f"image_processor.resample={facts['resample']}: must be 2 (bilinear) or 3 (bicubic); "
            "correct it in preprocessor_config.json"
        )
    pinpoints = tuple((high, wide) for high, wide in facts.get("image_grid_pinpoints") or ())
    aspect_ratio: Literal["square", "pad", "stretch"] = "stretch" if stretches else "square"
    if pinpoints:  # the whole image is stretched to a tile
        aspect_ratio = "stretch"
    elif facts.get("do_pad"):
        aspect_ratio = "pad"
    return ImageSettings(
        size=int(edges.pop()),
        aspect_ratio=aspect_ratio,
        mean=tuple(facts["image_mean"]),
        std=tuple(facts["image_std"]),
        backend=backend,
        resample=_RESAMPLING[facts["resample"]],
        grid_pinpoints=pinpoints,
    )


def _check_scale(facts: dict[str, Any]) -> None:
    """Raise ConfigError if an image processor scales values in another way than we do."""
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if facts.get(name) is not True:
            raise ConfigError(
                f"image_processor.{name}={facts.get(name)}: images are always resized, scaled to "
                "0 .. 1 and normalized; set it to true in preprocessor_config.json"
            )
    if abs(facts["rescale_factor"] * 255 - 1) > 1e-6:
        raise ConfigError(
            f"image_processor.rescale_factor={facts['rescale_factor']}: must be 1/255; correct it "
            "in preprocessor_config.json"
        )
    for name, least in (("image_mean", 0.0), ("image_std", 1e-3)):
        values = facts[name]
        if len(values) != 3 or not all(least <= value <= 1 for value in values):
            raise ConfigError(
                f"image_processor.{name}={list(values)}: must be three numbers from {least:g} to "
                "1, as pixels are scaled to 0 .. 1 first; correct it in preprocessor_config.json"
            )


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


def _image_processor(model: Model, tower: Tower) -> Any:
    """Return the image processor of a tower, which does as that of its weights if it has any."""
    assert model.vision_tower is not None
    size, resizing = tower.image_size, tower.resizing
    edges, square = {"shortest_edge": size}, {"height": size, "width": size}
    settings: dict[str, Any] = {"image_mean": list(tower.mean), "image_std": list(tower.std)}
    if model.vision_tower.weights is not None:
        source = model.vision_tower.weights
        found = load_pretrained(
            AutoImageProcessor, source, "model.vision_tower.weights", backend="pil"
        )
        _check_scale(found.to_dict())
        settings = {
            "image_mean": list(found.image_mean),
            "image_std": list(found.image_std),
            "resample": found.resample,
        }
        crops = getattr(found, "do_center_crop", False) or "shortest_edge" in dict(found.size)
        resizing = "square" if crops else "stretch"
    if model.image_grid_pinpoints is not None:
        check_pinpoints(model.image_grid_pinpoints, tower, "model.image_grid_pinpoints")
        pinpoints = [list(each) for each in model.image_grid_pinpoints]
        return LlavaNextImageProcessorPil(
            size=edges, crop_size=square, image_grid_pinpoints=pinpoints, **settings
        )
    if model.image_aspect_ratio == "pad":
        return LlavaImageProcessorPil(size=edges, crop_size=square, do_pad=True, **settings)
    if resizing == "stretch":
        return SiglipImageProcessorPil(size=square, **settings)
    return CLIPImageProcessorPil(size=edges, crop_size=square, **settings)


def _check_vocabulary(model: Model, processor: LlavaProcessor) -> None:
    """Raise ConfigError if random weights have fewer embeddings than the tokenizer has tokens.

    Published weights get additional rows instead.
    """
    assert model.language_model is not None
    if model.language_model.weights is not None:
        return
    rows = int(part_config(model.language_model, "model.language_model").vocab_size)
    if len(processor.tokenizer) > rows:
        raise ConfigError(
            f"model.language_model.config.vocab_size={rows}: the tokenizer has "
            f"{len(processor.tokenizer)} entries; set it to at least {len(processor.tokenizer)}"
        )


def _set_pad_token(tokenizer: Any) -> None:
    """Set a padding token; padding is never trained or attended to, so any token will do.

    Raises:
        ConfigError: The tokenizer has no token to use.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"tokenizer={tokenizer.name_or_path}: has no pad_token, unk_token or eos_token to pad "
            "with; name one in its tokenizer_config.json"
        )


def _tokenizer(model: Model, texts: Iterator[str]) -> Any:
    assert model.language_model is not None
    source = model.tokenizer or model.language_model.weights
    if source is None:
        vocabulary = int(part_config(model.language_model, "model.language_model").vocab_size)
        return _train_tokenizer(texts, vocabulary)
    if model.tokenizer is None:
        return load_tokenizer(source, "model.language_model.weights")
    tokenizer = load_tokenizer(source, "model.tokenizer")
    own = None
    if model.language_model.weights is not None:
        with suppress(ConfigError):  # weights without a tokenizer do not say what they read
            own = load_tokenizer(model.language_model.weights, "model.language_model.weights")
    if own is not None and (differing := differing_ids(tokenizer, own)):
        raise ConfigError(
            f"model.tokenizer={model.tokenizer}: {differing} than in the tokenizer of "
            f"model.language_model.weights={model.language_model.weights}, so the model would read "
            "other words; remove it, or name the weights it belongs to"
        )
    return tokenizer


def _train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of the given size, which can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>", IMAGE_PLACEHOLDER],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE_PLACEHOLDER},
    )
