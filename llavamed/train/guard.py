"""Stop a stage that would train wrongly or runs out of memory, and advise what would help."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from llavamed.config.engine import Precision
from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.loader import Batch
from llavamed.errors import TrainingError
from llavamed.model.cost.savings import find_savings
from llavamed.model.loss import column_logits
from llavamed.train.collectives import together
from llavamed.train.context import Context
from llavamed.train.job import can_convert, number_settings
from llavamed.train.measure import Sizing
from llavamed.train.metrics import StepRecord
from llavamed.train.schedule import warmup_steps

MEDIAN_OF = 50
"""The loss of a step is compared with the median loss of this many steps before it."""
NUM_COMPARED = 16
"""Number of positions after the end of a sample in a pack at which to look for a leak."""
_DTYPES = {"bf16": (torch.bfloat16, torch.int16), "fp32": (torch.float32, torch.int32)}


def check_finite(
    context: Context,
    stage: Stage,
    step: int,
    sample_ids: Sequence[str],
    own_sum: float,
    loss_sum: float,
    grad_norm: float = 0.0,
    *,
    has_moved: bool,
) -> None:
    """Raise TrainingError if the loss or the gradient of a step is not finite.

    Every rank must call it.

    Args:
        step: The step, counted from 0.
        sample_ids: This rank's samples of the step.
        own_sum: The loss, summed over this rank's supervised tokens of the step.
        loss_sum: The same, summed over all ranks.
        grad_norm: L2 norm of the gradient of all ranks, if the step has been taken.
        has_moved: Whether an earlier step of the stage had a learning rate above 0.

    Raises:
        TrainingError: One is infinite or not a number.
    """

    def look_at(where: str) -> str:
        if not has_moved:
            return f"look at the initial weights, which no step has changed, and at {where}"
        key = f"stages.{stage.name}.optimizer.lr={stage.optimizer.lr:g}"
        return f"lower {key} and start under another name, or look at {where}"

    if not math.isfinite(loss_sum):
        mine = None if math.isfinite(own_sum) else (context.rank, list(sample_ids))
        found: list[tuple[int, list[str]] | None] = [None] * context.world_size
        dist.all_gather_object(found, mine)
        # Every rank raises the same sentence, since Ray passes on that of any of them.
        where = " and ".join(f"samples {ids} on rank {rank}" for rank, ids in filter(None, found))
        raise TrainingError(
            f"loss={loss_sum} at step {step + 1}: is not finite, and no weight was changed by it; "
            f"{look_at(where or 'the sum over all ranks')}"
        )
    if not math.isfinite(grad_norm):
        samples = f"samples {list(sample_ids)} on rank {context.rank}"
        raise TrainingError(
            f"grad_norm={grad_norm} at step {step + 1}: is not finite, though the loss is; "
            f"nothing of this step is saved; {look_at(samples)}"
        )


def weight_sums(model: torch.nn.Module, precision: Precision) -> dict[str, int]:
    """Return a checksum of the bits of each trainable parameter in the precision, by name."""
    return {
        name: _sum_of_bits(parameter, precision)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def check_moved(
    stage: Stage, precision: Precision, sums: Mapping[str, int], weights: Mapping[str, torch.Tensor]
) -> None:
    """Raise TrainingError if a stage has not changed any weight.

    Args:
        sums: The result of `weight_sums` before the first step.
        weights: All weights after the last step, by the same names.
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


def ids_of(batches: list[Batch]) -> tuple[str, ...]:
    """Return the ids of the samples of these batches."""
    return tuple(sample for batch in batches for sample in batch.sample_ids)


def check_loss(
    config: RunConfig, stage: Stage, history: Sequence[StepRecord], loss: float, num_steps: int
) -> None:
    """Raise TrainingError if the loss is far above the losses before it.

    The loss is the mean over all ranks, so all ranks decide alike.

    Args:
        stage: The stage, whose `max_loss_ratio` is the bound.
        history: The records of all steps before this one.
        loss: The mean loss of this step, before its gradient changes any weight.
        num_steps: Steps of the whole stage.

    Raises:
        TrainingError: The loss exceeds the bound after the warm-up.
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


@torch.no_grad()
def check_separation(stage: Stage, model: torch.nn.Module, batch: Batch, image_token: int) -> None:
    """Find out whether the samples of a pack see each other, by changing the tokens of the first.

    Language models with recurrent layers, and some that make their own masks, ignore where a sample
    begins. The unchanged pack is computed twice first, which shows by how much equal logits differ.
    Every rank must call it.

    Args:
        model: The model to call, in training mode.
        batch: A pack on the model's device; with a single sample nothing is compared.
        image_token: The id of the token of images, which is not changed.

    Raises:
        TrainingError: The second sample's logits change with the first sample's tokens.
    """
    first = batch.sample_lengths[0][0]
    is_text = batch.input_ids[0, :first] != image_token
    changed = batch.input_ids.clone()
    changed[0, :first][is_text] = changed[0, :first][is_text].roll(1)
    last = batch.input_ids.shape[1] - 1
    columns = torch.arange(first, first + NUM_COMPARED, device=changed.device).clamp(max=last)
    logits = []
    with torch.random.fork_rng():
        for ids in (batch.input_ids, batch.input_ids, changed):
            # The same dropout each time, since a model in evaluation mode would repack four bits.
            torch.manual_seed(0)
            tried = replace(batch, input_ids=ids)
            logits.append(column_logits(model, tried, columns).float())

    def compare() -> None:
        noise, leak = ((each - logits[0]).abs().max().item() for each in logits[1:])
        if len(batch.sample_lengths[0]) > 1 and leak > 10 * noise:
            raise TrainingError(
                f"stages.{stage.name}.packing=true: the language model lets samples of a pack see "
                f"each other: other tokens in the first move the logits of the second by {leak:.2g}"
                "; set it to false, without max_tokens"
            )

    together(compare)


@contextmanager
def explained_memory(config: RunConfig, stage: Stage, sizing: Sizing) -> Iterator[None]:
    """Explain a GPU out of memory by what the stage needs, and advise what would help.

    Args:
        sizing: What the plan of its memory needs.

    Raises:
        TrainingError: Replaces torch's error within the context.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0].strip().splitlines()[0]
        raise TrainingError(_explain(config, stage, sizing, reason)) from error


def _explain(config: RunConfig, stage: Stage, sizing: Sizing, reason: str) -> str:
    planned = sizing.memory(config, stage.name)
    hints = []
    for saving in find_savings(config, stage, sizing.memory):
        where = "" if _goes_on(config, saving.change) else ", under another name"
        hints.append(f"{saving.change} ({_gb(saving.num_bytes)} GB less{where})")
    needs = ", ".join(f"{name} {_gb(value)}" for name, value in planned.parts.items())
    return (
        f"memory={_gb(planned.total)} GB: is the planned need of stage {stage.name} on each worker "
        f"({needs}), and its GPU ran out of it: {reason}; "
        + (f"set {' or '.join(hints)}" if hints else "use GPUs with more memory, or more of them")
    )


def _goes_on(config: RunConfig, change: str) -> bool:
    """Return whether a run with checkpoints continues after a change, as no number changes."""
    changed = override_config(config, [change])
    for before, now in zip(config.stages, changed.stages, strict=True):
        if number_settings(config, before) != number_settings(changed, now):
            return False
        if not can_convert(config.engine_of(before).zero_stage, changed.engine_of(now).zero_stage):
            return False
    return True


def _gb(value: float) -> str:
    return f"{value / 1e9:.1f}"
