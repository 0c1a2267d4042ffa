"""What a checkpoint holds, which one is used, and what is said when none can be saved or used."""

import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError, StorageError
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import MANIFEST, locate
from llavamed.train.checkpoint.files import hash_files
from llavamed.train.checkpoint.listing import complete_checkpoints, read_checkpoint
from llavamed.train.history import read_history
from llavamed.train.job import StageJob
from llavamed.train.metrics import StepRecord
from tests.support.training_setup import (
    LEARNING,
    assert_same_weights,
    exported_weights,
    interrupted_job,
    make_job,
    run_stage,
    small_config,
)


@pytest.fixture(scope="module")
def interrupted(tiny_config: RunConfig) -> StageJob:
    """A stage with two checkpoints, at steps 2 and 4 of 6."""
    job = interrupted_job(small_config(tiny_config, *LEARNING, "name=interrupted"), at_step=5)
    assert locate(job.checkpoints).children() == ["step-000002", "step-000004"]
    return job


@pytest.fixture
def job(interrupted: StageJob, tmp_path: Path) -> StageJob:
    """The same with a copy of the checkpoints that a test may spoil."""
    shutil.copytree(interrupted.checkpoints, tmp_path / "checkpoints")
    return replace(
        interrupted, checkpoints=str(tmp_path / "checkpoints"), export=str(tmp_path / "export")
    )


def test_a_checkpoint_lists_its_files_and_leaves_frozen_weights_out(interrupted: StageJob) -> None:
    place = Path(interrupted.checkpoints) / "step-000004"
    manifest = read_checkpoint(locate(str(place)))
    there = hash_files(place)
    del there[MANIFEST]
    assert manifest.files == there
    assert (manifest.step, manifest.stage, manifest.layout.world_size) == (4, "align", 1)
    assert manifest.fingerprint == interrupted.fingerprint
    history = read_history(locate(str(place)))
    assert [record["step"] for record in history] == [1, 2, 3, 4]
    assert manifest.loss == pytest.approx((history[2]["loss"] + history[3]["loss"]) / 2)
    (states,) = (name for name in there if name.endswith("model_states.pt"))
    names = torch.load(place / states, weights_only=False)["module"]
    assert names
    assert not [name for name in names if "vision_tower" in name]


def test_a_save_that_was_cut_short_is_ignored_and_collected(job: StageJob) -> None:
    place = locate(job.checkpoints)
    for step in (3, 5):
        shutil.copytree(f"{place}/step-000004", f"{place}/step-00000{step}")
        (place / f"step-00000{step}" / MANIFEST).remove()
    assert complete_checkpoints(place) == ["step-000002", "step-000004"]
    config = small_config(job.config, *LEARNING, "checkpoint.every_steps=5")
    assert run_stage(replace(job, config=config)).steps == 6
    assert place.children() == ["step-000005", "step-000006"]
    assert complete_checkpoints(place) == place.children()  # whole now: saved again


@pytest.mark.parametrize("num_to_keep", [1, 2])
def test_only_the_newest_checkpoints_are_kept(tiny_config: RunConfig, num_to_keep: int) -> None:
    config = small_config(
        tiny_config,
        f"name=keep-{num_to_keep}",
        f"checkpoint.num_to_keep={num_to_keep}",
        "checkpoint.every_steps=1",
        "stages.align.max_steps=4",
    )
    job = make_job(config)
    run_stage(job)
    names = ["step-000001", "step-000002", "step-000003", "step-000004"]
    assert locate(job.checkpoints).children() == names[-num_to_keep:]


def newest(job: StageJob) -> Path:
    return Path(job.checkpoints) / "step-000004"


def flip_in(name: str) -> Callable[[StageJob], None]:
    def change(job: StageJob) -> None:
        file = next(newest(job).rglob(name))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    return change


def lose_a_file(job: StageJob) -> None:
    next(newest(job).rglob("*optim_states.pt")).unlink()


def halve_the_manifest(job: StageJob) -> None:
    file = newest(job) / MANIFEST
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def change_the_manifest(job: StageJob) -> None:
    file = newest(job) / MANIFEST
    file.write_text(file.read_text().replace('"step": 4', '"step": 3', 1))


DAMAGE = {
    "flipped": (flip_in("*optim_states.pt"), r"optim_states.pt: differs from its manifest; it is"),
    "random": (flip_in("random_of_rank_0_.pt"), r"random_of_rank_0_.pt: differs from its manifest"),
    "records": (flip_in("history.parquet"), r"history.parquet: differs from its manifest"),
    "lost": (lose_a_file, r"optim_states.pt: is missing"),
    "halved": (halve_the_manifest, r"manifest.json: is not JSON"),
    "changed": (change_the_manifest, r"manifest.json: differs from its checksum; it is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_checkpoint_before_a_damaged_one_is_used(
    job: StageJob, undisturbed: StageJob, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, message = DAMAGE[kind]
    spoil(job)
    reported: list[StepRecord] = []
    before = rf"step-000004/.*{message}.*; resuming from the checkpoint before, .*/step-000002$"
    run_stage(job, reported.extend)
    (warning,) = resumed = [said for said in caplog.messages if "resuming" in said]
    assert re.search(before, warning)
    assert [record["step"] for record in reported] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(exported_weights(job), exported_weights(undisturbed))
    assert complete_checkpoints(locate(job.checkpoints)) == ["step-000004", "step-000006"]
    run_stage(replace(job, export=f"{job.export}-again"))
    said = [said for said in caplog.messages if "resuming" in said]
    assert said == resumed, "step 4 is whole"


def test_a_damaged_checkpoint_does_not_outlive_an_older_one(
    job: StageJob, caplog: pytest.LogCaptureFixture
) -> None:
    lose_a_file(job)
    overrides = ("checkpoint.every_steps=3", "checkpoint.num_to_keep=1")
    config = small_config(job.config, *LEARNING, *overrides)
    run_stage(replace(job, config=config))
    assert caplog.messages[0].endswith("/step-000002")
    assert locate(job.checkpoints).children() == ["step-000006"]


def test_when_all_checkpoints_are_damaged_nothing_is_trained(job: StageJob) -> None:
    for manifest in Path(job.checkpoints).rglob(MANIFEST):
        manifest.write_bytes(b"{")
    message = (
        r"step-000004/manifest.json: is not JSON.*step-000002/manifest.json: is not JSON.*; no "
        rf"checkpoint is left to resume from; delete {job.checkpoints} to train the stage"
    )
    with pytest.raises(CheckpointError, match=message):
        run_stage(job)
    assert not locate(job.export).exists()


def claim(*, seed: int = 0, **facts: Any) -> Callable[[StageJob], None]:
    def change(job: StageJob) -> None:
        file = newest(job) / MANIFEST
        manifest = json.loads(file.read_text()) | facts
        manifest["settings"]["seed"] = seed
        del manifest["checksum"]
        file.write_text(json.dumps(manifest | {"checksum": fingerprint(manifest)}))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (claim(fingerprint="0123", seed=5), r"other settings: seed=0, was 5; use"),
        (claim(schema_version=99), r"schema_version=99: this program reads 4; resume with the"),
    ],
    ids=["settings", "schema"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    job: StageJob, spoil: Callable[[StageJob], None], message: str
) -> None:
    spoil(job)
    with pytest.raises(CheckpointError, match=message):
        run_stage(job)
    assert not locate(job.export).exists()


def test_a_changed_setting_is_refused(job: StageJob) -> None:
    config = small_config(job.config, *LEARNING, "stages.align.optimizer.lr=1e-3")
    changed = replace(job, config=config, stage=config.stages[0])
    with pytest.raises(
        CheckpointError, match=r"stages.align.optimizer.lr=0.001, was 0.005; use the"
    ):
        run_stage(changed)


@contextmanager
def full_disk() -> Iterator[Callable[[list[StepRecord]], None]]:
    """Files end after a few bytes from step 5 on, when the function it gives is told of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(records: list[StepRecord]) -> None:
        if records[-1]["step"] == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        yield fill
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_ends_training_and_names_the_last_good_checkpoint(
    job: StageJob, undisturbed: StageJob
) -> None:
    config = small_config(job.config, *LEARNING, "checkpoint.every_steps=5")
    message = (
        r"step-000005: cannot be saved: .*: cannot write there: .*; training stops here, the last "
        r"complete checkpoint is step-000004; fix this and start the same command again"
    )
    with full_disk() as fill, pytest.raises(CheckpointError, match=message):
        run_stage(replace(job, config=config), fill)
    assert complete_checkpoints(locate(job.checkpoints)) == ["step-000002", "step-000004"]
    run_stage(job)
    assert_same_weights(exported_weights(job), exported_weights(undisturbed))


def test_a_bucket_that_is_not_there_ends_a_stage_before_its_first_step(
    job: StageJob, s3_uri: str
) -> None:
    nowhere = replace(job, checkpoints="s3://llavamed-no-such-bucket/checkpoints")
    told: list[Any] = []
    with pytest.raises(StorageError, match=r"cannot list it: .* does not exist; create the bucket"):
        run_stage(nowhere, told.append)
    assert told == []
