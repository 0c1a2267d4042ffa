"""Find what would stop a run before any GPU waits for it."""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, LlavaConfig, LlavaNextConfig

from llavamed.config.engine import FEW_PASSES, Kernels
from llavamed.config.model import Model
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.order import StageOrder
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError, SampleError
from llavamed.model.adapters import check_layers
from llavamed.model.head import check_head
from llavamed.model.kernels import check_capability, check_kernels
from llavamed.model.llava import check_forward, check_image_token, llava_config
from llavamed.model.quantize import load_bitsandbytes
from llavamed.processor.build import (
    load_processor,
    load_tokenizer,
    model_images,
    whole_images,
)
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
from llavamed.run.curriculum import StagePlan
from llavamed.storage.fetch import fetch_once
from llavamed.storage.location import Location
from llavamed.storage.manifest import CheckpointManifest
from llavamed.train.job import StageJob, check_conversion, order_of

logger = logging.getLogger(__name__)

_VARYING_ROPES = ("dynamic", "longrope")
"""Kinds of rotary embeddings that depend on the longest sample of a forward pass."""
_LARGEST_RATE = 0.1
_OLD_GPUS = {"K80": (3, 7), "P100": (6, 0), "P4": (6, 1), "V100": (7, 0), "T4": (7, 5)}
"""Compute capability of GPUs before 8.0, by Ray's names of their types."""


def check_weights(config: RunConfig, plans: list[StagePlan]) -> None:
    """Check that all weights a run starts from can be read, and that images fit them.

    Raises:
        ConfigError: They cannot be found, or an image cannot pass through one of the models.
    """
    model = config.model
    if model.weights is not None:
        shape, key = whole_config(model.weights, "model.weights"), f"model.weights={model.weights}"
        set_pinpoints(model, shape)
    else:
        assert model.vision_tower is not None
        assert model.language_model is not None
        vision = part_config(model.vision_tower, "model.vision_tower")
        text = part_config(model.language_model, "model.language_model")
        check_head(text, "model.language_model")
        shape, key = llava_config(model, vision, text), "model"
    check_forward(shape, key)
    config_tiling(shape, key).check_fits(config.data.max_length)
    own = {str(plan.export) for plan in plans}
    for plan in plans:
        start = plan.initial_weights
        if start is not None and start not in own:
            key = f"stages.{plan.stage.name}.initial_weights"
            first = whole_config(start, key)
            check_forward(first, f"{key}={start}")
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
    """Refuse initial weights that were trained on images made otherwise than the datasets' are.

    Weights without a processor do not say how.
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
    """Check that the language model has the layers that stages adapt, and that kernels replace.

    Raises:
        ConfigError: It has not, or the GPUs that are asked for cannot run the kernels.
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


def check_words(plans: list[StagePlan], processor: Location) -> None:
    """Check that initial weights that no stage of this run makes know the tokens of the datasets.

    Weights without a tokenizer do not say which tokens they know.

    Args:
        plans: The stages.
        processor: The processor that datasets are prepared with.

    Raises:
        ConfigError: They know others.
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


def warn_of_numbers(config: RunConfig) -> None:
    """Warn of long sums of gradients in bf16, and of rates that move weights beyond their size."""
    for stage in config.stages:
        engine, passes = config.engine_of(stage), stage.passes(config.scaling.least_workers)
        if passes > FEW_PASSES and engine.gradient_format(passes) == "bf16":
            logger.warning(
                "stages.%s: the gradients of %d forward passes of a worker are added up in bf16 "
                "with engine.zero_stage=%d, which rounds each sum to 8 bits; set it to 2, or use "
                "more workers",
                stage.name,
                passes,
                engine.zero_stage,
            )
        for part in stage.trainable:
            if (rate := stage.optimizer.peak_lr(part)) > _LARGEST_RATE:
                logger.warning(
                    "stages.%s.optimizer: the learning rate of %s is %g, and AdamW moves each "
                    "weight by about that at every step, so that training will hardly stay finite",
                    stage.name,
                    part,
                    rate,
                )


def check_packages(config: RunConfig, plans: list[StagePlan]) -> None:
    """Check that optional packages that stages need are installed. Raises: ConfigError."""
    for plan in plans:
        key, lora = f"stages.{plan.stage.name}", plan.stage.lora
        if plan.stage.optimizer.name == "adamw_8bit":
            load_bitsandbytes(f"{key}.optimizer.name=adamw_8bit")
        if lora is not None and lora.quantize != "none":
            load_bitsandbytes(f"{key}.lora.quantize={lora.quantize}")


def check_settings(plans: Sequence[StagePlan], jobs: Sequence[StageJob]) -> None:
    """Check that no stage was begun or finished with other settings than the run has now.

    Raises:
        ConfigError: Some were. It names each key with both values. Or a checkpoint cannot be
            converted to the ZeRO stage that a run has now.
        CheckpointError: Another version of this program has trained them.
    """
    differing: dict[str, None] = {}
    refused: dict[str, str] = {}
    for plan, job in zip(plans, jobs, strict=True):
        begun = plan.begun()
        if begun is None:
            continue
        if begun.fingerprint == job.fingerprint:
            if isinstance(begun, CheckpointManifest):
                check_conversion(
                    begun.layout.zero_stage, job.config.engine_of(job.stage).zero_stage
                )
            continue
        own = begun.settings.differences(job.settings)
        if job.initial_weights in refused:  # it follows from a difference that is already named
            follows = f"stages.{plan.stage.name}.initial_weights="
            own = [line for line in own if not line.startswith(follows)]
        differing |= dict.fromkeys(own)
        refused[job.export] = str(plan.folder)
    if refused:
        folders = " and ".join(refused.values())
        raise ConfigError(
            f"{'; '.join(differing)}: other settings than {folders} was trained with; restore "
            f"them, use another name, or delete {folders} to train again"
        )


def check_stage(plan: StagePlan, job: StageJob, data: Mixture) -> StageOrder:
    """Check that the data of a stage exists and fits its packs and its initial weights.

    Returns:
        The order of its samples.

    Raises:
        DataError: A shard is missing, or a sample is longer than a pack.
        ConfigError: The initial weights expect another image token than the data has; a sample is
            longer than the language model can tell positions apart; or the stage trains only what
            reads images, and the data has none.
    """
    start = job.initial_weights
    if start is not None and start == job.initial_fingerprint:  # not made by a stage of this run
        key = f"stages.{plan.stage.name}.initial_weights"
        first = whole_config(start, key)
        check_image_token(first, data.image_token_id, f"{key}={start}")
        language = first.get_text_config()
    else:
        language = text_config(job.config.model)
    check_positions(job, language, data.column("num_tokens"))
    check_images(plan.stage, data)
    data.check_shards()
    num_samples = math.ceil(sum(size * passes for size, passes in data.shares))
    if plan.stage.num_lanes > num_samples:
        logger.warning(
            "stages.%s.global_batch_size=%d: an epoch has %d samples, and no step takes more than "
            "an epoch, so each step trains on fewer samples than that; set it lower, or raise the "
            "passes over the datasets",
            plan.stage.name,
            plan.stage.global_batch_size,
            num_samples,
        )
    return order_of(plan.stage, data, job.config.seed)


def check_positions(job: StageJob, language: Any, lengths: npt.NDArray[np.integer]) -> None:
    """Refuse samples that are longer than the positions of the language model.

    Some rotary embeddings change for a whole forward pass once any of its samples is longer than in
    pretraining. Then what a sample is trained on depends on the other samples of its pack.

    Args:
        job: The stage.
        language: The Hugging Face config of the language model.
        lengths: The number of tokens of each sample.

    Raises:
        ConfigError: There are such samples.
    """
    bounds = {"max_position_embeddings": getattr(language, "max_position_embeddings", None)}
    ropes = getattr(language, "rope_parameters", None) or {}
    for rope in [ropes, *(each for each in ropes.values() if isinstance(each, dict))]:
        if rope.get("rope_type") in _VARYING_ROPES:
            name = f"original_max_position_embeddings of rope_type {rope['rope_type']}"
            bounds[name] = rope.get("original_max_position_embeddings")
    name, bound = min(
        ((name, bound) for name, bound in bounds.items() if bound is not None),
        key=itemgetter(1),
        default=("", math.inf),
    )
    if (longest := int(lengths.max(initial=0))) > bound:
        raise ConfigError(
            f"data.max_length={job.config.data.max_length}: {int((lengths > bound).sum())} samples "
            f"of stage {job.stage.name} are longer than the {bound} positions of the language "
            f"model ({name}), the longest has {longest} tokens; set it to {bound}, and "
            "data.directory to another folder"
        )


def check_images(stage: Stage, data: Mixture) -> None:
    """Refuse a stage that trains only what reads images, or warn of one, if its data has none."""
    reading = [part for part in stage.trainable if part != "language_model"]
    if not reading or data.column("num_images").any():
        return
    fact = f"no sample of {', '.join(stage.mixture)} has an image"
    if "language_model" not in stage.trainable:
        raise ConfigError(
            f"stages.{stage.name}.trainable=[{', '.join(reading)}]: {fact}, so nothing would "
            "train; add language_model, or name data with images"
        )
    for part in reading:
        logger.warning("stages.%s: %s, so %s does not change", stage.name, fact, part)
