"""The processor: tokenizer, image settings and chat template, as one Hugging Face LlavaProcessor.

It is made once, before anything is prepared, lies beside the prepared datasets, and goes unchanged
into every export: so training, evaluation and serving see the same tokens and pixels.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from llavamed.config.model import Model, Pretrained
from llavamed.errors import ConfigError
from llavamed.processor.encode import chat_template, get_template
from llavamed.processor.images import ImageSettings
from llavamed.processor.token_labels import check_fast, repair_merges
from llavamed.processor.turns import IMAGE_PLACEHOLDER

# Mean and deviation of the images CLIP was trained on, which towers of its kind expect.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def build_processor(model: Model, texts: Iterator[str]) -> LlavaProcessor:
    """The processor of a model.

    Args:
        model: What the config says of the model.
        texts: Text to train a tokenizer on; read only for a random language model without one.

    Raises:
        ConfigError: The tokenizer or the tower cannot be found, or the template is unknown.
    """
    if model.weights is not None:
        processor = _load(AutoProcessor, model.weights, "model.weights", backend="pil")
        repair_merges(processor.tokenizer)
    else:
        assert model.vision_tower is not None
        vision = part_config(model.vision_tower, "model.vision_tower")
        processor = LlavaProcessor(
            image_processor=_image_processor(model, vision),
            tokenizer=_tokenizer(model, texts),
            patch_size=vision.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,  # CLIP's class token, which `default` then leaves out
        )
    if model.template != "tokenizer":
        processor.chat_template = chat_template(get_template(model.template))
        processor.tokenizer.chat_template = processor.chat_template
    return processor


def load_processor(folder: Path) -> LlavaProcessor:
    """A processor saved by `save_pretrained`."""
    return AutoProcessor.from_pretrained(str(folder), backend="pil")


def load_tokenizer(source: str, key: str) -> Any:
    """A published tokenizer, with the image token added.

    Raises:
        ConfigError: It cannot be found, or cannot tell where in a text a token lies.
    """
    image_token = {"image_token": IMAGE_PLACEHOLDER}
    tokenizer = _load(AutoTokenizer, source, key, extra_special_tokens=image_token)
    check_fast(tokenizer)
    repair_merges(tokenizer)
    return tokenizer


def image_settings(
    processor: LlavaProcessor, backend: Literal["exact", "fast"] = "exact"
) -> ImageSettings:
    """What the processor does to an image, for `llavamed.data.images`."""
    images = processor.image_processor
    return ImageSettings(
        size=int(images.crop_size["height"]),
        aspect_ratio="pad" if getattr(images, "do_pad", False) else "square",
        mean=tuple(images.image_mean),
        std=tuple(images.image_std),
        backend=backend,
    )


def num_image_tokens(processor: LlavaProcessor) -> int:
    """Tokens an image takes in the text."""
    size = image_settings(processor).size
    return (size // int(processor.patch_size)) ** 2


def tokenizer_hash(processor: LlavaProcessor) -> str:
    """SHA-256 of the tokenizer: vocabulary, merges, special tokens and all."""
    return hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def part_config(part: Pretrained, key: str) -> Any:
    """The Hugging Face config of a tower or language model: the weights' own, or the declared one.

    Raises:
        ConfigError: The weights cannot be found, or differ from what `config` declares of them.
    """
    if part.weights is None:
        return declared_config(part, key)
    config = _load(AutoConfig, part.weights, f"{key}.weights")
    config = getattr(config, "vision_config", config) if key.endswith("tower") else config
    for name, declared in part.config.items():
        found = getattr(config, name, None)
        if name != "model_type" and found != declared:
            raise ConfigError(
                f"{key}.config.{name}={declared}: the weights {part.weights} have {found}; "
                "correct the declared value or remove it"
            )
    return config


def text_config(model: Model) -> Any:
    """The Hugging Face config of the language model. Raises: ConfigError, as `part_config`."""
    if model.language_model is not None:
        return part_config(model.language_model, "model.language_model")
    assert model.weights is not None
    return _load(AutoConfig, model.weights, "model.weights").get_text_config()


def declared_config(part: Pretrained, key: str) -> Any:
    """The Hugging Face config that the file declares, without looking at any weights.

    Raises:
        ConfigError: `config` is empty or transformers refuses it.
    """
    name = part.config.get("model_type")
    if name not in CONFIG_MAPPING:
        raise ConfigError(
            f"{key}.config.model_type={name}: transformers knows no such model; give the name of "
            "one, such as clip_vision_model or llama"
        )
    try:
        return AutoConfig.for_model(**part.config)
    except Exception as error:  # ValueError, TypeError and transformers' own strict errors
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(
            f"{key}.config: transformers refuses it: {reason}; correct the field"
        ) from error


def check_source(source: str, key: str) -> None:
    """Find out whether a model can be had from a path or the hub. Raises: ConfigError."""
    _load(AutoConfig, source, key)


def _load(auto_class: Any, source: str, key: str, **kwargs: Any) -> Any:
    is_path = source.startswith(("/", ".", "~")) or source.count("/") > 1  # no name on the hub
    if is_path and not Path(source).is_dir():
        raise ConfigError(f"{key}={source}: no such folder; give one, or a name on the hub")
    try:
        return auto_class.from_pretrained(source, **kwargs)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{key}={source}: cannot be loaded: {first_line}; give a folder that holds it, or a "
            "hub name this machine can reach"
        ) from error


def _image_processor(model: Model, vision: Any) -> LlavaImageProcessorPil:
    assert model.vision_tower is not None
    mean, std = CLIP_MEAN, CLIP_STD
    if model.vision_tower.weights is not None:
        source = model.vision_tower.weights
        theirs = _load(AutoImageProcessor, source, "model.vision_tower.weights", backend="pil")
        mean, std = tuple(theirs.image_mean), tuple(theirs.image_std)
    return LlavaImageProcessorPil(
        size={"shortest_edge": vision.image_size},
        crop_size={"height": vision.image_size, "width": vision.image_size},
        do_pad=model.image_aspect_ratio == "pad",
        image_mean=list(mean),
        image_std=list(std),
    )


def _tokenizer(model: Model, texts: Iterator[str]) -> Any:
    assert model.language_model is not None
    source = model.tokenizer or model.language_model.weights
    if source is None:
        vocabulary = int(part_config(model.language_model, "model.language_model").vocab_size)
        return _train_tokenizer(texts, vocabulary)
    key = "model.tokenizer" if model.tokenizer else "model.language_model.weights"
    tokenizer = load_tokenizer(source, key)
    if tokenizer.pad_token is None:  # padding is never trained nor attended to: any token will do
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the given size, so that any text has tokens."""
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
