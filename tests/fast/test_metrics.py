"""The list of metrics, from which MLflow, Prometheus, the console and the docs are made."""

import re
from collections import Counter
from pathlib import Path

import pytest

from llavamed.train.metrics import METRICS, is_declared, progress_text

HELM = Path(__file__).parents[2] / "helm"
SERIES = {"gauge": {""}, "counter": {""}, "histogram": {"_bucket", "_count", "_sum"}}
"""What Prometheus appends to the name of each kind."""


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_described_and_named_as_prometheus_wants_it(metric):
    assert re.fullmatch(r"[A-Z].*[^.]\.", metric.help)
    assert re.fullmatch(r"[a-z][a-z_]*(\.PART)?", metric.name)
    assert re.fullmatch(r"[a-z_]*", metric.prometheus)
    assert metric.prometheus.endswith("_total") == (metric.kind == "counter")


def test_no_name_is_given_twice():
    for names in ([m.name for m in METRICS], [m.prometheus for m in METRICS if m.prometheus]):
        assert max(Counter(names).values()) == 1


def test_every_metric_that_the_chart_reads_is_exported():
    exported = {
        f"ray_llavamed_{metric.prometheus}{end}"
        for metric in METRICS
        if metric.prometheus
        for end in SERIES[metric.kind]
    }
    files = [path for path in HELM.rglob("*") if path.is_file()]
    read = {name for path in files for name in re.findall(r"ray_llavamed_\w+", path.read_text())}
    assert read
    assert read <= exported


def test_a_key_of_a_part_is_found_and_a_stranger_is_not():
    assert all(is_declared(key) for key in ("grad_norm", "grad_norm.vision_tower", "mfu"))
    assert not any(is_declared(key) for key in ("gradient", "loss.projector", "", "mfu.PART"))


def test_the_console_shows_what_a_record_holds():
    record = {"step": 3, "loss": 2.0, "tokens_per_second": 1234.4, "memory_bytes": 10}
    assert progress_text(record) == "loss 2.000  1,234 tokens/s"
    assert progress_text(record | {"mfu": 0.4321}) == "loss 2.000  1,234 tokens/s  43.2% MFU"
