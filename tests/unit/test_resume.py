"""A stage that was interrupted ends as if it had not been, or says why it cannot go on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_setup import (
    assert_same_weights,
    exported_weights,
    make_job,
    run_stage,
    small_config,
)

from llavamed.config.schema import RunConfig
from llavamed.errors import CheckpointError
from llavamed.storage import MANIFEST, locate
from llavamed.train.checkpoint import hash_files, latest_checkpoint
from llavamed.train.context import Record
from llavamed.train.job import StageJob

LEARNING = (
    "stages.align.trainable=[projector, language_model]",
    "stages.align.optimizer={lr: 5e-3, weight_decay: 0.01}",
)
REPEATED = ("step", "loss", "learning_rate", "grad_norm", "num_tokens")
"""What a step must give whenever it is taken; the rest is time and memory."""


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupted_job(config: RunConfig, *, at_step: int) -> StageJob:
    """A job whose run ended at a step, which was taken but not saved."""
    job = make_job(config)

    def report(records: list[Record]) -> None:
        if records[-1]["step"] >= at_step:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_stage(job, report)
    assert not locate(job.export).exists()
    return job


def repeated(history: list[Record]) -> list[list[float]]:
    return [[record[key] for key in REPEATED] for record in history]


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [(0, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (0, "bf16")],
)
def test_an_interrupted_stage_ends_bit_for_bit_as_if_it_had_not_been(
    tiny_config: RunConfig, zero_stage: int, precision: str
) -> None:
    settings = (*LEARNING, f"engine.zero_stage={zero_stage}", f"engine.precision={precision}")
    name = f"resume-{zero_stage}-{precision}"
    undisturbed = make_job(small_config(tiny_config, *settings, f"name={name}-a"))
    expected = run_stage(undisturbed)["history"]
    job = interrupted_job(small_config(tiny_config, *settings, f"name={name}-b"), at_step=4)
    assert locate(job.checkpoints).children() == ["step-000002"]
    reported: list[Record] = []
    manifest = run_stage(job, reported.extend)
    assert [record["step"] for record in reported] == [1, 2, 3, 4, 5, 6]
    assert manifest["history"] == reported
    assert repeated(reported) == repeated(expected)
    assert_same_weights(exported_weights(job), exported_weights(undisturbed))
    assert job.fingerprint == undisturbed.fingerprint


@pytest.fixture(scope="module")
def interrupted(tiny_config: RunConfig) -> StageJob:
    """A stage with one checkpoint, at step 4 of 6."""
    config = small_config(tiny_config, *LEARNING, "name=interrupted", "checkpoint.every_steps=4")
    job = interrupted_job(config, at_step=5)
    assert locate(job.checkpoints).children() == ["step-000004"]
    return job


@pytest.fixture
def job(interrupted: StageJob, tmp_path: Path) -> StageJob:
    """The same with a copy of the checkpoint that a test may spoil."""
    shutil.copytree(interrupted.checkpoints, tmp_path / "checkpoints")
    return replace(
        interrupted, checkpoints=str(tmp_path / "checkpoints"), export=str(tmp_path / "export")
    )


def test_a_checkpoint_lists_its_files_and_leaves_frozen_weights_out(interrupted: StageJob) -> None:
    found = latest_checkpoint(locate(interrupted.checkpoints))
    assert found is not None
    place, manifest = found
    there = hash_files(Path(place.path))
    del there[MANIFEST]
    assert manifest["files"] == there
    assert (manifest["step"], manifest["stage"], manifest["world_size"]) == (4, "align", 1)
    assert manifest["fingerprint"] == interrupted.fingerprint
    assert [record["step"] for record in manifest["history"]] == [1, 2, 3, 4]
    (states,) = (name for name in there if name.endswith("model_states.pt"))
    names = torch.load(Path(place.path) / states, weights_only=False)["module"]
    assert names
    assert not [name for name in names if "vision_tower" in name]


def test_a_save_that_was_cut_short_is_ignored_and_collected(job: StageJob) -> None:
    place = locate(job.checkpoints)
    shutil.copytree(f"{place}/step-000004", f"{place}/step-000005")
    (place / "step-000005" / MANIFEST).remove()
    found = latest_checkpoint(place)
    assert found is not None
    assert found[0].name == "step-000004"
    config = small_config(job.config, *LEARNING, "checkpoint.every_steps=5")
    assert run_stage(replace(job, config=config))["steps"] == 6
    assert place.children() == ["step-000004", "step-000005"]  # whole now: saved again
    shutil.copytree(f"{place}/step-000004", f"{place}/step-000003")
    (place / "step-000003" / MANIFEST).remove()
    (place / "step-000005").remove()
    run_stage(replace(job, config=config))
    assert place.children() == ["step-000004", "step-000005"]


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
    run_stage(job)  # after the last step the export is what remains
    names = ["step-000001", "step-000002", "step-000003"]
    assert locate(job.checkpoints).children() == names[-num_to_keep:]


def newest(job: StageJob) -> Path:
    return Path(job.checkpoints) / "step-000004"


def spoil_a_file(job: StageJob) -> None:
    file = next(newest(job).rglob("*optim_states.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(job: StageJob) -> None:
    next(newest(job).rglob("*optim_states.pt")).unlink()


def claim(**facts: Any) -> Callable[[StageJob], None]:
    def change(job: StageJob) -> None:
        file = newest(job) / MANIFEST
        file.write_text(json.dumps(json.loads(file.read_text()) | facts))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_a_file, r"step-000004/.*optim_states.pt: differs from its manifest, it is damaged"),
        (lose_a_file, r"step-000004/.*optim_states.pt: is missing; delete this checkpoint"),
        (claim(world_size=2), r"step-000004: was saved by 2 workers, there are 1 now; set scaling"),
        (claim(fingerprint="0123"), r"saved with other settings or data \(fingerprint 0123, now "),
        (claim(schema_version=99), r"step-000004: schema_version=99, this program reads 1"),
    ],
    ids=["damaged", "missing", "workers", "settings", "schema"],
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
    with pytest.raises(CheckpointError, match=rf"{job.fingerprint}, now {changed.fingerprint}\)"):
        run_stage(changed)
