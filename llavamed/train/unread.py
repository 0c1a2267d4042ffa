"""Keep the loss and norms of steps on the device until those of many steps are read at once.

A host that reads a number waits for all the work it has queued on the GPU, and the GPU then waits
for the host to queue more. So they are read only when records are reported or saved.
"""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from llavamed.train.context import Context
from llavamed.train.engine import TrainingEngine
from llavamed.train.guard import check_finite
from llavamed.train.job import StageJob
from llavamed.train.measure import Meter, rounded
from llavamed.train.metrics import StepRecord
from llavamed.train.schedule import learning_rates


@dataclass(frozen=True)
class TakenStep:
    """A step whose numbers are still on the device."""

    step: int
    """Number of the step, counted from 0."""
    num_supervised: int
    """Number of supervised tokens of all ranks."""
    sample_ids: tuple[str, ...]
    """The samples of this rank."""
    rate_factor: float
    """Factor on the peak learning rates."""
    has_moved: bool
    """Whether an earlier step of the stage had a learning rate above 0."""
    started: float
    """Time at which it began, by `time.monotonic`."""
    seconds: float
    """Seconds until the host had queued all of its work on the device."""
    data_wait: float
    """Seconds for which the host waited for its batches."""
    losses: torch.Tensor
    """float32 of shape [2]: the sums over the supervised tokens of this rank, and of all."""


class UnreadSteps:
    """The steps since the last reading."""

    def __init__(
        self,
        job: StageJob,
        context: Context,
        engine: TrainingEngine,
        meter: Meter,
        history: list[StepRecord],
    ) -> None:
        """Begin after the steps of `history`, to which those that are read are appended."""
        self._job = job
        self._context = context
        self._engine = engine
        self._meter = meter
        self.history = history
        self._steps: list[TakenStep] = []
        self._numbers: list[torch.Tensor] = []

    def add(self, step: TakenStep) -> None:
        """Keep a step that the engine has just taken, with the norms of its gradient."""
        self._steps.append(step)
        self._numbers.append(torch.cat([step.losses, self._engine.norms()]))

    def read(self, checkpoint_age: float) -> None:
        """Append the records of all of them; every rank must call it at the same step.

        On a GPU only the total time of these steps is known, and each step gets an equal share.

        Args:
            checkpoint_age: Seconds since the newest checkpoint.

        Raises:
            TrainingError: The loss or gradient of a step is not finite. No weight was changed by
                it or by later steps, or it is the last step.
        """
        if not self._steps:
            return
        rows: list[list[float]] = torch.stack(self._numbers).tolist()
        shared = (time.monotonic() - self._steps[0].started) / len(rows)
        records = []
        for taken, (own_sum, loss_sum, grad_norm, *part_norms) in zip(
            self._steps, rows, strict=True
        ):
            check_finite(
                self._context,
                self._job.stage,
                taken.step,
                taken.sample_ids,
                own_sum,
                loss_sum,
                grad_norm,
                has_moved=taken.has_moved,
            )
            seconds = taken.seconds if self._context.device.type == "cpu" else shared
            norms = zip(self._engine.parts, part_norms, strict=True)
            records.append(
                {
                    "step": taken.step + 1,
                    "loss": loss_sum / max(1, taken.num_supervised),
                    **learning_rates(self._job.stage.optimizer, taken.rate_factor),
                    "grad_norm": grad_norm,
                    **{f"grad_norm.{part}": rounded(norm) for part, norm in norms},
                    **self._meter.measure(taken.step, seconds=seconds, data_wait=taken.data_wait),
                    "checkpoint_age_seconds": rounded(checkpoint_age),
                }
            )
        self._steps, self._numbers = [], []
        self.history += records
        for record in records:
            self._context.observe(record)


def with_all_ranks(loss_sum: torch.Tensor) -> torch.Tensor:
    """Return this rank's loss sum and that of all ranks, of shape [2]; every rank must call it."""
    total = loss_sum.clone()
    dist.all_reduce(total)
    return torch.stack([loss_sum, total])
