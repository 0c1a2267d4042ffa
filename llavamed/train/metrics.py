"""Declare the metrics of an optimizer step once.

A record of a step holds the values. MLflow, Prometheus, the progress display and the table in the
documentation take from this list the name of a metric, its meaning and where it is shown. A name
that ends in `.PART` means one metric for each part of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

StepRecord = dict[str, float]
"""The metrics of one optimizer step, including `step`."""

PART = "PART"


@dataclass(frozen=True)
class Metric:
    """One metric of a step."""

    name: str
    """Its key in a step's record, which is also its name in MLflow."""
    unit: str
    """The unit of its value."""
    help: str
    """Its meaning, in whole sentences."""
    prometheus: str = ""
    """Its name in Prometheus, without the prefix `ray_llavamed_`; empty if it is not exported."""
    kind: Literal["gauge", "counter", "histogram"] = "gauge"
    """The kind of Prometheus metric."""
    per_worker: bool = False
    """Whether every worker exports a value of its own; otherwise rank 0 exports it for all."""
    console: str = ""
    """Format of its value in the progress display; empty if it is not shown."""


METRICS = (
    Metric(
        "step",
        "steps",
        "Number of optimizer steps taken. In MLflow it is the step of every other metric.",
        prometheus="step",
    ),
    Metric(
        "loss",
        "nats per token",
        "Cross entropy, averaged over the supervised tokens of the global batch.",
        prometheus="loss",
        console="loss {:.3f}",
    ),
    Metric(
        "learning_rate",
        "",
        "Learning rate of the stage in this step, after the schedule.",
        prometheus="learning_rate",
    ),
    Metric(
        "learning_rate.PART",
        "",
        "Learning rate of a part of the model that sets its own with `optimizer.parts`.",
    ),
    Metric(
        "grad_norm",
        "",
        "L2 norm of the gradient of the global batch, before it is clipped.",
        prometheus="grad_norm",
    ),
    Metric(
        "grad_norm.PART",
        "",
        "L2 norm of the gradient of one trained part of the model, before it is clipped. There is "
        "none with `engine.offload_optimizer`.",
    ),
    Metric(
        "num_tokens",
        "tokens",
        "Number of tokens of the samples of the step, over all workers. Padding does not count. "
        "Prometheus keeps the sum over the steps.",
        prometheus="tokens_total",
        kind="counter",
    ),
    Metric(
        "tokens_per_second",
        "tokens per second",
        "Tokens of the step divided by its duration, over all workers.",
        prometheus="tokens_per_second",
        console="{:,.0f} tokens/s",
    ),
    Metric(
        "mfu",
        "fraction",
        "Model FLOPs utilization: the operations that the model needs, divided by those that the "
        "GPUs could have done in bfloat16. It is absent where the peak of the device is unknown.",
        prometheus="mfu",
        console="{:.1%} MFU",
    ),
    Metric(
        "step_seconds",
        "seconds",
        "Duration of the optimizer step, with the wait for data; on a GPU the mean of the steps "
        "between two readings of the loss. MLflow shows the value of rank 0.",
        prometheus="step_seconds",
        kind="histogram",
        per_worker=True,
    ),
    Metric(
        "data_wait_seconds",
        "seconds",
        "Time in which the worker waited for its batches. MLflow shows the value of rank 0.",
        prometheus="data_wait_seconds",
        per_worker=True,
    ),
    Metric(
        "checkpoint_age_seconds",
        "seconds",
        "Time since the state of the newest complete checkpoint was copied, or since this attempt "
        "began to train if it has completed none. This time is lost with a machine.",
        prometheus="checkpoint_age_seconds",
    ),
    Metric(
        "memory_bytes",
        "bytes",
        "Maximum amount of GPU memory allocated so far, or the largest resident set of the process "
        "where there is no GPU. MLflow shows the value of rank 0.",
        prometheus="memory_bytes",
        per_worker=True,
    ),
    Metric(
        "memory_reserved_bytes",
        "bytes",
        "Maximum amount of GPU memory reserved by PyTorch so far. It is absent where there is no "
        "GPU. MLflow shows the value of rank 0.",
        prometheus="memory_reserved_bytes",
        per_worker=True,
    ),
)
"""All metrics of a step, in display order."""

_NAMES = {metric.name for metric in METRICS}


def is_declared(key: str) -> bool:
    """Return whether a key of a record is a metric of the list."""
    return key in _NAMES or f"{key.partition('.')[0]}.{PART}" in _NAMES


def progress_text(record: Mapping[str, float]) -> str:
    """Return the metrics of a record that the progress display shows, as one line."""
    texts = [
        metric.console.format(record[metric.name])
        for metric in METRICS
        if metric.console and metric.name in record
    ]
    return "  ".join(texts)
