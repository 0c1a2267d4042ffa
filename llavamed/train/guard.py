"""What stops a stage: a loss that jumps, or memory that runs out; and what helps then."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.loader import Batch
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError, TrainingError
from llavamed.model.cost.memory import Memory, stage_memory
from llavamed.model.freeze import PartCount
from llavamed.train.context import Context, Record
from llavamed.train.job import can_convert, number_settings
from llavamed.train.schedule import warmup_steps

MEDIAN_OF = 50
"""Steps before a step whose median loss its own is compared with."""
NUM_CURES = 3
Precision = Literal["bf16", "fp32"]
_DTYPES = {"bf16": (torch.bfloat16, torch.int16), "fp32": (torch.float32, torch.int32)}


def finite_mean(
    loss_sum: torch.Tensor, num_supervised: int, step: int, batches: list[Batch], context: Context
) -> float:
    """The global step's mean loss; refuses one that is not finite, before the optimizer moves.

    Args:
        loss_sum: Scalar, summed over this rank's supervised tokens of the step.
        num_supervised: Supervised tokens of all ranks.
        step: Counted from 0.
        batches: What this rank computed the loss of.
        context: This rank.

    Raises:
        TrainingError: It is infinite or not a number.
    """
    total = loss_sum.clone()
    dist.all_reduce(total)
    if not math.isfinite(total.item()):
        where = f" on rank {context.rank}, samples {ids_of(batches)}"
        mine = "" if math.isfinite(loss_sum.item()) else where
        raise TrainingError(
            f"loss={total.item()} at step {step + 1}{mine}: is not finite, and no weight was "
            "changed by it; look at these samples, or lower optimizer.lr and start under another "
            "name"
        )
    return float(total.item()) / max(1, num_supervised)


def weight_sums(model: torch.nn.Module, precision: Precision) -> dict[str, int]:
    """Return a checksum of each parameter that trains, by name: of its bits in the precision."""
    return {
        name: _sum_of_bits(parameter, precision)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def check_moved(
    stage: Stage,
    precision: Precision,
    sums: Mapping[str, int],
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Refuse a stage that has trained nothing.

    Args:
        stage: The stage.
        precision: Of the weights.
        sums: What `weight_sums` gave before the first step.
        weights: All weights after the last one, by the same names.

    Raises:
        TrainingError: Not one weight is another one than before.
    """
    if all(_sum_of_bits(weights[name], precision) == before for name, before in sums.items()):
        raise TrainingError(
            f"stages.{stage.name}.optimizer.lr={stage.optimizer.lr:g}: no weight of "
            f"[{', '.join(stage.trainable)}] has moved in the whole stage, so nothing is exported; "
            "raise it, and start under another name"
        )


def _sum_of_bits(weight: torch.Tensor, precision: Precision) -> int:
    dtype, bits = _DTYPES[precision]
    return int(weight.detach().to(dtype).contiguous().view(bits).sum(dtype=torch.int64))


def ids_of(batches: list[Batch]) -> list[str]:
    """The samples of some batches."""
    return [sample for batch in batches for sample in batch.sample_ids]


def check_loss(
    config: RunConfig, stage: Stage, history: Sequence[Record], loss: float, num_steps: int
) -> None:
    """Refuse a loss far above those before it; equal on all ranks, for all have the mean of all.

    Args:
        config: The run.
        stage: Whose `max_loss_ratio` is the bound.
        history: The records of all steps before this one.
        loss: The mean of this step, whose gradient no weight has followed yet.
        num_steps: Of the whole stage.

    Raises:
        TrainingError: The loss exceeds the bound, after the warm-up.
    """
    step = len(history) + 1
    bound, warmup = stage.max_loss_ratio, warmup_steps(stage.schedule, num_steps)
    if bound is None or step <= max(1, warmup):
        return
    median = float(np.median([record["loss"] for record in history[-MEDIAN_OF:]]))
    if loss > bound * median:
        saved = (step - 1) // config.checkpoint.every_steps * config.checkpoint.every_steps
        start = f"the checkpoint of step {saved}" if saved else "the stage's start"
        raise TrainingError(
            f"loss={loss:.4g} at step {step}: exceeds stages.{stage.name}.max_loss_ratio={bound:g} "
            f"x {median:.4g}, the median of the steps before, and no weight was changed by it; "
            f"raise max_loss_ratio to go on from {start}, or lower optimizer.lr and start under "
            "another name"
        )


@contextmanager
def explained_memory(
    config: RunConfig,
    stage: Stage,
    model: Any,
    counts: Sequence[PartCount],
    data: Mixture,
    num_workers: int,
) -> Iterator[None]:
    """Answer a GPU that runs out of memory within by what the stage needs and what would help.

    Args:
        config: The run.
        stage: In training.
        model: Of the stage, with its adapters.
        counts: What `freeze` found.
        data: The stage's samples.
        num_workers: Workers of the stage.

    Raises:
        TrainingError: In place of torch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        tokens, supervised = data.column("num_tokens"), data.column("num_supervised")
        sizing = _Sizing(
            model, counts, num_workers, int(tokens.max()), float(supervised.sum() / tokens.sum())
        )
        reason = str(error).split(". ")[0].strip().splitlines()[0]
        raise TrainingError(_explain(config, stage, sizing, reason)) from error


@dataclass(frozen=True)
class _Sizing:
    """All that the plan of a stage's memory needs beside the config."""

    model: Any
    counts: Sequence[PartCount]
    num_workers: int
    longest: int
    """Tokens of the longest sample."""
    supervised: float
    """Part of the tokens that is."""

    def memory(self, config: RunConfig, name: str) -> Memory:
        stage = next(stage for stage in config.stages if stage.name == name)
        return stage_memory(
            self.model,
            self.counts,
            stage=stage,
            engine=config.engine_of(stage),
            num_workers=self.num_workers,
            longest=self.longest,
            supervised=self.supervised,
        )


def _explain(config: RunConfig, stage: Stage, sizing: _Sizing, reason: str) -> str:
    planned = sizing.memory(config, stage.name)
    savings: dict[str, tuple[float, str]] = {}
    for change in _cures(config, stage):
        try:
            changed = override_config(config, [change])
        except ConfigError:
            continue  # does not go with the other settings
        saved = planned.total - sizing.memory(changed, stage.name).total
        field = change.partition("=")[0]
        savings[field] = max(savings.get(field, (0.0, "")), (saved, change), key=lambda it: it[0])
    best = sorted(savings.values(), key=lambda it: it[0], reverse=True)[:NUM_CURES]
    hints = []
    for saved, change in best:
        if saved > 0:
            where = "" if _goes_on(config, change) else ", under another name"
            hints.append(f"{change} ({_gb(saved)} GB less{where})")
    needs = ", ".join(f"{name} {_gb(value)}" for name, value in vars(planned).items())
    return (
        f"memory={_gb(planned.total)} GB: is what stage {stage.name} needs on each worker by plan "
        f"({needs}), and its GPU ran out of it: {reason}; "
        + (f"set {' or '.join(hints)}" if hints else "use GPUs with more memory, or more of them")
    )


def _goes_on(config: RunConfig, change: str) -> bool:
    """Return whether a run that has saved something takes a change: it changes no number of it."""
    changed = override_config(config, [change])
    for before, now in zip(config.stages, changed.stages, strict=True):
        if number_settings(config, before) != number_settings(changed, now):
            return False
        if not can_convert(config.engine_of(before).zero_stage, changed.engine_of(now).zero_stage):
            return False
    return True


def _cures(config: RunConfig, stage: Stage) -> list[str]:
    """Overrides that may save memory and leave alone which weights learn."""
    key = f"stages.{stage.name}"
    fewer = max(stage.pack_tokens // 2, config.data.max_length)

    def engine(field: str) -> str:
        """The key that decides a field of the stage's engine."""
        return (
            f"engine.{field}" if getattr(stage.engine, field) is None else f"{key}.engine.{field}"
        )

    return [
        f"{key}.max_tokens={fewer}",
        f"{key}.micro_batch_size={stage.micro_batch_size // 2}",
        f"{key}.gradient_checkpointing=true",
        *(f"{engine('zero_stage')}={number}" for number in (1, 2, 3)),
        f"{engine('offload_optimizer')}=cpu",
        f"{engine('precision')}=bf16",
        f"{key}.optimizer.name=adamw_8bit",
    ]


def _gb(value: float) -> str:
    return f"{value / 1e9:.1f}"
