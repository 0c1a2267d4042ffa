"""Metrics of each step for Prometheus, which fetches them from Ray's agent on every node."""

from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from llavamed.train.context import Record

_OF_A_STEP = {
    "step": "Optimizer steps done",
    "loss": "Mean over the supervised tokens of the global step",
    "learning_rate": "Of the last step",
    "grad_norm": "Before clipping",
    "tokens_per_second": "Of all workers together",
    "mfu": "Model-FLOPs utilisation, where the peak of the GPU is known",
}
"""What is the same on every worker, told by rank 0; by key of a record."""
_OF_A_WORKER = {
    "data_wait_seconds": "Wait for the batches of the last step",
    "memory_bytes": "At the peak: allocated on the GPU, or of the process where there is none",
    "memory_reserved_bytes": "At the peak: taken from the GPU",
}
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0]


class WorkerMetrics:
    """The metrics of one worker of a stage."""

    def __init__(self, run: str, stage: str, rank: int) -> None:
        tags = {"run": run, "stage": stage, "rank": str(rank)}
        described = _OF_A_WORKER | (_OF_A_STEP if rank == 0 else {})

        def tagged(make: Any, name: str, description: str, **settings: Any) -> Any:
            keys = tuple(tags)
            metric = make(f"llavamed_{name}", description=description, tag_keys=keys, **settings)
            metric.set_default_tags(tags)
            return metric

        self._gauges = {key: tagged(Gauge, key, text) for key, text in described.items()}
        text = "Seconds of an optimizer step"
        self._seconds = tagged(Histogram, "step_seconds", text, boundaries=_SECONDS)
        text = "Tokens of samples, of all workers"
        self._tokens = tagged(Counter, "tokens", text) if rank == 0 else None

    def observe(self, record: Record) -> None:
        """Add the record of a step that was taken."""
        for key, gauge in self._gauges.items():
            if key in record:
                gauge.set(record[key])
        self._seconds.observe(record["step_seconds"])
        if self._tokens is not None and record["num_tokens"]:
            self._tokens.inc(record["num_tokens"])
