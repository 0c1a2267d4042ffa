"""Saving while training goes on: what is saved, when errors come, and what is left behind."""

import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError, LeaseError, StorageError
from llavamed.storage.lease import hold_lease
from llavamed.storage.location import locate
from llavamed.train.checkpoint import save as saver
from llavamed.train.checkpoint.listing import complete_checkpoints
from llavamed.train.job import StageJob
from llavamed.train.metrics import StepRecord
from tests.support.faulty_s3 import FOR_EVER, FaultyS3
from tests.support.training_setup import (
    LEARNING,
    Interrupted,
    assert_same_weights,
    exported_weights,
    make_job,
    run_stage,
    small_config,
)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def before_upload(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Have the thread do this when the state is copied and no file of it is up."""
    publish = saver.publish

    def act_and_publish(*args: Any) -> Any:
        action()
        return publish(*args)

    monkeypatch.setattr(saver, "publish", act_and_publish)


def test_a_checkpoint_is_of_the_step_it_was_asked_at_however_late_it_is_written(
    tiny_config: RunConfig, undisturbed: StageJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*LEARNING, "checkpoint.every_steps=3", "name=late-upload")
    job = make_job(small_config(tiny_config, *settings))
    gone_on = threading.Event()

    def wait_for_training() -> None:
        assert gone_on.wait(timeout=120), "training waits for the upload"

    def report(records: list[StepRecord]) -> None:
        if records[-1]["step"] == 5:
            gone_on.set()
            raise Interrupted

    before_upload(monkeypatch, wait_for_training)
    with pytest.raises(Interrupted):
        run_stage(job, report)
    # What had begun was brought to its end before the error was let out.
    assert complete_checkpoints(locate(job.checkpoints)) == ["step-000003"]
    reported: list[int] = []
    run_stage(job, lambda records: reported.append(records[-1]["step"]))
    assert reported == [3, 4, 5, 6]
    assert_same_weights(exported_weights(job), exported_weights(undisturbed))


def test_one_save_at_most_is_under_way(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("checkpoint.every_steps=1", "stages.align.max_steps=4", "name=one-at-a-time")
    job = make_job(small_config(tiny_config, *settings))
    complete_before: list[list[str]] = []
    place = locate(job.checkpoints)
    before_upload(monkeypatch, lambda: complete_before.append(complete_checkpoints(place)))
    run_stage(job)
    names = ["step-000001", "step-000002", "step-000003", "step-000004"]
    assert complete_before == [[], names[:1], names[:2], names[1:3]]
    assert complete_checkpoints(place) == names[2:]


def test_the_age_of_a_checkpoint_counts_from_its_copy(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock shows the number of steps reported, and each step tells its age before that."""
    settings = ("checkpoint.every_steps=2", "stages.align.max_steps=6", "name=age")
    reported: list[StepRecord] = []
    monkeypatch.setattr(saver, "time", SimpleNamespace(monotonic=lambda: len(reported)))
    run_stage(make_job(small_config(tiny_config, *settings)), reported.extend)
    ages = [record["checkpoint_age_seconds"] for record in reported]
    assert ages[:2] == [0, 1]  # counted from the start
    assert ages[4] in (2, 0)  # from step 2, or from step 4 if its checkpoint is complete already


def fail() -> None:
    raise StorageError("place: is full")


def test_the_call_that_waits_for_a_save_raises_its_error_and_no_scratch_is_left(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    job = make_job(small_config(tiny_config, "name=full"))
    monkeypatch.setattr(saver, "publish", lambda *_: fail())
    reported: list[StepRecord] = []
    message = r"step-000002: cannot be saved: place: is full; .* stops here, none was saved before;"
    with pytest.raises(CheckpointError, match=message):
        run_stage(job, reported.extend)
    assert [record["step"] for record in reported] == [1, 2, 3, 4]  # where the next one was due
    assert complete_checkpoints(locate(job.checkpoints)) == []
    assert list(scratch.iterdir()) == []


def test_a_save_that_fails_too_does_not_hide_what_has_ended_training(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(small_config(tiny_config, "name=both-fail"))
    before_upload(monkeypatch, fail)

    def report(records: list[StepRecord]) -> None:
        if records[-1]["step"] == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_stage(job, report)
    assert "step-000002: cannot be saved: place: is full; " in caplog.text


def test_a_run_that_is_taken_over_during_an_upload_does_not_complete_it(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(small_config(tiny_config, "name=taken-during-upload"))
    folder = locate(job.config.directory)
    with hold_lease(folder, hint="wait") as mine:
        theirs = hold_lease(folder, hint="wait", take_over=True)
        before_upload(monkeypatch, theirs.__enter__)
        with pytest.raises(LeaseError, match=r"attempt=1: .* was taken over by .*, attempt 2;"):
            run_stage(replace(job, lease=mine))
        theirs.__exit__(None, None, None)
    assert locate(job.checkpoints).children() == ["step-000002"]
    assert complete_checkpoints(locate(job.checkpoints)) == []


def test_the_best_checkpoint_stays_by_the_mean_since_the_one_before(tiny_config: RunConfig) -> None:
    settings = (*LEARNING, "checkpoint.num_to_keep=1", "checkpoint.keep_best=loss", "name=best")
    # With a rate that is far too high the loss rises, so that the first is the best.
    rate = ("stages.align.optimizer.lr=1", "stages.align.schedule.name=constant")
    overrides = (*rate, "stages.align.max_steps=8")
    job = make_job(small_config(tiny_config, *settings, *overrides))
    history = run_stage(job).history
    means = {
        f"step-{step:06d}": (history[step - 2]["loss"] + history[step - 1]["loss"]) / 2
        for step in (2, 4, 6, 8)
    }
    best = min(means, key=means.__getitem__)
    assert best != "step-000008"
    assert complete_checkpoints(locate(job.checkpoints)) == [best, "step-000008"]


def test_storage_that_is_down_is_tried_again_and_then_names_the_last_good_checkpoint(
    tiny_config: RunConfig,
    undisturbed: StageJob,
    faulty: FaultyS3,
    s3_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job(small_config(tiny_config, *LEARNING, "name=down"))
    job = replace(job, checkpoints=f"{s3_uri}/saver/down/checkpoints")
    faulty.fail("503", "step-000002", times=2, method="PUT")

    uploads: list[int] = []

    def fail_the_second() -> None:
        uploads.append(1)
        if len(uploads) == 2:
            faulty.fail("500", times=FOR_EVER)

    before_upload(monkeypatch, fail_the_second)
    message = (
        r"down/checkpoints/step-000004: cannot be saved: .*; training stops here, the last "
        r"complete checkpoint is step-000002; fix this and start the same command again"
    )
    with pytest.raises(CheckpointError, match=message):
        run_stage(job)
    assert faulty.num_faults > 2
    faulty.heal()
    assert complete_checkpoints(locate(job.checkpoints)) == ["step-000002"]
    run_stage(job)
    assert_same_weights(exported_weights(job), exported_weights(undisturbed))
