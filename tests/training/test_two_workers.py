"""Two workers see the samples of one and end with its weights, and they resume as one does.

Samples have no image, one or several, so that a worker often has a pack without any image.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing as mp

from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError, StorageError
from llavamed.storage.location import locate
from llavamed.train.checkpoint import save as saver
from llavamed.train.checkpoint.listing import read_checkpoint
from llavamed.train.job import StageJob, open_mixture, order_of
from tests.support.gloo_workers import new_group, run_as_worker, run_on_workers
from tests.support.mixed_samples import TILES, Mixed, make_samples
from tests.support.training_setup import (
    assert_same_weights,
    exported_weights,
    make_job,
    outcome,
    run_stage,
    small_config,
)

SETTINGS = (
    "stages.align.max_steps=4",
    "stages.align.trainable=[projector, language_model]",
    # Where gradients are tiny, AdamW's steps magnify the order of summation; eps keeps them small.
    "stages.align.optimizer={lr: 5e-3, weight_decay: 0.01, eps: 1e-4}",
)
SHORT_PACKS = ("data.max_length=256", "stages.align.max_tokens=512")
MODELS = {"plain": SHORT_PACKS, "tiles": (*SHORT_PACKS, *TILES)}
"""Settings of a model that reads an image in one tile, and of one that cuts tiles."""
RUNS = {"zero-2": (2, "plain"), "zero-3": (3, "plain"), "tiles": (3, "tiles")}
"""ZeRO stage and model of the runs by two workers."""
FROZEN = ("stages.align.trainable=[projector]", "stages.align.max_steps=2", "name=frozen")
RECOMPUTED = (
    "stages.align.gradient_checkpointing=true",
    "engine.zero_stage=3",
    # Otherwise all weights of a model as small as this stay on every worker.
    "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}",
)


def history(job: StageJob) -> list[dict[str, Any]]:
    return outcome(job).history


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    return make_samples(tmp_path_factory.mktemp("mixed"), 48, (0, 0, 1, 0, 2, 0))


def settings_of(mixed: Mixed, model: str) -> tuple[str, ...]:
    return (*SETTINGS, *mixed.overrides(model), *MODELS[model])


@pytest.fixture(scope="module")
def by_two(tiny_config: RunConfig, mixed: Mixed) -> dict[str, tuple[StageJob, StageJob]]:
    """Runs by two workers, each with its last two steps taken again."""
    jobs = {
        name: make_job(
            small_config(
                tiny_config,
                *settings_of(mixed, model),
                "scaling.num_workers=2",
                f"engine.zero_stage={zero_stage}",
                f"name=two-{name}",
            )
        )
        for name, (zero_stage, model) in RUNS.items()
    }
    again = {name: replace(job, export=f"{job.export}-again") for name, job in jobs.items()}
    frozen = make_job(
        small_config(
            tiny_config, *settings_of(mixed, "plain"), "scaling.num_workers=2", *FROZEN, *RECOMPUTED
        )
    )
    # The second run of a job finds the checkpoint that the first one saved at step 2.
    run_on_workers(2, [*(job for name in RUNS for job in (jobs[name], again[name])), frozen])
    return {name: (jobs[name], again[name]) for name in RUNS}


@pytest.fixture(scope="module")
def by_one(tiny_config: RunConfig, mixed: Mixed) -> dict[str, StageJob]:
    """A run of each model by one worker."""
    jobs = {
        model: make_job(small_config(tiny_config, *settings_of(mixed, model), f"name=one-{model}"))
        for model in MODELS
    }
    for job in jobs.values():
        run_stage(job)
    return jobs


def test_a_worker_has_packs_without_an_image_while_the_other_has_one(
    by_one: dict[str, StageJob],
) -> None:
    job = by_one["plain"]
    data = open_mixture(job)
    order = order_of(job.stage, data, job.config.seed)
    num_images = data.column("num_images")
    lanes = [[int(num_images[pack].sum()) for pack in order.samples(step)] for step in range(4)]
    assert any(0 in counts and any(counts) for counts in lanes)


@pytest.mark.parametrize("name", RUNS)
def test_two_workers_train_as_one_does(
    by_two: dict[str, tuple[StageJob, StageJob]], by_one: dict[str, StageJob], name: str
) -> None:
    job, alone = by_two[name][0], by_one[RUNS[name][1]]
    for two, one in zip(history(job), history(alone), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        for part in ("projector", "language_model"):
            key = f"grad_norm.{part}"
            assert two[key] == pytest.approx(one[key], rel=1e-4)
        assert "grad_norm.vision_tower" not in two
        parts = (two["grad_norm.projector"], two["grad_norm.language_model"])
        assert math.hypot(*parts) == pytest.approx(two["grad_norm"], rel=1e-5)
        assert (two["step"], two["num_tokens"]) == (one["step"], one["num_tokens"])
    assert_same_weights(exported_weights(job), exported_weights(alone), atol=1e-6)
    assert outcome(job).logits_difference == 0.0


def test_two_workers_recompute_weights_that_are_frozen_and_partitioned(
    by_two: dict[str, tuple[StageJob, StageJob]], tiny_config: RunConfig, mixed: Mixed
) -> None:
    """DeepSpeed before 0.19.8 could not, and failed in the first backward pass."""
    assert by_two, "its processes have run the job too"
    alone = make_job(small_config(tiny_config, *settings_of(mixed, "plain"), *FROZEN))
    alone = replace(alone, export=f"{alone.export}-alone", checkpoints=f"{alone.checkpoints}-alone")
    run_stage(alone)
    two = replace(alone, export=alone.export.removesuffix("-alone"))
    assert [record["loss"] for record in history(two)] == pytest.approx(
        [record["loss"] for record in history(alone)], rel=1e-6
    )
    assert_same_weights(exported_weights(two), exported_weights(alone), atol=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_two_workers_resume_bit_for_bit(
    by_two: dict[str, tuple[StageJob, StageJob]], name: str
) -> None:
    job, again = by_two[name]
    keys = ("step", "loss", "grad_norm", "learning_rate", "num_tokens")
    first, second = (
        [[record[key] for key in keys] for record in history(one)] for one in (job, again)
    )
    assert [record[0] for record in first] == [1, 2, 3, 4]
    assert first == second
    assert_same_weights(exported_weights(job), exported_weights(again))


def test_each_worker_saves_its_own_part(by_two: dict[str, tuple[StageJob, StageJob]]) -> None:
    job, _ = by_two["zero-2"]
    manifest = read_checkpoint(locate(job.checkpoints) / "step-000002")
    assert manifest.layout.world_size == 2
    for rank in (0, 1):
        owned = [name for name in manifest.files if f"zero_pp_rank_{rank}_" in name]
        assert [Path(name).suffix for name in owned] == [".pt"]


def work_on_a_full_disk(rank: int, job: StageJob, group: str) -> None:
    """Be a worker; the second one can publish nothing. What it ends with is written down."""

    def fail(*_: Any) -> Any:
        raise StorageError("disk of rank 1: is full")

    if rank == 1:
        saver.publish = fail
    try:
        run_as_worker(rank, 2, job, group)
    except CheckpointError as error:
        Path(f"{job.export}-error-{rank}").write_text(str(error))


def test_what_one_worker_cannot_save_stops_both_with_one_error(tiny_config: RunConfig) -> None:
    job = make_job(small_config(tiny_config, *SETTINGS, "scaling.num_workers=2", "name=two-full"))
    mp.start_processes(
        work_on_a_full_disk, (job, new_group()), 2, daemon=True, start_method="forkserver"
    )
    errors = [Path(f"{job.export}-error-{rank}").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert "step-000002: cannot be saved: disk of rank 1: is full; training stops" in errors[0]
