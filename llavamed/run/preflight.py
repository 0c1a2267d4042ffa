"""Find problems with the settings, packages and data of a run, before any GPU waits for it.

`model_checks` looks at the weights that it starts from.
"""

import logging
import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from llavamed.config.engine import FEW_PASSES
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.order import StageOrder
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError
from llavamed.model.llava import check_image_token
from llavamed.model.quantize import load_bitsandbytes
from llavamed.processor.pretrained import text_config, whole_config
from llavamed.run.curriculum import StagePlan
from llavamed.storage.manifest import CheckpointManifest
from llavamed.train.job import StageJob, check_conversion, order_of

logger = logging.getLogger(__name__)

_VARYING_ROPES = ("dynamic", "longrope")
"""Kinds of rotary embeddings that depend on the longest sample of a forward pass."""
_LARGEST_RATE = 0.1


def warn_of_instability(config: RunConfig) -> None:
    """Warn of long sums of gradients in bf16, and of learning rates too large for any weights."""
    for stage in config.stages:
        engine, passes = config.engine_of(stage), stage.forward_passes(config.scaling.least_workers)
        if passes > FEW_PASSES and engine.gradient_format(passes) == "bf16":
            asked = "remove engine.deepspeed.data_types.grad_accum_dtype=bf16"
            logger.warning(
                "stages.%s: the gradients of %d forward passes of a worker are added up in bf16 "
                "with engine.zero_stage=%d, which rounds each sum to 8 bits; %s, or use more "
                "workers",
                stage.name,
                passes,
                engine.zero_stage,
                "set it to 2" if engine.zero_stage == 1 else asked,
            )
        for part in stage.trainable:
            if (rate := stage.optimizer.peak_lr(part)) > _LARGEST_RATE:
                logger.warning(
                    "stages.%s.optimizer: the learning rate of %s is %g, and AdamW moves each "
                    "weight by about that at every step, so that training will hardly stay finite; "
                    "set it to at most %g",
                    stage.name,
                    part,
                    rate,
                    _LARGEST_RATE,
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
    """Refuse samples that are longer than the positions of the language model. Raises: ConfigError.

    Some rotary embeddings change for a whole forward pass once any of its samples is longer than in
    pretraining. Then what a sample is trained on depends on the other samples of its pack.

    Args:
        language: The Hugging Face config of the language model.
        lengths: The number of tokens of each sample.
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
        logger.warning(
            "stages.%s: %s, so %s does not change; remove it from trainable, or name data with "
            "images",
            stage.name,
            fact,
            part,
        )
