"""A whole stage in this process: it learns, keeps what is frozen, and refuses what it must."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.errors import DataError, LeaseError, TrainingError
from llavamed.model.export import write_export
from llavamed.model.freeze import part_of
from llavamed.model.llava import build_model
from llavamed.processor.templates import get_template, template_hash
from llavamed.storage.lease import hold_lease
from llavamed.storage.location import locate
from llavamed.storage.manifest import ExportManifest, PartFacts, find
from llavamed.train.checkpoint.listing import complete_checkpoints
from llavamed.train.job import StageJob, order_of
from llavamed.train.metrics import StepRecord
from tests.support.training_setup import (
    LEARNING,
    assert_same_weights,
    exported_weights,
    make_job,
    mixture,
    prepared,
    processor_of,
    run_stage,
    small_config,
    step_batches,
    weights_as_exported,
    without_inductor,
)

LAST_STEP = 6
Outcome = tuple[StageJob, dict[str, Any], list[StepRecord]]


@pytest.fixture(scope="module")
def trained(tiny_config: RunConfig) -> Outcome:
    """A stage of six steps, its export's manifest and the records it reported."""
    job = make_job(small_config(tiny_config, *LEARNING, "name=trained"))
    reported: list[StepRecord] = []
    return job, run_stage(job, reported.extend), reported


def test_a_stage_learns_and_tells_of_every_step(trained: Outcome) -> None:
    job, manifest, reported = trained
    order = order_of(job.stage, mixture(job.config), job.config.seed)
    assert manifest.history == reported
    assert [record["step"] for record in reported] == list(range(1, LAST_STEP + 1))
    assert reported[-1]["loss"] < reported[0]["loss"] - 0.3
    assert reported[0]["loss"] == pytest.approx(math.log(320), abs=0.2)  # nothing known yet
    tokens = order.sums(prepared(job.config).column("num_tokens")).tolist()
    assert [record["num_tokens"] for record in reported] == tokens
    for record in reported:
        assert record["grad_norm"] > 0.0
        assert record["tokens_per_second"] > 0.0
        assert record["data_wait_seconds"] >= 0.0
        assert record["memory_bytes"] > 1e8
    rates = [record["learning_rate"] for record in reported]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 5e-3


def test_an_export_tells_how_it_came_about(trained: Outcome) -> None:
    job, manifest, reported = trained
    assert manifest.stage == "align"
    assert manifest.fingerprint == job.fingerprint
    assert manifest.steps == LAST_STEP
    assert list(manifest.datasets) == ["captions"]
    tokenizer = processor_of(job.config).tokenizer
    template = get_template(job.config.model.template)
    assert manifest.template_hash == template_hash(template, tokenizer)
    assert manifest.num_tokens == sum(record["num_tokens"] for record in reported)
    assert (manifest.loss_first, manifest.loss_last) == (reported[0]["loss"], reported[-1]["loss"])
    assert manifest.seconds > 0
    assert manifest.parts["vision_tower"].num_trained == 0
    assert manifest.parts["projector"] == PartFacts(num_trained=2 * (16 * 16 + 16), num_frozen=0)


def test_frozen_weights_stay_bit_for_bit_and_trained_ones_move(trained: Outcome) -> None:
    job = trained[0]
    model = build_model(job.config.model, processor_of(job.config), seed=0, precision="fp32")
    before, after = weights_as_exported(model, job.config), exported_weights(job)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        is_same = torch.equal(weight, before[name])
        assert is_same == (part_of(name) == "vision_tower"), name


def test_the_next_stage_starts_from_the_export(trained: Outcome) -> None:
    config = small_config(
        trained[0].config,
        *LEARNING,
        "name=trained",
        "stages.instruct.max_steps=1",
        "stages.instruct.optimizer={lr: 1e-6, weight_decay: 0}",  # a step moves no weight further
    )
    job = make_job(config, stage=1)
    assert job.initial_weights == trained[0].export
    manifest = run_stage(job)
    assert manifest.history[0]["learning_rate"] == 1e-6
    assert list(manifest.datasets) == ["dialogues"]
    assert_same_weights(exported_weights(job), exported_weights(trained[0]), atol=1.1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ("stages.align.max_steps=1", "stages.align.schedule.warmup_ratio=0.03"),
        ("stages.align.max_steps=1", "stages.align.schedule.warmup_ratio=1"),
        (
            "stages.align.max_steps=null",
            "stages.align.packing=false",
            "stages.align.max_tokens=null",
            "stages.align.global_batch_size=64",
            "stages.align.schedule.warmup_ratio=0.03",
        ),
    ],
    ids=["one step", "warm-up of all steps", "fewer samples than a batch"],
)
def test_a_stage_of_one_step_moves_weights(
    tiny_config: RunConfig, trained: Outcome, overrides: tuple[str, ...]
) -> None:
    config = small_config(tiny_config, *LEARNING, f"name=one-{len(str(overrides))}", *overrides)
    job = make_job(config)
    manifest = run_stage(job)
    assert manifest.steps == 1
    assert manifest.history[0]["learning_rate"] == 5e-3
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    before, after = weights_as_exported(model, config), exported_weights(job)
    moved = {part_of(name) for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"projector", "language_model"}


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_stage_whose_weights_did_not_move_fails_with_a_sentence(
    tiny_config: RunConfig, zero_stage: int
) -> None:
    config = small_config(
        tiny_config,
        f"name=still-{zero_stage}",
        f"engine.zero_stage={zero_stage}",
        "stages.align.optimizer.lr=1e-30",
        "stages.align.max_steps=2",
    )
    job = make_job(config)
    message = (
        r"^stages.align.optimizer.lr=1e-30: no weight of \[projector\] has moved in the whole "
        r"stage, so nothing is exported; raise it, and start under another name$"
    )
    with pytest.raises(TrainingError, match=message):
        run_stage(job)
    assert find(ExportManifest, locate(job.export)) is None


@pytest.mark.parametrize(
    ("override", "atol"),
    [
        ("stages.align.gradient_checkpointing=true", 1e-5),
        ("stages.align.gradient_checkpointing=2", 1e-5),
        ("engine.kernels.compile=true", 1e-5),
        ("tracking.log_every_steps=4", 0.0),
        ("checkpoint.every_steps=5", 0.0),
    ],
    ids=["recomputing", "recomputing half", "compiling", "reporting", "checkpointing"],
)
def test_what_must_not_change_the_weights(
    trained: Outcome, override: str, atol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_inductor(monkeypatch)
    config = small_config(trained[0].config, *LEARNING, f"name=same-{len(override)}", override)
    job = make_job(config)
    reported: list[StepRecord] = []
    run_stage(job, reported.extend)
    assert [record["step"] for record in reported] == list(range(1, LAST_STEP + 1))
    assert_same_weights(exported_weights(job), exported_weights(trained[0]), atol=atol)


def test_bf16_learns_as_fp32_does(trained: Outcome) -> None:
    config = small_config(trained[0].config, *LEARNING, "name=bf16", "engine.precision=bf16")
    job = make_job(config)
    losses = [record["loss"] for record in run_stage(job).history]
    expected = [record["loss"] for record in trained[2]]
    assert losses == pytest.approx(expected, rel=0.01)
    assert {weight.dtype for weight in exported_weights(job).values()} == {torch.bfloat16}


def test_without_packing_a_step_has_exactly_the_global_batch(tiny_config: RunConfig) -> None:
    config = small_config(
        tiny_config,
        *LEARNING,
        "name=padded",
        "stages.align.packing=false",
        "stages.align.max_tokens=null",
        "stages.align.micro_batch_size=2",
        "stages.align.global_batch_size=8",
        "stages.align.max_steps=null",
    )
    steps = step_batches(config)
    seen = [[sample for batch in batches for sample in batch.sample_ids] for batches in steps]
    assert [len(samples) for samples in seen] == [8] * 5
    assert len({sample for samples in seen for sample in samples}) == 40
    history = run_stage(make_job(config)).history
    tokens = [sum(batch.num_tokens for batch in batches) for batches in steps]
    assert [record["num_tokens"] for record in history] == tokens
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (
            1e30,
            r"loss=\S+ at step 2: is not finite, .* lower stages.align.optimizer.lr=1e\+30 and "
            r"start under another name, or look at samples .* on rank 0",
        ),
        (
            1e8,
            r"grad_norm=\S+ at step 2: is not finite, though the loss is; .* lower "
            r"stages.align.optimizer.lr=1e\+08 and start under another name, or look at samples ",
        ),
    ],
    ids=["loss", "gradient"],
)
def test_a_step_that_is_not_finite_ends_the_stage_and_leaves_no_trace(
    tiny_config: RunConfig, lr: float, message: str
) -> None:
    config = small_config(
        tiny_config,
        "stages.align.trainable=[language_model]",
        f"name=diverging-{math.log10(lr):.0f}",
        f"stages.align.optimizer.lr={lr}",
        "checkpoint.every_steps=1",
    )
    job = make_job(config)
    ids = [sample for batch in step_batches(config)[1] for sample in batch.sample_ids]
    reported: list[StepRecord] = []
    with pytest.raises(TrainingError, match=message) as error:
        run_stage(job, reported.extend)
    assert all(repr(sample) in str(error.value) for sample in ids)
    assert [record["step"] for record in reported] == [1]
    assert locate(job.checkpoints).children() == ["step-000001"]
    assert not locate(job.export).exists()


def test_weights_that_are_not_finite_are_named_and_not_the_learning_rate(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = small_config(tiny_config, "name=damaged")
    processor = processor_of(config)
    model = build_model(config.model, processor, seed=0, precision="fp32")
    with torch.no_grad():
        model.lm_head.weight[0] = math.inf
    write_export(locate(str(tmp_path)), model, model.state_dict(), processor)
    job = make_job(override_config(config, [f"stages.align.initial_weights={tmp_path}"]))
    with pytest.raises(
        TrainingError,
        match=r"^loss=\S+ at step 1: .*; look at the initial weights, which no step has changed, ",
    ) as error:
        run_stage(job)
    assert "lr" not in str(error.value)


def test_a_fingerprint_tells_what_decides_the_result(tiny_config: RunConfig) -> None:
    base = make_job(small_config(tiny_config))
    deciding = [
        "seed=1",
        "engine.precision=bf16",
        "stages.align.optimizer.lr=1e-9",
        "stages.align.global_batch_size=8",
    ]
    others = [
        "name=other",
        "checkpoint.every_steps=3",
        "tracking.log_every_steps=3",
        "engine.zero_stage=1",
        "engine.offload_optimizer=cpu",
        "model.attn_implementation=eager",
        "stages.align.gradient_checkpointing=true",
        "engine.kernels.compile=true",
        "stages.align.engine.kernels={compile: true}",
    ]
    fingerprints = {
        change: make_job(small_config(tiny_config, change)).fingerprint
        for change in deciding + others
    }
    assert len({fingerprints[change] for change in deciding} | {base.fingerprint}) == 5
    assert {fingerprints[change] for change in others} == {base.fingerprint}
    assert re.fullmatch(r"[0-9a-f]{16}", base.fingerprint)


def test_a_stage_that_was_taken_over_publishes_nothing(tiny_config: RunConfig) -> None:
    job = make_job(small_config(tiny_config, "name=taken"))
    folder = locate(job.config.directory)
    with (
        hold_lease(folder, hint="wait") as mine,
        hold_lease(folder, hint="wait", take_over=True),
        pytest.raises(LeaseError) as caught,
    ):
        run_stage(replace(job, lease=mine))
    assert "attempt=1" in str(caught.value)
    assert complete_checkpoints(locate(job.checkpoints)) == []
    assert find(ExportManifest, locate(job.export)) is None


def test_a_dataset_that_changes_under_a_run_is_noticed(tiny_config: RunConfig) -> None:
    job = make_job(small_config(tiny_config, "name=changed"))
    message = r"captions: has changed since the run started; use another name, or"
    with pytest.raises(DataError, match=message):
        run_stage(replace(job, dataset_fingerprints=("another",)))
