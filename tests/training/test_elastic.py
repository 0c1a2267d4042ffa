"""A stage goes on with another number of workers: the same state, samples and losses."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llavamed.config.run import RunConfig
from llavamed.storage.location import MANIFEST, locate
from llavamed.train.job import StageJob
from tests.support.gloo_workers import gathered_state, run_on_workers, samples_seen, warnings_of
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
    "checkpoint.every_steps=1",
    "checkpoint.num_to_keep=9",
    # Where gradients are tiny, AdamW's steps magnify the order of summation; eps keeps them small.
    "stages.align.optimizer={lr: 5e-3, weight_decay: 0.1, eps: 1e-4}",
)
ALL = "stages.align.trainable=[vision_tower, projector, language_model]"
"""With it the tower's last layer, of which the loss knows nothing, has no gradient."""
CASES = {
    "zero-0": (ALL, "engine.zero_stage=0", "engine.precision=fp32"),
    "zero-1-bf16": (ALL, "engine.zero_stage=1", "engine.precision=bf16"),
    "zero-2": (ALL, "engine.zero_stage=2", "engine.precision=fp32"),
    "zero-2-bf16-projector": ("engine.zero_stage=2", "engine.precision=bf16"),
    "zero-3": (ALL, "engine.zero_stage=3", "engine.precision=fp32"),
    "zero-3-bf16-projector": ("engine.zero_stage=3", "engine.precision=bf16"),
    "zero-2-lora": (
        "stages.align.trainable=[projector, language_model]",
        "stages.align.lora={r: 2}",
        "engine.zero_stage=2",
        "engine.precision=fp32",
    ),
}
"""Each is first run by two workers; the projector alone trains unless ALL parts do."""
MOVES = {
    **{f"{case}: 2 to 1": (case, "2", 2) for case in CASES},
    **{f"{case}: 2 to 4": (case, "2", 1) for case in ("zero-1-bf16", "zero-3")},
    "zero-2: 2 to 3": ("zero-2", "2", 2),  # who share four lanes unevenly
    **{
        f"{case}: 1 to 2": (case, "2 to 1", 3)
        for case in ("zero-2", "zero-2-lora", "zero-3-bf16-projector")
    },
    **{f"{case}: 4 to 1": (case, "2 to 4", 3) for case in ("zero-1-bf16", "zero-3")},
}
"""Name of the move: what moves, the run that saved it, and after how many steps."""

Jobs = dict[str, StageJob]


@pytest.fixture(scope="module")
def jobs(tiny_config: RunConfig) -> Jobs:
    """The runs by two workers, and what became of their checkpoints after every move."""
    found: Jobs = {}
    for case, overrides in CASES.items():
        name = f"name=elastic-{case}"
        found[f"{case}: 2"] = make_job(
            small_config(tiny_config, *SETTINGS, *overrides, "scaling.num_workers=2", name)
        )
    run_on_workers(2, list(found.values()))
    for end in ("2 to 1", "2 to 4", "2 to 3", "1 to 2", "4 to 1"):
        moved = {}
        for move in (move for move in MOVES if move.endswith(end)):
            case, origin, step = MOVES[move]
            moved[move] = stopped(found[f"{case}: {origin}"], move, step)
        num_workers = int(end[-1])
        run_on_workers(num_workers, list(moved.values()), num_machines=max(1, num_workers // 2))
        found |= moved
    return found


def stopped(job: StageJob, name: str, step: int) -> StageJob:
    """The job as it would have been left by a stop after so many steps."""
    folder = Path(job.checkpoints).parent / name.replace(": ", "-").replace(" ", "-")
    for done in range(1, step + 1):
        of_step = f"step-{done:06d}"
        if (Path(job.checkpoints) / of_step).exists():  # before that the run resumed itself
            shutil.copytree(f"{job.checkpoints}/{of_step}", folder / "checkpoints" / of_step)
    return replace(job, checkpoints=f"{folder}/checkpoints", export=f"{folder}/export")


def history(job: StageJob) -> list[dict[str, Any]]:
    return outcome(job).history


@pytest.mark.parametrize("move", MOVES)
def test_weights_moments_and_counters_are_bit_equal(jobs: Jobs, move: str) -> None:
    case, origin, step = MOVES[move]
    saved = gathered_state(jobs[f"{case}: {origin}"], "saved", step)
    restored = gathered_state(jobs[move], "restored", step)
    assert_same_weights(restored, saved)
    assert saved["counters"].tolist() == [step]
    assert any(key.endswith("exp_avg_sq") and value.any() for key, value in saved.items())
    assert restored["group-0/weight_decay"] > restored["group-1/weight_decay"] == 0.0


@pytest.mark.parametrize("move", MOVES)
def test_the_rest_of_the_samples_is_seen_step_by_step(jobs: Jobs, move: str) -> None:
    case, _, step = MOVES[move]
    undisturbed = samples_seen(jobs[f"{case}: 2"])
    assert sorted(undisturbed) == [0, 1, 2, 3]
    assert samples_seen(jobs[move]) == {k: v for k, v in undisturbed.items() if k >= step}


@pytest.mark.parametrize("move", MOVES)
def test_the_run_ends_as_if_undisturbed(jobs: Jobs, move: str) -> None:
    undisturbed = jobs[f"{MOVES[move][0]}: 2"]
    # In bf16 every pass rounds its gradient by up to 0.004, and the workers sum other passes.
    atol = 2e-4 if "bf16" in move else 1e-5
    for one, other in zip(history(jobs[move]), history(undisturbed), strict=True):
        assert one["step"] == other["step"]
        assert one["num_tokens"] == other["num_tokens"]
        assert one["loss"] == pytest.approx(other["loss"], abs=atol)
    weights = exported_weights(jobs[move]), exported_weights(undisturbed)
    assert_same_weights(*weights, atol=0.004 if "bf16" in move else 1e-5)


@pytest.mark.parametrize("move", MOVES)
def test_the_converted_state_is_collected(jobs: Jobs, move: str) -> None:
    step = MOVES[move][2]
    files = (locate(jobs[move].checkpoints) / f"step-{step:06d}").children()
    assert MANIFEST in files
    assert "universal" not in files


def test_what_a_dead_conversion_has_left_is_not_read(jobs: Jobs) -> None:
    job = stopped(jobs["zero-2: 2"], "dead-conversion", 2)
    left = Path(job.checkpoints) / "step-000002" / "universal"
    (left / "state" / "zero").mkdir(parents=True)
    (left / "state" / "zero" / "optimizer_state.pt").write_bytes(b"half")
    run_stage(job)
    assert_same_weights(exported_weights(job), exported_weights(jobs["zero-2: 2 to 1"]))
    assert not left.exists()


def test_the_converted_state_travels_through_an_object_store(jobs: Jobs, s3_uri: str) -> None:
    local = stopped(jobs["zero-2: 2"], "in-a-bucket", 2)
    place = locate(f"{s3_uri}/elastic/checkpoints")
    (place / "step-000002").upload(Path(local.checkpoints) / "step-000002")
    run_stage(replace(local, checkpoints=str(place)))
    assert_same_weights(exported_weights(local), exported_weights(jobs["zero-2: 2 to 1"]))
    assert not (place / "step-000002" / "universal").exists()


def test_all_workers_pass_over_what_one_finds_damaged(jobs: Jobs) -> None:
    spoilt = {}
    for number, pattern in enumerate(("*pp_rank_1_*", "random_of_rank_1_*", MANIFEST)):
        job = spoilt[pattern] = stopped(jobs["zero-2: 2"], f"spoilt-{number}", 3)
        (file,) = (Path(job.checkpoints) / "step-000003").rglob(pattern)
        file.write_bytes(file.read_bytes()[:-2])
    run_on_workers(2, list(spoilt.values()))
    for job in spoilt.values():
        text = warnings_of(job)
        assert "step-000003" in text
        assert text.endswith(f"resuming from the checkpoint before, {job.checkpoints}/step-000002")
        assert sorted(samples_seen(job)) == [2, 3]
        assert_same_weights(exported_weights(job), exported_weights(jobs["zero-2: 2"]))


def test_damage_is_found_by_another_number_of_workers_too(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    job = stopped(jobs["zero-3: 2"], "spoilt-and-moved", 3)
    (file,) = (Path(job.checkpoints) / "step-000003").rglob("*pp_rank_1_*optim_states.pt")
    file.unlink()
    run_stage(job)
    assert re.search(r"rank_1_.* is missing; resuming from .*/step-000002$", caplog.messages[0])
    assert_same_weights(exported_weights(job), exported_weights(jobs["zero-3: 2"]), atol=1e-5)
