"""Measure the speed and memory of each step on one rank."""

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from llavamed.config.engine import Engine
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.order import StageOrder
from llavamed.data.prepared.mixture import Mixture
from llavamed.model.cost.flops import Workload, accelerator_name, peak_flops, stage_flops
from llavamed.model.cost.memory import Memory, stage_memory
from llavamed.model.cost.speeds import Setting
from llavamed.model.freeze import PartCount
from llavamed.storage.manifest import MeasuredMemory, Measurement
from llavamed.train.context import Context
from llavamed.train.job import StageJob
from llavamed.train.metrics import StepRecord

PERCENTILES = (50, 95, 99)


class Meter:
    """Computes the work of every step of a stage. Create it before ZeRO-3 partitions the model."""

    def __init__(
        self,
        model: Any,
        *,
        stage: Stage,
        data: Mixture,
        order: StageOrder,
        device: torch.device,
        peak_flops: float | None,
    ) -> None:
        self._device = device
        self._peak_flops = peak_flops
        self._num_tokens = order.sums(data.column("num_tokens"))
        self._flops = step_flops(model, stage=stage, data=data, order=order)
        if device.type == "cuda":  # without Ray, an earlier stage may have been in this process
            torch.cuda.reset_peak_memory_stats(device)

    def measure(self, step: int, *, seconds: float, data_wait: float) -> StepRecord:
        """Return the measured metrics of a step.

        `mfu` is model FLOPs utilization: the operations of the step as counted by `stage_flops`,
        divided by `seconds` times the dense bfloat16 operations per second of all workers. It is
        absent where that peak (`cluster_peak_flops`) is unknown: on a CPU, in float32, and on a GPU
        that `peak_flops` does not know. Source: PaLM (arXiv 2204.02311), appendix B.

        Args:
            step: The step, counted from 0.
            seconds: Duration of the whole step, including `data_wait`.
            data_wait: Seconds in which this rank waited for its batches.
        """
        num_tokens = int(self._num_tokens[step])
        record = {
            "num_tokens": num_tokens,
            "tokens_per_second": rounded(num_tokens / seconds),
            "step_seconds": rounded(seconds),
            "data_wait_seconds": rounded(data_wait),
        }
        if self._peak_flops is not None:
            record["mfu"] = rounded(float(self._flops[step]) / (seconds * self._peak_flops))
        return record | self._memory()

    def _memory(self) -> StepRecord:
        """Return the peak bytes of the GPU's allocator, or of this process if there is no GPU."""
        if self._device.type != "cuda":
            return {"memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        return {
            "memory_bytes": torch.cuda.max_memory_allocated(self._device),
            "memory_reserved_bytes": torch.cuda.max_memory_reserved(self._device),
        }


def step_flops(
    model: Any, *, stage: Stage, data: Mixture, order: StageOrder
) -> npt.NDArray[np.float64]:
    """Return the floating point operations of every step of a stage, padding not counted.

    Args:
        model: The model with the stage's adapters and trainable parts, before ZeRO-3 partitions it;
            its weights may be on the meta device.

    Returns:
        float64 array of shape [steps].
    """
    columns = {name: data.column(name) for name in ("num_tiles", "num_tokens", "num_supervised")}
    columns["sum_squared_tokens"] = columns["num_tokens"] ** 2
    sums: dict[str, Any] = {name: order.sums(column) for name, column in columns.items()}
    return np.asarray(stage_flops(model, stage, Workload(**sums)), np.float64)


def cluster_peak_flops(engine: Engine, context: Context) -> float | None:
    """Return the peak operations per second of all workers' GPUs, or None if unknown."""
    if context.device.type != "cuda" or engine.precision != "bf16":
        return None
    peak = peak_flops(torch.cuda.get_device_name(context.device))
    return None if peak is None else peak * context.world_size


@dataclass(frozen=True)
class Sizing:
    """The facts, besides the config, from which the memory of a stage is planned."""

    model: Any
    counts: Sequence[PartCount]
    num_workers: int
    longest: float
    """Tokens of the longest sample."""
    supervised: float
    """Fraction of the tokens that are supervised."""
    tiles_per_token: float
    """Tiles of images, divided by tokens, of the sample with most of them."""

    @classmethod
    def of(
        cls, model: Any, counts: Sequence[PartCount], data: Mixture, num_workers: int
    ) -> "Sizing":
        """Return the sizing of a stage.

        Args:
            counts: The result of `freeze`.
        """
        tokens, supervised = data.column("num_tokens"), data.column("num_supervised")
        return cls(
            model,
            counts,
            num_workers,
            int(tokens.max()),
            float(supervised.sum() / tokens.sum()),
            float((data.column("num_tiles") / tokens).max()),
        )

    def memory(self, config: RunConfig, name: str) -> Memory:
        """Plan the memory of a stage, by its name, under a config."""
        stage = next(stage for stage in config.stages if stage.name == name)
        return stage_memory(
            self.model,
            self.counts,
            stage=stage,
            engine=config.engine_of(stage),
            num_workers=self.num_workers,
            longest=self.longest,
            supervised=self.supervised,
            tiles_per_token=self.tiles_per_token,
        )


def measurement(
    job: StageJob, sizing: Sizing, records: Sequence[StepRecord], device: torch.device
) -> Measurement | None:
    """Return what one attempt at a stage has measured, or None if the GPU's peak is not known.

    Args:
        sizing: What the plan of its memory needs.
        records: The steps that this attempt took.
    """
    name = accelerator_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if name is None or not records:
        return None
    peak = max(record["memory_bytes"] for record in records)
    planned = sizing.memory(job.config, job.stage.name)
    setting = Setting.of(job.stage, job.config.engine_of(job.stage).kernels, name)
    return Measurement(
        result=f"{job.config.name}: {job.stage.name}",
        **vars(setting),
        mfu=speed(records).get("mfu"),
        memory=MeasuredMemory(planned=planned.counted, peak_bytes=peak),
    )


class Speed(TypedDict):
    """The speed of a stage, under the names of its export's manifest."""

    tokens_per_second: float
    mfu: NotRequired[float]
    step_seconds: dict[str, float]


def speed(history: Sequence[StepRecord]) -> Speed:
    """Summarize the speed of a stage, without the first tenth of its steps as warm-up.

    Returns:
        The median `tokens_per_second` and, if known, `mfu`; and `step_seconds`, a mapping of
        percentiles by name, such as `p95`.
    """
    late = history[len(history) // 10 :]
    seconds = np.percentile([record["step_seconds"] for record in late], PERCENTILES)
    names = (f"p{number}" for number in PERCENTILES)
    found: Speed = {
        "tokens_per_second": _median(late, "tokens_per_second"),
        "step_seconds": dict(zip(names, seconds.tolist(), strict=True)),
    }
    if all("mfu" in record for record in late):
        found["mfu"] = _median(late, "mfu")
    return found


def _median(records: Sequence[StepRecord], key: str) -> float:
    return float(np.median([record[key] for record in records]))


def rounded(number: float) -> float:
    """Return a number rounded to six digits, which is all a clock supports and saves space."""
    return float(f"{number:.6g}")
