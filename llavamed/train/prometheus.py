"""Export the metrics of each step to Prometheus, through Ray's metrics agent on every node."""

from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from llavamed.train.metrics import METRICS, Metric, StepRecord

PREFIX = "llavamed_"
"""Prefix of all names, to which Ray adds `ray_`."""
_BOUNDARIES = [0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0]
"""Upper bounds of the histogram buckets, in the unit of the metric."""


_CLASSES: dict[str, Any] = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}


class WorkerMetrics:
    """The metrics of one worker of a stage: its own, and on rank 0 those of the whole step."""

    def __init__(self, run: str, stage: str, rank: int) -> None:
        tags = {"run": run, "stage": stage, "rank": str(rank)}
        self._exports = [
            (metric, _make_export(metric, tags))
            for metric in METRICS
            if metric.prometheus and (metric.per_worker or rank == 0)
        ]

    def observe(self, record: StepRecord) -> None:
        """Export the record of a finished step."""
        for metric, export in self._exports:
            value = record.get(metric.name)
            if value is None:
                continue
            match metric.kind:
                case "gauge":
                    export.set(value)
                case "histogram":
                    export.observe(value)
                case "counter" if value > 0:  # Ray refuses to add 0
                    export.inc(value)


def _make_export(metric: Metric, tags: dict[str, str]) -> Any:
    """Return Ray's object for a metric."""
    name = PREFIX + metric.prometheus.removesuffix("_total")  # Ray adds it to every counter
    settings = {"boundaries": _BOUNDARIES} if metric.kind == "histogram" else {}
    export = _CLASSES[metric.kind](name, metric.help, tag_keys=tuple(tags), **settings)
    export.set_default_tags(tags)
    return export
