"""A stage that was interrupted ends as if it had not been, also where it draws random numbers."""

import pytest
import torch

from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.storage.location import locate
from llavamed.train.checkpoint.random_state import seed_random_state
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

REPEATED = ("step", "loss", "learning_rate", "grad_norm", "num_tokens")
"""What a step must give whenever it is taken; the rest is time and memory."""


def repeated(history: list[StepRecord]) -> list[list[float]]:
    return [[record[key] for key in REPEATED] for record in history]


DROPOUT = "model.language_model.config.attention_dropout=0.2"


@pytest.mark.parametrize(
    ("zero_stage", "precision", "extra"),
    [
        (0, "fp32", ()),
        (0, "bf16", ()),
        (1, "bf16", ()),
        (2, "fp32", ()),
        (2, "bf16", (DROPOUT,)),
        (3, "fp32", (DROPOUT,)),
    ],
)
def test_an_interrupted_stage_ends_bit_for_bit_as_if_it_had_not_been(
    tiny_config: RunConfig, zero_stage: int, precision: str, extra: tuple[str, ...]
) -> None:
    directory = f"{tiny_config.storage}/dropout-datasets"  # a processor belongs to one model
    extra = (*extra, f"data.directory={directory}") if extra else ()
    settings = (f"engine.zero_stage={zero_stage}", f"engine.precision={precision}", *extra)
    name = f"resume-{zero_stage}-{precision}"
    undisturbed = make_job(small_config(tiny_config, *LEARNING, *settings, f"name={name}-a"))
    expected = run_stage(undisturbed).history
    job = interrupted_job(
        small_config(tiny_config, *LEARNING, *settings, f"name={name}-b"), at_step=4
    )
    assert locate(job.checkpoints).children() == ["step-000002"]
    reported: list[StepRecord] = []
    manifest = run_stage(job, reported.extend)
    assert [record["step"] for record in reported] == [1, 2, 3, 4, 5, 6]
    assert manifest.history == reported
    assert repeated(reported) == repeated(expected)
    assert_same_weights(exported_weights(job), exported_weights(undisturbed))
    assert job.fingerprint == undisturbed.fingerprint


def test_every_rank_and_step_is_seeded_with_numbers_of_its_own() -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        seed_random_state(seed, step=step, rank=rank)
        return torch.rand(()).item()

    places = [(seed, step, rank) for seed in (0, 1) for step in (0, 4) for rank in (0, 1, 2)]
    numbers = [draw(*place) for place in places]
    assert len(set(numbers)) == len(places)
    assert numbers == [draw(*place) for place in places]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{precision: fp32, zero_stage: 1}", "{precision: fp32, zero_stage: 2}"),
        ("{precision: fp32, zero_stage: 2}", "{precision: fp32, zero_stage: 1}"),
        (
            "{precision: fp32, zero_stage: 2}",
            "{precision: fp32, zero_stage: 2, offload_optimizer: cpu}",
        ),
    ],
)
def test_a_stage_goes_on_wherever_its_numbers_are_to_lie(
    tiny_config: RunConfig, before: str, after: str
) -> None:
    """ZeRO stage and offload decide where the numbers lie, not what they are."""
    name = f"moved-{abs(hash(before + after)) % 10**6}"
    quiet = make_job(small_config(tiny_config, *LEARNING, f"engine={before}", f"name={name}-a"))
    expected = run_stage(quiet)
    settings = (*LEARNING, f"name={name}-b")
    job = interrupted_job(small_config(tiny_config, *settings, f"engine={before}"), at_step=4)
    moved = make_job(small_config(tiny_config, *settings, f"engine={after}"))
    assert moved.fingerprint == job.fingerprint
    found = run_stage(moved)
    keys = ("step", "loss", "num_tokens", "learning_rate")
    for one, other in zip(found.history, expected.history, strict=True):
        assert [one[key] for key in keys] == pytest.approx([other[key] for key in keys], rel=1e-5)
    assert_same_weights(exported_weights(moved), exported_weights(quiet), atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (0, 2), (1, 0)])
def test_a_zero_stage_that_cannot_be_converted_is_refused_with_what_can_be_set(
    tiny_config: RunConfig, before: int, after: int
) -> None:
    name = f"name=stuck-{before}-{after}"
    job = interrupted_job(
        small_config(tiny_config, *LEARNING, f"engine.zero_stage={before}", name), at_step=3
    )
    moved = make_job(small_config(tiny_config, *LEARNING, f"engine.zero_stage={after}", name))
    message = (
        rf"engine.zero_stage={after}: the checkpoint was saved with {before}, and only 1 and 2 can "
        rf"be converted into each other; set it to {before}, or start under another name"
    )
    with pytest.raises(ConfigError, match=message):
        run_stage(moved)
    assert run_stage(job).steps == 6
