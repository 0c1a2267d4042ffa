"""The measured part of a record: no number where it cannot be known, and the parts make the sum."""

import json
import math

import numpy as np
import pytest
import torch

from llavamed.config.run import RunConfig
from llavamed.model.cost.flops import ACCELERATORS, Workload, peak_flops, stage_flops
from llavamed.model.cost.speeds import shipped_speeds
from llavamed.model.freeze import freeze
from llavamed.model.llava import build_model
from llavamed.run.plan import plan_run
from llavamed.storage.manifest import ExportManifest
from llavamed.train.context import Context
from llavamed.train.job import order_of
from llavamed.train.measure import Meter, Sizing, cluster_peak_flops, measurement, rounded, speed
from llavamed.train.metrics import StepRecord, is_declared
from tests.support.manifests import export_manifest
from tests.support.training_setup import make_job, mixture, processor_of, run_stage, small_config

CPU = torch.device("cpu")
PARTS = "stages.align.trainable=[vision_tower, projector, language_model]"


def test_the_steps_of_a_stage_cost_what_the_stage_costs(tiny_config: RunConfig) -> None:
    config = small_config(tiny_config)
    stage, data = config.stages[0], mixture(config)
    order = order_of(stage, data, config.seed)
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    meter = Meter(model, stage=stage, data=data, order=order, device=CPU, peak_flops=1e9)
    seconds = 0.25
    records = [
        meter.measure(step, seconds=seconds, data_wait=0.0) for step in range(order.num_steps)
    ]
    seen = np.concatenate([pack for step in range(order.num_steps) for pack in order.samples(step)])
    tokens = data.column("num_tokens")[seen]
    work = Workload(
        num_tiles=data.column("num_tiles")[seen].sum(),
        num_tokens=tokens.sum(),
        num_supervised=data.column("num_supervised")[seen].sum(),
        sum_squared_tokens=(tokens**2).sum(),
    )
    operations = sum(record["mfu"] for record in records) * seconds * 1e9
    assert operations == pytest.approx(stage_flops(model, stage, work), rel=1e-5)
    assert sum(record["num_tokens"] for record in records) == tokens.sum()
    for record in records:
        assert record["tokens_per_second"] == pytest.approx(record["num_tokens"] / seconds)


def test_a_run_on_a_gpu_measures_what_a_plan_of_its_config_takes(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tiny_config, PARTS)
    job, data = make_job(config), mixture(config)
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    counts = freeze(model, config.stages[0].trainable)
    sizing = Sizing.of(model, counts, data, config.scaling.least_workers)
    records: list[StepRecord] = [
        {"memory_bytes": 5e6, "mfu": 0.5, "tokens_per_second": 1.0, "step_seconds": 1.0},
        {"memory_bytes": 7e6, "mfu": 0.5, "tokens_per_second": 1.0, "step_seconds": 1.0},
    ]
    assert measurement(job, sizing, records, CPU) is None
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    assert measurement(job, sizing, records, gpu) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert measurement(job, sizing, [], gpu) is None
    found = measurement(job, sizing, records, gpu)
    assert found is not None
    assert ExportManifest.model_validate(export_manifest(measured=found).model_dump(mode="json"))
    config = config.model_copy(update={"stages": config.stages[:1]})
    speeds = shipped_speeds().model_copy(update={"measured": (found,)})
    (cost,) = plan_run(config, accelerator="H100", speeds=speeds)
    assert cost.memory_source == f"memory is measured ({config.name}: align)"
    assert cost.memory.counted.total == pytest.approx(7e6, rel=0.01)
    assert cost.mfu == 0.5


def test_there_is_no_utilisation_without_a_peak(tiny_config: RunConfig) -> None:
    config = small_config(tiny_config, "engine.precision=bf16")
    assert cluster_peak_flops(config.engine, Context(0, 1, CPU, lambda _: None)) is None
    assert peak_flops("NVIDIA H100 80GB HBM3") == ACCELERATORS["H100"].flops_per_second
    for other in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090", "cpu", ""):
        assert peak_flops(other) is None, other


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_norms_of_the_parts_make_the_whole(
    tiny_config: RunConfig, zero_stage: int, precision: str
) -> None:
    config = small_config(
        tiny_config,
        *(PARTS, "stages.align.max_steps=2", "checkpoint.every_steps=9"),
        f"name=parts-{zero_stage}-{precision}",
        f"engine.zero_stage={zero_stage}",
        f"engine.precision={precision}",
    )
    observed: list[StepRecord] = []
    manifest = run_stage(make_job(config), observed.extend)
    assert manifest.logits_difference == 0.0
    for record in manifest.history:
        parts = [value for key, value in record.items() if key.startswith("grad_norm.")]
        assert len(parts) == 3
        assert min(parts) > 0.0
        assert math.hypot(*parts) == pytest.approx(record["grad_norm"], rel=1e-5)
        assert "mfu" not in record
        assert all(map(is_declared, record)), "a metric is not in the list"
        assert len(json.dumps(record)) < 400  # a history is stored with every checkpoint


def test_gradients_that_left_the_device_have_no_norms_by_part(tiny_config: RunConfig) -> None:
    config = small_config(
        tiny_config,
        *("name=offloading", "stages.align.max_steps=1", "engine.offload_optimizer=cpu"),
    )
    (record,) = run_stage(make_job(config)).history
    assert record["grad_norm"] > 0.0
    assert not [key for key in record if key.startswith("grad_norm.")]


def test_speed_leaves_out_the_steps_that_warm_up() -> None:
    history = [
        {"step": step, "step_seconds": 60.0 if step <= 2 else 1.0, "tokens_per_second": 5.0 + step}
        for step in range(1, 21)
    ]
    found = speed(history)
    assert found["step_seconds"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert found["tokens_per_second"] == np.median(range(8, 26))
    assert "mfu" not in found
    assert speed([record | {"mfu": 0.4} for record in history])["mfu"] == 0.4
    assert speed([history[0], *(record | {"mfu": 0.4} for record in history[1:])])["mfu"] == 0.4


@pytest.mark.parametrize("number", [0.0, 1.5, 1234567.891, 1e-9, float("inf")])
def test_rounding_keeps_six_digits(number: float) -> None:
    assert rounded(number) == pytest.approx(number, rel=1e-5)
    assert len(repr(rounded(number))) <= 12
