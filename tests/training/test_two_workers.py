"""Two workers see the samples of one and end with its weights, and they resume as one does."""

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
from llavamed.train.job import StageJob
from tests.support.gloo_workers import free_port, run_as_worker, run_on_workers
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
ZERO_STAGES = (2, 3)


def history(job: StageJob) -> list[dict[str, Any]]:
    return outcome(job).history


@pytest.fixture(scope="module")
def by_two(tiny_config: RunConfig) -> dict[int, tuple[StageJob, StageJob]]:
    """For each stage of ZeRO a run by two workers, and its last two steps taken again."""
    jobs = {
        zero_stage: make_job(
            small_config(
                tiny_config,
                *SETTINGS,
                "scaling.num_workers=2",
                f"engine.zero_stage={zero_stage}",
                f"name=two-{zero_stage}",
            )
        )
        for zero_stage in ZERO_STAGES
    }
    again = {number: replace(job, export=f"{job.export}-again") for number, job in jobs.items()}
    # The second run of a job finds the checkpoint that the first one saved at step 2.
    run_on_workers(2, [job for number in ZERO_STAGES for job in (jobs[number], again[number])])
    return {number: (jobs[number], again[number]) for number in ZERO_STAGES}


@pytest.fixture(scope="module")
def by_one(tiny_config: RunConfig) -> StageJob:
    job = make_job(small_config(tiny_config, *SETTINGS, "name=one"))
    run_stage(job)
    return job


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_two_workers_train_as_one_does(
    by_two: dict[int, tuple[StageJob, StageJob]], by_one: StageJob, zero_stage: int
) -> None:
    job, _ = by_two[zero_stage]
    for two, one in zip(history(job), history(by_one), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        for part in ("projector", "language_model"):
            key = f"grad_norm.{part}"
            assert two[key] == pytest.approx(one[key], rel=1e-4)
        assert "grad_norm.vision_tower" not in two
        parts = (two["grad_norm.projector"], two["grad_norm.language_model"])
        assert math.hypot(*parts) == pytest.approx(two["grad_norm"], rel=1e-5)
        assert (two["step"], two["num_tokens"]) == (one["step"], one["num_tokens"])
    assert_same_weights(exported_weights(job), exported_weights(by_one), atol=1e-6)
    assert outcome(job).logits_difference == 0.0


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_two_workers_resume_bit_for_bit(
    by_two: dict[int, tuple[StageJob, StageJob]], zero_stage: int
) -> None:
    job, again = by_two[zero_stage]
    keys = ("step", "loss", "grad_norm", "learning_rate", "num_tokens")
    first, second = (
        [[record[key] for key in keys] for record in history(one)] for one in (job, again)
    )
    assert [record[0] for record in first] == [1, 2, 3, 4]
    assert first == second
    assert_same_weights(exported_weights(job), exported_weights(again))


def test_each_worker_saves_its_own_part(by_two: dict[int, tuple[StageJob, StageJob]]) -> None:
    job, _ = by_two[2]
    manifest = read_checkpoint(locate(job.checkpoints) / "step-000002")
    assert manifest.layout.world_size == 2
    for rank in (0, 1):
        owned = [name for name in manifest.files if f"zero_pp_rank_{rank}_" in name]
        assert [Path(name).suffix for name in owned] == [".pt"]


def work_on_a_full_disk(rank: int, job: StageJob, port: int) -> None:
    """Be a worker; the second one can publish nothing. What it ends with is written down."""

    def fail(*_: Any) -> Any:
        raise StorageError("disk of rank 1: is full")

    if rank == 1:
        saver.publish = fail
    try:
        run_as_worker(rank, 2, job, port)
    except CheckpointError as error:
        Path(f"{job.export}-error-{rank}").write_text(str(error))


def test_what_one_worker_cannot_save_stops_both_with_one_error(tiny_config: RunConfig) -> None:
    job = make_job(small_config(tiny_config, *SETTINGS, "scaling.num_workers=2", "name=two-full"))
    mp.start_processes(
        work_on_a_full_disk, (job, free_port()), 2, daemon=True, start_method="forkserver"
    )
    errors = [Path(f"{job.export}-error-{rank}").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert "step-000002: cannot be saved: disk of rank 1: is full; training stops" in errors[0]
