"""Compute what a run will do and cost before it starts: steps, tokens, memory, hours.

It reads the index of a prepared dataset, or otherwise what the config declares about it, and never
any weights. Hours assume a given model-FLOPs utilization.
"""

from dataclasses import dataclass
from typing import Any

import torch

from llavamed.config.data import Dataset, Declared
from llavamed.config.gpu_prices import GpuPrices
from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.order import StageOrder
from llavamed.data.prepared.dataset import PreparedDataset, open_prepared
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError, StorageError
from llavamed.model.adapters import add_adapters
from llavamed.model.cost.flops import ACCELERATORS, Accelerator, stage_flops
from llavamed.model.cost.memory import Memory
from llavamed.model.cost.savings import Saving, find_savings
from llavamed.model.cost.speeds import Correction, Setting, Speeds, shipped_speeds
from llavamed.model.freeze import PartCount, freeze
from llavamed.model.llava import shape_on_meta
from llavamed.processor.pretrained import config_tiling
from llavamed.processor.tiles import Tiling
from llavamed.run.workload import declared_workload, measured_workload
from llavamed.storage.location import MANIFEST, Location, locate
from llavamed.train.measure import Sizing, step_flops

ASSUMED_MFU = 0.4
"""The model-FLOPs utilization of a setting that is not measured."""


@dataclass(frozen=True)
class StageCost:
    """What one stage does and costs."""

    name: str
    accelerator: str
    num_gpus: int
    gpu_memory: float
    """Bytes of one GPU."""
    mfu: float
    """Model-FLOPs utilization that `hours` assume."""
    mfu_origin: str | None
    """The measurement that `mfu` is taken from; None if it is assumed or given."""
    dataset: str
    """Its datasets, and the passes over each."""
    is_declared: bool
    """Whether one of its datasets is not prepared."""
    num_samples: int
    steps: int
    num_tokens: float
    """Tokens of all samples of all its steps, without padding."""
    samples_per_step: float
    useful_tokens: float
    """Fraction of the processed tokens that belongs to samples. The rest is padding, or with
    packing the part of `max_tokens` that stays empty."""
    parts: list[PartCount]
    memory: Memory
    """The memory of one GPU: as planned, or corrected by a measurement."""
    correction: Correction | None
    """The measurement that corrects it."""
    savings: tuple[Saving, ...]
    """Settings that would save memory, if the stage does not fit."""
    flops: float
    """Floating point operations of all its steps, without padding."""
    hours: float
    """Hours on all GPUs, with padding."""
    cost: float | None
    """Price of the GPUs for that time, None where it is not in `gpu_prices`."""
    prices: GpuPrices
    assumed: tuple[str, ...]
    """Sentences that say what is assumed about datasets that are not prepared."""

    @property
    def memory_source(self) -> str:
        """Say where `memory` is taken from."""
        found = self.correction
        if found is None:
            return "memory is estimated"
        if found.is_same:
            return f"memory is measured ({found.result})"
        return f"memory is the estimate times {found.factor:.2f}, measured nearby ({found.result})"


def plan_run(
    config: RunConfig,
    *,
    accelerator: str,
    num_gpus: int | None = None,
    mfu: float | None = None,
    speeds: Speeds | None = None,
) -> list[StageCost]:
    """Return what every stage does and costs.

    Args:
        accelerator: A name in `ACCELERATORS`.
        num_gpus: Number of GPUs; by default the config's workers, or the most of a range.
        mfu: Model-FLOPs utilization: the fraction of the GPUs' peak that is reached. By default
            what is measured of a stage's setting, or else `ASSUMED_MFU`.
        speeds: Measured speeds of GPUs; by default those that come with llavamed.

    Raises:
        ConfigError: The GPU is unknown, an image leaves no room for text, a dataset is neither
            prepared nor declared, or a step cannot be divided among this many GPUs.
    """
    find_accelerator(accelerator)
    config = override_config(config, workers_override(config, num_gpus))
    speeds = speeds or shipped_speeds()
    return [
        plan_stage(config, stage, shape_stage(config, stage), accelerator, mfu=mfu, speeds=speeds)
        for stage in config.stages
    ]


def workers_override(config: RunConfig, num_gpus: int | None) -> list[str]:
    """Return the overrides that plan for this many GPUs; none if the config decides.

    More than one GPU needs Ray, so a config that trains in one process is planned with Ray, too.
    """
    if num_gpus is None:
        return []
    least = min(num_gpus, config.scaling.least_workers)
    is_fixed = isinstance(config.scaling.num_workers, int)
    workers = f"scaling.num_workers={num_gpus if is_fixed else [least, num_gpus]}"
    is_one_process = config.scaling.launcher == "local" and num_gpus > 1
    return [workers, "scaling.launcher=ray"] if is_one_process else [workers]


def find_accelerator(name: str) -> Accelerator:
    """Return a GPU by name. Raises: ConfigError."""
    if name not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        raise ConfigError(f"gpu={name}: its speed is not known; use one of: {known}")
    return ACCELERATORS[name]


@dataclass(frozen=True)
class StageShape:
    """The model of a stage on `meta`, with its adapters."""

    model: Any
    parts: list[PartCount]


def shape_stage(config: RunConfig, stage: Stage) -> StageShape:
    """Return the shape of a stage's model, with what trains in it.

    Raises:
        ConfigError: The shape of the model is neither declared nor with its weights, or an image
            leaves no room for text.
    """
    model = shape_on_meta(config.model)
    config_tiling(model.config, "model").check_fits(config.data.max_length)
    if stage.lora is not None:
        add_adapters(model, stage.lora, seed=config.seed, device=torch.device("meta"))
    return StageShape(model, freeze(model, stage.trainable))


def training_flops(config: RunConfig, stage: Stage, data: Mixture, order: StageOrder) -> float:
    """Return the floating point operations that the training of a stage takes.

    Raises:
        ConfigError: The shape of its model is unknown; see `shape_stage`.
    """
    model = shape_stage(config, stage).model
    return float(step_flops(model, stage=stage, data=data, order=order).sum())


def three_digits(number: float) -> str:
    """Write a number that is not negative with three digits or more, without an exponent."""
    if number >= 100:
        return f"{number:,.0f}"
    return "under 0.001" if 0 < number < 0.001 else f"{number:.3g}"


def plan_stage(
    config: RunConfig,
    stage: Stage,
    shape: StageShape,
    accelerator: str,
    *,
    mfu: float | None,
    speeds: Speeds,
) -> StageCost:
    """Return what one stage of this shape does and costs; see `plan_run`."""
    model, parts = shape.model, shape.parts
    places = {name: locate(config.datasets_directory) / name for name in stage.mixture}
    there = [name for name in places if _is_prepared(places[name], config.data.datasets[name])]
    prepared = {name: open_prepared(places[name]) for name in there}
    is_declared = len(prepared) < len(places)
    if is_declared:
        load = declared_workload(config, stage, model, prepared)
    else:
        data = Mixture(tuple(prepared.values()), tuple(stage.mixture.values()))
        load = measured_workload(config, stage, data)
    gpu = find_accelerator(accelerator)
    flops = stage_flops(model, stage, load.work)
    computed = stage_flops(model, stage, load.padded)

    sizing = Sizing(
        model,
        parts,
        num_workers=config.scaling.least_workers,  # a part of the state is largest then
        longest=load.longest,
        supervised=load.work.num_supervised / load.work.num_tokens,
        tiles_per_token=load.tiles_per_token,
    )

    setting = Setting.of(stage, config.engine_of(stage).kernels, accelerator)
    mfu_origin: str | None = None
    if mfu is None:
        mfu, mfu_origin = speeds.measured_mfu(setting) or (ASSUMED_MFU, None)
    planned = sizing.memory(config, stage.name)
    memory, correction = speeds.correct(planned, setting)
    fits = memory.total <= gpu.memory_bytes
    workers = config.scaling.most_workers
    # If the passes of a step do not divide evenly, all workers wait for those that have one more.
    at_work = stage.num_lanes / (stage.forward_passes(workers) * workers)
    hours = computed / (workers * at_work * gpu.flops_per_second * mfu) / 3600
    return StageCost(
        name=stage.name,
        accelerator=accelerator,
        num_gpus=workers,
        gpu_memory=gpu.memory_bytes,
        mfu=mfu,
        mfu_origin=mfu_origin,
        dataset=_name(stage.mixture),
        is_declared=is_declared,
        num_samples=load.num_samples,
        steps=load.steps,
        num_tokens=load.work.num_tokens,
        samples_per_step=load.samples_seen / load.steps,
        useful_tokens=min(1.0, load.work.num_tokens / load.processed),
        parts=parts,
        memory=memory,
        correction=correction,
        savings=() if fits else tuple(find_savings(config, stage, sizing.memory)),
        flops=flops,
        hours=hours,
        cost=config.gpu_prices.cost(accelerator, hours * 3600 * workers),
        prices=config.gpu_prices,
        assumed=_assumed(config, stage, prepared, config_tiling(model.config, "model")),
    )


def _name(mixture: dict[str, float]) -> str:
    """Return the name of a mixture, such as `dialogues + 0.5 captions`."""
    return " + ".join(
        name if passes == 1 else f"{passes:g} {name}" for name, passes in mixture.items()
    )


def _is_prepared(place: Location, dataset: Dataset) -> bool:
    try:
        return (place.without_retries() / MANIFEST).exists()
    except StorageError:
        if dataset.declared is None:
            raise
        return False  # planning from a declaration needs no access to the storage


def _assumed(
    config: RunConfig, stage: Stage, prepared: dict[str, PreparedDataset], tiles: Tiling
) -> tuple[str, ...]:
    """Return what is assumed about the lengths of datasets that are only declared."""
    sentences = []
    for name in stage.mixture:
        declared = config.data.datasets[name].declared
        if name not in prepared and declared is not None:
            sentences.append(
                f"{name}: lengths are assumed to be lognormal, {declared.mean_text_tokens:g} text "
                f"tokens on average with a spread of {declared.text_tokens_spread:g} times that "
                f"(data.datasets.{name}.declared.text_tokens_spread), "
                f"{_images(declared, tiles)}, and at most data.max_length={config.data.max_length}"
            )
    return tuple(sentences)


def _images(declared: Declared, tiles: Tiling) -> str:
    """Say how many images a sample has, and the tokens of each if they depend on its size."""
    number = declared.mean_images
    if not number:
        return "no image"
    each = "one image each" if number == 1 else f"{number:g} images each on average"
    return f"{each}, of {tiles.most_tokens} tokens, the most" if tiles.pinpoints else each
