"""A hint that an error prints is accepted by the run that it is given to."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import llavamed.model.cost.savings
import llavamed.train.worker
from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.data.feed.order import order_stage
from llavamed.data.prepared.mixture import Share
from llavamed.errors import ConfigError, DataError, LeaseError, TrainingError
from llavamed.processor.build import build_processor
from llavamed.run.curriculum import make_jobs, plan_curriculum
from llavamed.run.model_checks import check_language_model
from llavamed.run.preflight import check_settings, check_stage
from llavamed.storage.lease import hold_lease
from llavamed.storage.location import locate
from llavamed.train.guard import check_loss
from llavamed.train.job import check_conversion
from llavamed.train.metrics import StepRecord
from tests.support.training_setup import LEARNING, make_job, mixture, run_stage, small_config

ELSEWHERE = ", under another name"


def run_out_of_memory(config: RunConfig, monkeypatch: pytest.MonkeyPatch, *, at_step: int) -> str:
    """Train until a step that finds no memory; gives what is said then."""
    job, steps = make_job(config), [0]
    loss = llavamed.train.worker.supervised_loss

    def run_out(*args: object) -> torch.Tensor:
        if steps[0] >= at_step - 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(*args)

    def count(records: list[StepRecord]) -> None:
        steps[0] = int(records[-1]["step"])

    with monkeypatch.context() as patch:
        patch.setattr(llavamed.model.cost.savings, "NUM_SAVINGS", 99)
        patch.setattr(llavamed.train.worker, "supervised_loss", run_out)
        with pytest.raises(TrainingError) as caught:
            run_stage(job, count)
    return str(caught.value)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_what_saves_memory_is_taken_by_a_run_that_has_begun(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    name = f"full-{zero_stage}"
    settings = (*LEARNING, f"engine.zero_stage={zero_stage}", "stages.align.max_steps=4")
    config = small_config(tiny_config, *settings, f"name={name}")
    said = run_out_of_memory(config, monkeypatch, at_step=4)
    hints = re.findall(rf"(\S+=\S+) \(\d+\.\d GB less({ELSEWHERE})?\)", said)
    changes = dict(hints)
    assert {"stages.align.gradient_checkpointing=true", "engine.precision=bf16"} <= changes.keys()
    plans = plan_curriculum(config)[:1]
    for number, (change, where) in enumerate(hints):
        other = (f"name={name}-{number}",) if where else ()
        changed = override_config(config, [change, *other])
        check_settings(plan_curriculum(changed)[:1], [make_job(changed)])
        if not where:
            reported: list[StepRecord] = []
            assert run_stage(make_job(changed), reported.extend).steps == 4
            assert [record["step"] for record in reported] == [1, 2, 3, 4]
            plans[0].export.remove()
    refused = {change for change, where in hints if where}
    assert "engine.precision=bf16" in refused
    assert "stages.align.gradient_checkpointing=true" not in refused


WRONG = {
    "batch": ("stages.align.global_batch_size=6", "scaling.num_workers=4"),
    "lanes": ("scaling.num_workers=64",),
    "packing": ("stages.align.micro_batch_size=2",),
    "lengths": ("stages.align.max_tokens=16", "data.max_length=2048"),
}
CHANGES = {
    "batch": lambda said: [
        *(
            f"stages.align.global_batch_size={n}"
            for n in re.findall(r"use (\d+) or (\d+)", said)[0]
        ),
        *(f"scaling.num_workers={n}" for n in re.findall(r"(\d+)(?: or \d+)? workers", said)),
    ],
    "lanes": lambda said: [
        f"scaling.num_workers={n}"
        for n in re.findall(r"micro_batch_size = (\d+); use at most", said)
    ],
    "packing": lambda said: [
        f"stages.align.micro_batch_size={n}" for n in re.findall(r"set it to (\d+)", said)
    ],
    "lengths": lambda said: [
        f"stages.align.max_tokens={n}" for n in re.findall(r"data.max_length=(\d+)", said)
    ],
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_a_config_is_told_makes_it_a_config(tiny_config: RunConfig, kind: str) -> None:
    base = small_config(tiny_config, "scaling.num_workers=1")
    base = base.model_copy(update={"stages": base.stages[:1]})
    with pytest.raises(ConfigError) as caught:
        override_config(base, WRONG[kind])
    changes = CHANGES[kind](str(caught.value))
    assert changes
    for change in changes:
        override_config(base, [*WRONG[kind], change])


def test_a_stage_whose_samples_are_too_long_takes_what_it_is_told(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = small_config(tiny_config, f"storage={tmp_path}")
    plan, data = plan_curriculum(config)[0], mixture(config)
    stage = plan.stage.model_copy(update={"max_tokens": 16})
    short = config.model_copy(update={"stages": (stage,)})
    with pytest.raises(DataError, match="raise max_tokens") as caught:
        check_stage(plan_curriculum(short)[0], make_job(short), data)
    longest = max(map(int, re.findall(r"\d+", str(caught.value))))
    stage = plan.stage.model_copy(update={"max_tokens": longest})
    longer = config.model_copy(update={"stages": (stage,)})
    check_stage(plan_curriculum(longer)[0], make_job(longer), data)


def test_who_finds_a_name_taken_may_use_another_one_or_take_over(tmp_path: Path) -> None:
    folder = locate(str(tmp_path / "taken"))
    with hold_lease(folder, hint="use another name") as first:
        with hold_lease(locate(str(tmp_path / "another")), hint="") as other:
            other.check()
        with hold_lease(folder, hint="", take_over=True) as second:
            second.check()
            with pytest.raises(LeaseError, match="was taken over"):
                first.check()


def test_a_stage_that_trained_nothing_trains_under_another_name(tiny_config: RunConfig) -> None:
    still = small_config(tiny_config, "name=still", "stages.align.optimizer.lr=1e-30")
    with pytest.raises(TrainingError, match="raise it, and start under another name"):
        run_stage(make_job(still))
    raised = override_config(still, ["stages.align.optimizer.lr=1e-3"])
    plans = plan_curriculum(raised)
    with pytest.raises(ConfigError, match=r"lr=0.001, was 1e-30: .*use another name"):
        check_settings(plans[:1], make_jobs(raised, plans)[:1])
    assert run_stage(make_job(override_config(raised, ["name=moving"]))).steps == 6


@pytest.mark.parametrize(("saved", "now"), [(0, 2), (3, 1), (1, 3), (2, 0)])
def test_a_run_goes_on_with_the_zero_stage_that_a_refusal_names(saved: int, now: int) -> None:
    with pytest.raises(ConfigError, match=r"only 1 and 2 can be converted") as caught:
        check_conversion(saved, now)
    (advised,) = re.findall(r"set it to (\d)", str(caught.value))
    check_conversion(saved, int(advised))


def test_a_stage_of_too_few_passes_trains_when_either_is_raised() -> None:
    def order(passes: float, num_epochs: int) -> int:
        return order_stage(
            np.zeros(8, dtype=np.int64),
            np.ones(8, dtype=np.int64),
            seed=0,
            num_lanes=1,
            capacity=1,
            num_epochs=num_epochs,
            shares=[Share(8, passes)],
        ).num_steps

    with pytest.raises(DataError, match="raise the passes, or num_train_epochs"):
        order(0.01, 1)
    assert order(0.5, 1) > 0
    assert order(0.01, 50) > 0


def test_adapters_go_on_the_layers_that_a_refusal_names(tiny_config: RunConfig) -> None:
    lora = "stages.instruct.lora"
    wrong = override_config(tiny_config, [f"{lora}={{target_modules: [q_porj]}}"])
    with pytest.raises(ConfigError, match="use some of") as caught:
        check_language_model(wrong, plan_curriculum(wrong))
    names = re.findall(r"use some of: (.+)$", str(caught.value))[0]
    right = override_config(wrong, [f"{lora}.target_modules=[{names}]"])
    check_language_model(right, plan_curriculum(right))
    coarse = override_config(tiny_config, [f"{lora}={{quantize: nf4}}"])
    with pytest.raises(ConfigError, match="set it to none"):
        check_language_model(coarse, plan_curriculum(coarse))
    plain = override_config(coarse, [f"{lora}.quantize=none"])
    check_language_model(plain, plan_curriculum(plain))


def test_a_model_takes_the_size_of_vocabulary_that_it_is_told(tiny_config: RunConfig) -> None:
    key = "model.language_model.config.vocab_size"
    small = override_config(tiny_config, [f"{key}=8"])
    texts = ["USER: what is seen? ASSISTANT: a lesion."]
    with pytest.raises(ConfigError, match="set it to at least") as caught:
        build_processor(small.model, iter(texts))
    (size,) = re.findall(r"at least (\d+)", str(caught.value))
    large = override_config(tiny_config, [f"{key}={size}"])
    assert len(build_processor(large.model, iter(texts)).tokenizer) <= int(size)


@pytest.mark.parametrize(("least", "loss"), [(2.0, 3.0), (1.5, 40.0)])
def test_a_raised_ratio_lets_the_loss_pass(
    tiny_config: RunConfig, least: float, loss: float
) -> None:
    key = "stages.align.max_loss_ratio"
    config = override_config(tiny_config, [f"{key}={least}"])
    history = [{"loss": 1.0}] * 40
    with pytest.raises(TrainingError, match="raise max_loss_ratio to go on from"):
        check_loss(config, config.stages[0], history, loss, 100)
    raised = override_config(config, [f"{key}={loss}"])
    check_loss(raised, raised.stages[0], history, loss, 100)
