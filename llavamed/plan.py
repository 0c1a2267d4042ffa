"""What a run will do and cost, before anything is started: steps, tokens, memory, hours.

Reads the index of a dataset that is prepared, or else what the config declares of it, and never any
weights. Hours assume the model-FLOPs utilisation they are asked for.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llavamed.config.datasets import Dataset
from llavamed.config.schema import RunConfig, Stage
from llavamed.data.prepared import PreparedDataset, open_prepared
from llavamed.errors import ConfigError, StorageError
from llavamed.model.flops import (
    ACCELERATORS,
    Accelerator,
    Memory,
    Workload,
    stage_flops,
    stage_memory,
)
from llavamed.model.freeze import PartCount, freeze
from llavamed.model.llava import shape_on_meta
from llavamed.storage import MANIFEST, Location, locate
from llavamed.train.worker import order_of


@dataclass(frozen=True)
class StageCost:
    """One stage's arithmetic."""

    name: str
    accelerator: str
    num_gpus: int
    gpu_memory: float
    mfu: float
    dataset: str
    is_declared: bool
    num_samples: int
    steps: int
    num_tokens: float
    samples_per_step: float
    useful_tokens: float
    """Part of the processed tokens that belongs to samples; the rest is padding."""
    parts: list[PartCount]
    memory: Memory
    flops: float
    hours: float


def plan_run(
    config: RunConfig, *, accelerator: str, num_gpus: int | None = None, mfu: float = 0.4
) -> list[StageCost]:
    """The cost of every stage.

    Args:
        config: The run.
        accelerator: A name in `ACCELERATORS`.
        num_gpus: How many; by default the config's workers.
        mfu: Model-FLOPs utilisation, the part of the GPUs' peak that is reached.

    Raises:
        ConfigError: The GPU is unknown, or a dataset is neither prepared nor declared.
    """
    find_accelerator(accelerator)
    workers = num_gpus or config.scaling.num_workers
    model = shape_on_meta(config.model)
    return [_plan_stage(config, stage, model, accelerator, workers, mfu) for stage in config.stages]


def find_accelerator(name: str) -> Accelerator:
    """A GPU by name. Raises: ConfigError."""
    if name not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        raise ConfigError(f"gpu={name}: its speed is not known; use one of: {known}")
    return ACCELERATORS[name]


def _plan_stage(
    config: RunConfig, stage: Stage, model: Any, accelerator: str, workers: int, mfu: float
) -> StageCost:
    if stage.num_lanes % workers:
        raise ConfigError(
            f"stages.{stage.name}.global_batch_size={stage.global_batch_size} cannot be shared "
            "out by "
            f"{workers} GPUs with micro_batch_size={stage.micro_batch_size}; use a number of GPUs "
            f"that divides {stage.num_lanes}"
        )
    place = locate(config.datasets_directory) / stage.data
    is_declared = not _is_prepared(place, config.data.datasets[stage.data])
    load = (
        _declared_load(config, stage, model)
        if is_declared
        else _measured_load(open_prepared(place), stage, config.seed)
    )
    gpu = find_accelerator(accelerator)
    parts = freeze(model, stage.trainable)
    flops = stage_flops(model, stage, load.work)
    memory = stage_memory(
        model,
        parts,
        stage=stage,
        engine=config.engine,
        num_workers=workers,
        tokens=load.tokens_per_pass,
        supervised=load.work.num_supervised / load.work.num_tokens * load.tokens_per_pass,
    )
    processed = load.steps * stage.num_lanes * load.tokens_per_pass
    return StageCost(
        name=stage.name,
        accelerator=accelerator,
        num_gpus=workers,
        gpu_memory=gpu.memory_bytes,
        mfu=mfu,
        dataset=stage.data,
        is_declared=is_declared,
        num_samples=load.num_samples,
        steps=load.steps,
        num_tokens=load.work.num_tokens,
        samples_per_step=load.samples_seen / load.steps,
        useful_tokens=min(1.0, load.work.num_tokens / processed),
        parts=parts,
        memory=memory,
        flops=flops,
        hours=flops / (workers * gpu.flops_per_second * mfu) / 3600,
    )


def _is_prepared(place: Location, dataset: Dataset) -> bool:
    try:
        return (place.impatient() / MANIFEST).exists()
    except StorageError:
        if dataset.declared is None:
            raise
        return False  # planning from a declaration needs no access to the storage


@dataclass(frozen=True)
class _Load:
    num_samples: int
    samples_seen: float
    steps: int
    tokens_per_pass: float
    """Of the longest forward pass, padding included."""
    work: Workload


def _measured_load(dataset: PreparedDataset, stage: Stage, seed: int) -> _Load:
    order = order_of(stage, dataset, seed)
    tokens = dataset.column("num_tokens")
    seen = np.concatenate([pack for k in range(order.num_steps) for pack in order.samples(k)])
    longest = stage.max_tokens if stage.packing else stage.micro_batch_size * int(tokens.max())
    return _Load(
        num_samples=dataset.num_samples,
        samples_seen=len(seen),
        steps=order.num_steps,
        tokens_per_pass=longest,
        work=Workload(
            num_images=float(dataset.column("num_images")[seen].sum()),
            num_tokens=float(tokens[seen].sum()),
            num_supervised=float(dataset.column("num_supervised")[seen].sum()),
            sum_squared_tokens=float((tokens[seen] ** 2).sum()),
        ),
    )


def _declared_load(config: RunConfig, stage: Stage, model: Any) -> _Load:
    declared = config.data.datasets[stage.data].declared
    if declared is None:
        raise ConfigError(
            f"data.datasets.{stage.data}.declared=null: the dataset is neither prepared nor "
            "declared; "
            "run `llavamed prepare`, or declare num_samples, mean_text_tokens and "
            "mean_supervised_tokens"
        )
    vision = model.config.vision_config
    image_tokens = (vision.image_size // vision.patch_size) ** 2
    length = image_tokens + declared.mean_text_tokens
    rows = (
        stage.max_tokens / length if stage.packing else stage.micro_batch_size
    ) * stage.num_lanes
    epochs = stage.num_train_epochs
    steps = stage.max_steps or epochs * -(-declared.num_samples // rows)
    seen = (
        min(steps * rows, declared.num_samples * epochs)
        if stage.max_steps is None
        else steps * rows
    )
    return _Load(
        num_samples=declared.num_samples,
        samples_seen=seen,
        steps=int(steps),
        tokens_per_pass=stage.max_tokens if stage.packing else stage.micro_batch_size * length,
        work=Workload(
            num_images=seen,
            num_tokens=seen * length,
            num_supervised=seen * declared.mean_supervised_tokens,
            sum_squared_tokens=seen * length**2,
        ),
    )
