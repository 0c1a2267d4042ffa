"""Each part follows its own rate and decay; eight bits learn as thirty-two do, and resume."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.model.freeze import freeze, part_of
from llavamed.model.llava import build_model
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.preflight import check_packages
from llavamed.storage.location import MANIFEST, locate
from llavamed.train.context import local_context
from llavamed.train.engine import TrainingEngine
from llavamed.train.optimizer import make_optimizer
from tests.support.training_setup import (
    assert_same_weights,
    exported_weights,
    make_job,
    processor_of,
    run_stage,
    small_config,
    weights_as_exported,
)

BOTH = "stages.align.trainable=[projector, language_model]"
EIGHT_BIT = "stages.align.optimizer.name=adamw_8bit"


def test_a_group_has_what_its_parts_are_set_to(tiny_config: RunConfig) -> None:
    config = small_config(
        tiny_config,
        "stages.align.trainable=[vision_tower, projector, language_model]",
        "stages.align.optimizer={lr: 1e-4, weight_decay: 0.1}",
        "stages.align.optimizer.parts.projector.lr=2e-3",
        "stages.align.optimizer.parts.vision_tower={lr: 1e-6, weight_decay: 0}",
    )
    expected = {
        "projector": (2e-3, 0.1),
        "language_model": (1e-4, 0.1),
        "vision_tower": (1e-6, 0.0),
    }
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    freeze(model, config.stages[0].trainable)
    optimizer = make_optimizer(model, config.stages[0].optimizer)
    dimensions = [[each.ndim for each in group["params"]] for group in optimizer.param_groups]
    first_vectors = next(i for i, found in enumerate(dimensions) if min(found) < 2)
    assert all(min(found) >= 2 for found in dimensions[:first_vectors])
    assert all(max(found) < 2 for found in dimensions[first_vectors:])
    found = {
        id(parameter): (group["peak_lr"], group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == {id(parameter) for parameter in trained.values()}
    for name, parameter in trained.items():
        peak_lr, decay = expected[part_of(name)]
        assert found[id(parameter)] == (peak_lr, decay if parameter.ndim >= 2 else 0.0, 0.0), name


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_part_moves_at_its_own_rate_and_the_others_at_theirs(
    tiny_config: RunConfig, zero_stage: int
) -> None:
    """AdamW's first step is the rate times what the gradient alone decides."""
    settings = (BOTH, "stages.align.optimizer.lr=1e-3", "stages.align.max_steps=1")
    weights, record = {}, {}
    for name, parts in {"same": "{}", "faster": "{projector: {lr: 3e-3}}"}.items():
        config = small_config(
            tiny_config,
            *settings,
            f"engine.zero_stage={zero_stage}",
            f"name={name}-{zero_stage}",
            f"stages.align.optimizer.parts={parts}",
        )
        job = make_job(config)
        record[name] = run_stage(job).history[0]
        weights[name] = exported_weights(job)
    start = make_job(small_config(tiny_config, *settings, "name=start"))
    model = build_model(start.config.model, processor_of(start.config), seed=0, precision="fp32")
    for name, before in weights_as_exported(model, start.config).items():
        same, faster = (weights[run][name] - before for run in ("same", "faster"))
        if part_of(name) == "projector":
            assert same.abs().max() > 0.0
            torch.testing.assert_close(faster, 3 * same, rtol=1e-3, atol=1e-7)
        else:
            assert torch.equal(same, faster), name
    assert record["same"]["learning_rate"] == record["faster"]["learning_rate"] == 1e-3
    assert record["faster"]["learning_rate.projector"] == 3e-3
    assert "learning_rate.projector" not in record["same"]


@pytest.mark.parametrize(
    ("zero_stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32")]
)
def test_eight_bits_learn_as_thirty_two_do_and_resume_bit_for_bit(
    tiny_config: RunConfig, zero_stage: int, precision: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="the 8-bit optimizer is an extra")
    settings = (
        BOTH,
        "stages.align.optimizer={lr: 5e-3, weight_decay: 0.01}",
        f"engine.zero_stage={zero_stage}",
        f"engine.precision={precision}",
    )
    name = f"name=bits-{zero_stage}-{precision}"
    plain = run_stage(make_job(small_config(tiny_config, *settings, f"{name}-32")))
    job = make_job(small_config(tiny_config, *settings, EIGHT_BIT, name))
    losses = [record["loss"] for record in run_stage(job).history]
    assert losses[-1] < losses[0] - 0.3
    assert losses == pytest.approx([record["loss"] for record in plain.history], rel=2e-3)
    states = [
        state
        for file in Path(job.checkpoints).rglob("*.pt")
        for state in moments(torch.load(file, weights_only=False))
    ]
    assert max(states, key=torch.Tensor.numel).dtype == torch.uint8  # few values stay in fp32

    latest = locate(job.checkpoints) / "step-000004"
    assert (latest / MANIFEST).exists()
    again = replace(job, export=f"{job.export}-again")
    run_stage(again)  # its last two steps only
    assert_same_weights(exported_weights(again), exported_weights(job))


def moments(found: object) -> list[torch.Tensor]:
    """The optimizer's moments anywhere in a checkpoint."""
    if isinstance(found, dict):
        own = [found[key] for key in ("state1", "state2", "exp_avg", "exp_avg_sq") if key in found]
        return own + [state for value in found.values() for state in moments(value)]
    return [state for value in found for state in moments(value)] if type(found) is list else []


def test_eight_bits_are_not_shared_out_again(tiny_config: RunConfig) -> None:
    pytest.importorskip("bitsandbytes", reason="the 8-bit optimizer is an extra")
    config = small_config(tiny_config, BOTH, EIGHT_BIT)
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    freeze(model, config.stages[0].trainable)
    with local_context(lambda _: None):
        engine = TrainingEngine(model, stage=config.stages[0], config=config.engine, world_size=1)
        with pytest.raises(ConfigError, match=r"adamw_8bit: its state cannot be distributed again"):
            engine.check_universal(engine.layout)
        engine.close()


@pytest.mark.parametrize(
    "override", [EIGHT_BIT, "stages.align.lora.quantize=nf4"], ids=["optimizer", "lora"]
)
def test_a_package_that_is_not_there_is_a_sentence(
    tiny_config: RunConfig, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tiny_config, BOTH, override)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    sentence = f"{override}: needs the package bitsandbytes, which is not installed; install llava"
    with pytest.raises(ConfigError, match=sentence):
        check_packages(config, plan_curriculum(config))
    config = small_config(tiny_config, BOTH, "stages.align.lora.r=4")
    check_packages(config, plan_curriculum(config))
