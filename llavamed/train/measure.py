"""Measure the speed and memory of each step on one rank."""

import resource
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from llavamed.config.engine import Engine
from llavamed.config.stage import Stage
from llavamed.data.feed.order import StageOrder
from llavamed.data.prepared.mixture import Mixture
from llavamed.model.cost.flops import Workload, peak_flops, stage_flops
from llavamed.train.context import Context
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


def step_flops(model: Any, *, stage: Stage, data: Mixture, order: StageOrder) -> Any:
    """Return the floating point operations of every step of a stage, padding not counted.

    Args:
        model: The model with the stage's adapters and trainable parts, before ZeRO-3 partitions it;
            its weights may be on the meta device.
        stage: The stage.
        data: The datasets that it trains on.
        order: The order of their samples.
    """
    columns = {name: data.column(name) for name in ("num_tiles", "num_tokens", "num_supervised")}
    columns["sum_squared_tokens"] = columns["num_tokens"] ** 2
    sums: dict[str, Any] = {name: order.sums(column) for name, column in columns.items()}
    return stage_flops(model, stage, Workload(**sums))


def cluster_peak_flops(engine: Engine, context: Context) -> float | None:
    """Return the peak operations per second of all workers' GPUs, or None if unknown."""
    if context.device.type != "cuda" or engine.precision != "bf16":
        return None
    peak = peak_flops(torch.cuda.get_device_name(context.device))
    return None if peak is None else peak * context.world_size


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
