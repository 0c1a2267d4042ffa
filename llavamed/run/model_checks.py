"""Find problems with the weights and models that a run starts from, before it begins."""

import logging
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModel, LlavaConfig, LlavaNextConfig

from llavamed.config.engine import Kernels
from llavamed.config.model import Model
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError, SampleError
from llavamed.model.adapters import check_layers
from llavamed.model.head import check_head
from llavamed.model.kernels import check_capability, check_kernels
from llavamed.model.llava import check_forward, llava_config
from llavamed.processor.build import load_processor
from llavamed.processor.image_processor import model_images, whole_images
from llavamed.processor.own_template import end_of_answers
from llavamed.processor.pretrained import (
    check_rows,
    config_tiling,
    part_config,
    set_pinpoints,
    text_config,
    whole_config,
)
from llavamed.processor.token_labels import differing_ids
from llavamed.processor.tokenizer import load_tokenizer
from llavamed.processor.weight_files import check_weight_files
from llavamed.run.curriculum import StagePlan
from llavamed.storage.fetch import fetch_once
from llavamed.storage.location import Location

logger = logging.getLogger(__name__)

_OLD_GPUS = {"K80": (3, 7), "P100": (6, 0), "P4": (6, 1), "V100": (7, 0), "T4": (7, 5)}
"""Compute capability of GPUs before 8.0, by Ray's names of their types."""


def check_weights(config: RunConfig, plans: list[StagePlan]) -> None:
    """Check that all weights a run starts from can be read, and that images fit them.

    Raises:
        ConfigError: They cannot be found, or an image cannot pass through one of the models.
    """
    model, text = config.model, None
    if model.weights is not None:
        shape, key = whole_config(model.weights, "model.weights"), f"model.weights={model.weights}"
        set_pinpoints(model, shape)
    else:
        assert model.vision_tower is not None
        assert model.language_model is not None
        vision = part_config(model.vision_tower, "model.vision_tower")
        text = part_config(model.language_model, "model.language_model")
        shape, key = llava_config(model, vision, text), "model"
    check_forward(shape, key, model.attn_implementation)
    if text is not None:  # by now the model can be made
        check_head(text, "model.language_model")
    config_tiling(shape, key).check_fits(config.data.max_length)
    parts = {
        "model": model,
        "model.vision_tower": model.vision_tower,
        "model.language_model": model.language_model,
    }
    for key, part in parts.items():
        if part is not None and part.weights is not None:
            check_weight_files(part.weights, f"{key}.weights")
    own = {str(plan.export) for plan in plans}
    for plan in plans:
        start = plan.initial_weights
        if start is not None and start not in own:
            key = f"stages.{plan.stage.name}.initial_weights"
            first = whole_config(start, key)
            check_weight_files(start, key)
            check_forward(first, f"{key}={start}", model.attn_implementation)
            _check_same_tiles(first, shape, f"{key}={start}")
            _check_same_images(model, start, key)


def _check_same_tiles(
    first: LlavaConfig | LlavaNextConfig, shape: LlavaConfig | LlavaNextConfig, key: str
) -> None:
    """Refuse initial weights that take other tiles than the datasets are prepared for."""
    theirs, ours = config_tiling(first, key), config_tiling(shape, key)
    if theirs.pinpoints != ours.pinpoints:
        found, wanted = (
            [list(size) for size in each.pinpoints] or "one tile" for each in (theirs, ours)
        )
        raise ConfigError(
            f"{key}: cuts images into {found}, but the model section, by which datasets are "
            f"prepared, into {wanted}; name these weights in model.weights too"
        )
    if theirs != ours:
        raise ConfigError(
            f"{key}: takes images of {theirs.tile_size} pixels as {theirs.num_tile_tokens} tokens, "
            "but the model section, which datasets are prepared by, "
            f"{ours.tile_size} as {ours.num_tile_tokens}; name these weights in model.weights too"
        )


def _check_same_images(model: Model, start: str, key: str) -> None:
    """Refuse initial weights that were trained on images made in another way than the datasets'.

    Weights without a processor do not say how their images were made, and are accepted.
    """
    theirs, ours = whole_images(start, key), model_images(model)
    if theirs is None or ours is None or theirs == ours:
        return
    differing = [name for name, value in asdict(ours).items() if getattr(theirs, name) != value]
    found, wanted = (
        ", ".join(f"{name}={getattr(each, name)}" for name in differing) for each in (theirs, ours)
    )
    advice = "name these weights in model.weights too"
    if differing == ["aspect_ratio"] and model.weights is None:
        for value in ("square", "pad"):
            if model_images(model.model_copy(update={"image_aspect_ratio": value})) == theirs:
                advice = f"set model.image_aspect_ratio to {value}"
    raise ConfigError(
        f"{key}={start}: its processor makes images with {found}, but the model section, by which "
        f"datasets are prepared, with {wanted}; {advice}"
    )


def check_language_model(config: RunConfig, plans: list[StagePlan]) -> None:
    """Check that the language model has the layers that adapters and kernels need.

    Raises:
        ConfigError: It lacks some, or the requested GPUs cannot run the kernels.
    """
    adapted = [plan.stage.lora for plan in plans if plan.stage.lora is not None]
    kernels = [config.engine_of(plan.stage).kernels for plan in plans]
    wanted = [each for each in kernels if each != Kernels()]
    if adapted or wanted:
        with torch.device("meta"):
            decoder = AutoModel.from_config(text_config(config.model))
        for lora in adapted:
            check_layers(decoder, lora)
        gpu = config.scaling.accelerator_type
        for each in wanted:
            check_kernels(decoder, each)
            if each.varlen and gpu in _OLD_GPUS:
                check_capability(_OLD_GPUS[gpu], gpu)


def check_vocabulary(plans: list[StagePlan], processor: Location) -> None:
    """Check that initial weights from outside this run have the vocabulary of the datasets.

    Weights without a tokenizer are not checked: they do not say what their tokens are.

    Args:
        processor: The processor that datasets are prepared with.

    Raises:
        ConfigError: The vocabularies differ.
    """
    own = {str(plan.export) for plan in plans}
    for plan in plans:
        start, key = plan.initial_weights, f"stages.{plan.stage.name}.initial_weights"
        if start is None or start in own:
            continue
        tokenizer = load_processor(Path(fetch_once(str(processor)))).tokenizer
        check_rows(tokenizer, whole_config(start, key), f"{key}={start}")
        theirs = None
        with suppress(ConfigError):
            theirs = load_tokenizer(start, key)
        if theirs is not None and (differing := differing_ids(tokenizer, theirs)):
            raise ConfigError(
                f"{key}={start}: {differing} in its tokenizer than in that of the model section, "
                "by which datasets are prepared, so the model would read other words; name these "
                "weights in model.weights too"
            )


def warn_of_unlearned_ends(config: RunConfig, plans: list[StagePlan], processor: Location) -> None:
    """Warn of a token at the end of answers that is new to the weights, and that no stage trains.

    Adapters leave the output layer as it is, whose row of a new token is a mean of the others.
    """
    part = config.model.language_model
    stages = [plan.stage for plan in plans]
    if (
        part is None
        or part.weights is None
        or any("language_model" in each.trainable and each.lora is None for each in stages)
    ):
        return
    end, tokenizer = "", load_processor(Path(fetch_once(str(processor)))).tokenizer
    with suppress(SampleError):  # a template that refuses a single question tells nothing
        end = end_of_answers(tokenizer)
    rows = part_config(part, "model.language_model").vocab_size
    if end and tokenizer.convert_tokens_to_ids(end) >= rows:
        logger.warning(
            "stages: none trains the output layer, and %s at the end of an answer is new to "
            "model.language_model.weights=%s, so no model learns to end one; train language_model "
            "without lora in a stage, or use a template whose end these weights know",
            end,
            part.weights,
        )
