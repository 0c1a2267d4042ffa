"""A machine that is taken away, and a request: a checkpoint at the next step, and nothing lost."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from llavamed.config.run import RunConfig
from llavamed.storage.checkpoint_request import ask_for_checkpoint, find_request
from llavamed.storage.location import locate
from llavamed.storage.manifest import ExportManifest, find
from llavamed.train import context
from llavamed.train.checkpoint import requests
from llavamed.train.checkpoint.listing import complete_checkpoints
from llavamed.train.context import local_context
from llavamed.train.metrics import StepRecord
from llavamed.train.worker import train_stage
from tests.support.training_setup import (
    assert_same_weights,
    exported_weights,
    make_job,
    run_stage,
    small_config,
)
from tests.support.waiting import wait_until


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_preempted_stage_goes_on_as_if_nothing_had_been(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(context, "PREEMPTION_CHECK_SECONDS", 0.0)
    settings = ("checkpoint.every_steps=1000", "stages.align.max_steps=6")
    quiet = make_job(small_config(tiny_config, *settings, "name=quiet"))
    run_stage(quiet)
    job = make_job(small_config(tiny_config, *settings, f"name=preempted-{step}"))
    asked: list[int] = []

    def is_preempted() -> bool:
        asked.append(1)
        return len(asked) == step

    with local_context(lambda _: None) as here:
        assert not train_stage(job, replace(here, is_preempted=is_preempted))
    # Not one step was lost, and none was taken after it.
    assert complete_checkpoints(locate(job.checkpoints)) == [f"step-{step:06d}"]
    assert find(ExportManifest, locate(job.export)) is None
    manifest = run_stage(job)
    assert [record["step"] for record in manifest.history] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(exported_weights(job), exported_weights(quiet))


def test_a_preemption_at_the_last_step_is_too_late_to_matter(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(context, "PREEMPTION_CHECK_SECONDS", 0.0)
    job = make_job(small_config(tiny_config, "name=late", "stages.align.max_steps=1"))
    with local_context(lambda _: None) as here:
        assert train_stage(job, replace(here, is_preempted=lambda: True))
    assert find(ExportManifest, locate(job.export)) is not None


def test_a_stage_that_is_asked_saves_a_checkpoint_and_goes_on(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "PREEMPTION_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(requests, "LOOK_SECONDS", 0.01)
    settings = ("checkpoint={every_steps: 1000, num_to_keep: 9}", "stages.align.max_steps=6")
    job = make_job(small_config(tiny_config, *settings, "name=asked"))
    folder = locate(job.config.directory)
    asked: list[int] = []

    def ask(records: list[StepRecord]) -> None:
        """Ask once, in the middle, and wait until the stage has heard of it."""
        step = int(records[-1]["step"])
        if step == 2:
            ask_for_checkpoint(folder)
            asked.append(step)
            time.sleep(1.0)

    manifest = run_stage(job, ask)
    assert [record["step"] for record in manifest.history] == [1, 2, 3, 4, 5, 6]
    assert asked == [2]
    # The step that was being reported is in it, no other request is made of the same one.
    assert complete_checkpoints(locate(job.checkpoints)) == ["step-000002", "step-000006"]
    assert find_request(folder) is None


def test_a_request_is_answered_once_and_another_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "LOOK_SECONDS", 0.01)
    folder = locate(str(tmp_path))
    with (
        requests.CheckpointRequests(folder, is_first=True) as first,
        requests.CheckpointRequests(folder, is_first=False) as other,
    ):
        for _ in range(2):
            assert not first.is_open
            ask_for_checkpoint(folder)
            wait_until(lambda: first.is_open)
            first.answer()
            wait_until(lambda: find_request(folder) is None)
        assert not other.is_open
