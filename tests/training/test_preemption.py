"""A machine that is taken away: a checkpoint at the next step, and nothing lost."""

from dataclasses import replace
from pathlib import Path

import pytest

from llavamed.config.run import RunConfig
from llavamed.storage.location import locate
from llavamed.storage.manifest import ExportManifest, find
from llavamed.train import context
from llavamed.train.checkpoint.listing import complete_checkpoints
from llavamed.train.context import local_context
from llavamed.train.worker import train_stage
from tests.support.training_setup import (
    assert_same_weights,
    exported_weights,
    make_job,
    run_stage,
    small_config,
)


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
