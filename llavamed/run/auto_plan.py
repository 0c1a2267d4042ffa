"""Choose the settings of each stage that train it fastest within the memory of a GPU.

It varies packing, the size of a forward pass, the ZeRO stage, gradient checkpointing and, for
packs, the kernels. It keeps the optimizer, the precision and the trainable parts, and nearly keeps
the number of tokens per step.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from llavamed.config.engine import Kernels
from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.errors import ConfigError
from llavamed.model.attention import is_exchangeable
from llavamed.model.cost.flops import ACCELERATORS
from llavamed.model.cost.speeds import Setting, Speeds, shipped_speeds
from llavamed.model.kernels import check_kernels
from llavamed.model.llava import shape_on_meta
from llavamed.run.plan import (
    StageCost,
    find_accelerator,
    plan_stage,
    shape_stage,
    three_digits,
    workers_override,
)

SAME_STEP = 0.2
"""The fraction by which the samples of a step may differ from those configured."""
FASTEST_KERNELS = {"compile": True, "liger": False, "varlen": True}
"""The kernels that are tried beside those configured: the fastest that were measured."""
LARGEST_PASS = 8
"""Packs are tried up to this multiple of `data.max_length`, padded passes up to this many
samples."""


@dataclass(frozen=True)
class Trial:
    """A stage under some settings."""

    changes: tuple[str, ...]
    """The settings as overrides, `KEY=VALUE`, where they differ from the config."""
    cost: StageCost
    """What the stage costs with them. Its hours are those of `hours`."""
    mfu: float
    """Model-FLOPs utilization while the GPU computes."""
    mfu_origin: str | None
    """The measurement that `mfu` is taken from; None if it is calculated."""
    compute_hours: float
    """Hours spent on operations."""
    memory_hours: float
    """Hours in which the weights and the optimizer's state are read and written."""
    network_hours: float
    """Hours of ZeRO's collectives, as if none overlapped with operations."""

    @property
    def hours(self) -> float:
        """The sum of all three."""
        return self.compute_hours + self.memory_hours + self.network_hours

    @property
    def fits(self) -> bool:
        """Whether the memory of the GPU suffices."""
        return self.cost.memory.total <= self.cost.gpu_memory


@dataclass(frozen=True)
class ChosenSettings:
    """The settings chosen for a stage, and those configured."""

    stage: str
    configured: Trial
    chosen: Trial
    num_tried: int
    num_fitting: int


def choose(
    config: RunConfig,
    *,
    accelerator: str,
    num_gpus: int | None = None,
    speeds: Speeds | None = None,
) -> tuple[list[str], list[ChosenSettings]]:
    """Return the overrides of the fastest settings that fit, and for each stage what was chosen.

    Args:
        accelerator: A name in `ACCELERATORS`.
        num_gpus: Number of GPUs; by default the config's workers.
        speeds: Measured speeds of GPUs; by default those that come with llavamed.

    Raises:
        ConfigError: No setting that was tried fits a stage into the GPU's memory; or `plan_run`
            cannot plan the run as it is configured.
    """
    find_accelerator(accelerator)
    speeds = speeds or shipped_speeds()
    overrides = workers_override(config, num_gpus)
    config = override_config(config, overrides)
    choices = []
    for stage in config.stages:
        trials = list(_trials(config, stage, accelerator, speeds))
        fitting = [trial for trial in trials if trial.fits]
        if not fitting:
            least = min(trials, key=lambda trial: trial.cost.memory.total)
            raise ConfigError(
                f"stages.{stage.name}: needs {least.cost.memory.total / 1e9:.1f} GB a GPU at the "
                f"least of {len(trials)} settings tried, and {accelerator} has "
                f"{least.cost.gpu_memory / 1e9:.0f}; use more or larger GPUs, "
                "engine.offload_optimizer=cpu, or adapters (lora)"
            )
        # Among equally fast ones, take the one that changes least, and then the one that needs
        # least.
        best = min(
            fitting,
            key=lambda trial: (
                float(f"{trial.hours:.3g}"),
                len(trial.changes),
                trial.cost.memory.total,
            ),
        )
        choices.append(ChosenSettings(stage.name, trials[0], best, len(trials), len(fitting)))
        overrides += best.changes
    return overrides, choices


def _trials(config: RunConfig, stage: Stage, accelerator: str, speeds: Speeds) -> Iterator[Trial]:
    """Yield the stage as configured, and then with every other setting that the config accepts."""
    position = [each.name for each in config.stages].index(stage.name)
    shape = shape_stage(config, stage)

    def tried(changes: tuple[str, ...]) -> Trial:
        changed = override_config(config, list(changes))
        own = changed.stages[position]
        cost = plan_stage(changed, own, shape, accelerator, mfu=1.0, speeds=speeds)
        return _timed(changed, own, cost, changes, speeds)

    configured = tried(())
    yield configured
    key = f"stages.{stage.name}"
    own = config.engine_of(stage).kernels.model_dump()
    # `shape` has adapters, and attention that is replaced already.
    model = shape_on_meta(config.model)
    model.set_attn_implementation(config.model.attn_implementation)
    decoder = model.model.language_model
    # Otherwise samples of a pack might see each other.
    may_pack = stage.packing or is_exchangeable(decoder)
    fast = [FASTEST_KERNELS] if _may_be_fast(decoder) else []
    # On one GPU there is nothing to partition, and between several no reason not to.
    zero_stages = (0, 2) if configured.cost.num_gpus == 1 else (1, 2, 3)
    seen: set[tuple[str, ...]] = {()}
    for sizes, recompute, zero_stage, kernels in product(
        _passes(config, stage, configured.cost, may_pack),
        (False, 4, 2, True),
        zero_stages,
        (own, *fast),
    ):
        is_packed = sizes.get(f"{key}.packing", stage.packing)
        if kernels is not own and not is_packed:
            continue  # they compile layers for packs of one size
        settings = {
            **sizes,
            f"{key}.gradient_checkpointing": recompute,
            f"{key}.engine.zero_stage": zero_stage,
            **{f"{key}.engine.kernels.{name}": value for name, value in kernels.items()},
        }
        changes = tuple(
            f"{name}={json.dumps(value)}"
            for name, value in settings.items()
            if value != _present(config, stage, name.removeprefix(f"{key}."))
        )
        if changes in seen:
            continue
        seen.add(changes)
        try:
            trial = tried(changes)
        except ConfigError:
            continue  # it conflicts with the other settings
        samples = trial.cost.samples_per_step / configured.cost.samples_per_step
        if abs(samples - 1) <= SAME_STEP:
            yield trial


def _passes(
    config: RunConfig, stage: Stage, cost: StageCost, may_pack: bool
) -> Iterator[dict[str, int | bool | None]]:
    """Yield settings for the size of a forward pass, each with passes for about the same step."""
    key, workers = f"stages.{stage.name}", cost.num_gpus
    yield {}
    tokens_per_step = cost.num_tokens / cost.steps
    size = config.data.max_length
    while may_pack and size <= LARGEST_PASS * config.data.max_length:
        packs = max(1, round(tokens_per_step / size / workers)) * workers
        yield {
            f"{key}.packing": True,
            f"{key}.micro_batch_size": 1,
            f"{key}.max_tokens": size,
            f"{key}.global_batch_size": packs,
        }
        size *= 2
    size = 1
    while not stage.packing and size <= LARGEST_PASS:
        if stage.global_batch_size % (size * workers) == 0:
            yield {f"{key}.micro_batch_size": size}
        size *= 2


def _may_be_fast(decoder: Any) -> bool:
    """Return whether a language model can use the kernels that are tried."""
    try:
        check_kernels(decoder, Kernels(**FASTEST_KERNELS))
    except ConfigError:
        return False
    return True


def _present(config: RunConfig, stage: Stage, name: str) -> int | bool | None:
    """Return the value of a setting of a stage as configured."""
    section, _, field = name.rpartition(".")
    engine = config.engine_of(stage)
    places = {"": stage, "engine": engine, "engine.kernels": engine.kernels}
    value: int | bool | None = getattr(places[section], field)
    return value


def _timed(
    config: RunConfig, stage: Stage, cost: StageCost, changes: tuple[str, ...], speeds: Speeds
) -> Trial:
    """Return a trial with its hours.

    A pass does its operations and reads every weight twice, forward and backward. A step reads and
    writes the gradient, the weights and the optimizer's state. ZeRO sends gradients once per step
    below stage 2 and otherwise in every pass, the updated weights once per step, and in stage 3
    all weights twice per pass.

    Args:
        config: The run with the changes.
        cost: Its plan, with hours at the peak of the GPU.
    """
    engine, gpu = config.engine_of(stage), ACCELERATORS[cost.accelerator]
    trained = sum(part.num_trained for part in cost.parts)
    number = trained + sum(part.num_frozen for part in cost.parts)
    width = 2 if engine.precision == "bf16" else 4
    workers = cost.num_gpus
    passes = stage.forward_passes(workers)
    share = 1 / workers if engine.zero_stage else 1.0
    traffic = passes * 2 * number * width + 28 * trained * share
    gradients = trained * width * (passes if engine.zero_stage >= 2 else 1)
    gathered = 2 * number * width * passes if engine.zero_stage == 3 else trained * width
    sent = (gradients + gathered) * (workers - 1) / workers
    setting = Setting.of(stage, engine.kernels, cost.accelerator)
    mfu, mfu_origin = speeds.mfu(setting)
    return Trial(
        changes=changes,
        cost=cost,
        mfu=mfu,
        mfu_origin=mfu_origin,
        compute_hours=cost.hours / mfu,
        memory_hours=cost.steps * traffic / gpu.bytes_per_second / 3600,
        network_hours=cost.steps * sent / speeds.assumed.gather_bytes_per_second / 3600,
    )


def reasons(choice: ChosenSettings) -> list[str]:
    """Return sentences that say what was chosen for a stage, and why."""
    chosen, before = choice.chosen, choice.configured
    settings = " ".join(chosen.changes) or "as configured"
    memory = chosen.cost.memory.total / 1e9
    sentences = [
        f"{choice.stage}: {settings}",
        f"  {three_digits(chosen.hours)} hours: {three_digits(chosen.compute_hours)} of operations "
        f"at {chosen.mfu:.0%} MFU, {three_digits(chosen.memory_hours)} of memory, "
        f"{three_digits(chosen.network_hours)} of network; "
        f"{chosen.cost.useful_tokens:.0%} of the tokens useful; {memory:.0f} of "
        f"{chosen.cost.gpu_memory / 1e9:.0f} GB",
    ]
    if chosen.changes:
        now = f"{three_digits(before.hours)} hours" if before.fits else "does not fit"
        sentences.append(
            f"  as configured: {now}, {before.cost.useful_tokens:.0%} useful, "
            f"{before.cost.memory.total / 1e9:.0f} GB"
        )
    sentences.append(
        f"  the fastest of {choice.num_fitting} settings that fit, of {choice.num_tried} tried; "
        f"hours are {chosen.mfu_origin or 'arithmetic'}; {chosen.cost.memory_source}"
    )
    return sentences
