"""`plan --auto` chooses what is fastest within memory, and the run accepts what it prints."""

from pathlib import Path

import pytest

from llavamed.config.load import load_config, override_config
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.model.cost.speeds import MeasuredSpeed, shipped_speeds
from llavamed.run.auto_plan import SAME_STEP, choose, reasons
from llavamed.run.plan import plan_run

CONFIGS = Path(__file__).parents[2] / "ray_jobs" / "configs"
V1 = CONFIGS / "llava-med-v1.yaml"
V15 = CONFIGS / "llava-med-v1.5.yaml"


def first_stage(file: Path, folder: Path, *overrides: str) -> RunConfig:
    config = load_config(file, [f"data.directory={folder}", *overrides])
    return config.model_copy(update={"stages": config.stages[:1]})


@pytest.mark.parametrize("gpu", ["A100-40G", "A100", "H100", "H200"])
@pytest.mark.parametrize("file", [V1, V15], ids=["v1", "v1.5"])
def test_the_choice_fits_and_is_accepted_and_no_slower_than_what_fits(
    file: Path, gpu: str, tmp_path: Path
) -> None:
    config = first_stage(file, tmp_path)
    overrides, (choice,) = choose(config, accelerator=gpu, num_gpus=8)
    changed = override_config(config, overrides)
    (planned,) = plan_run(changed, accelerator=gpu)
    assert planned.num_gpus == 8
    assert planned.memory == choice.chosen.cost.memory
    assert planned.memory.total <= planned.gpu_memory
    assert choice.chosen.fits
    if choice.configured.fits:
        assert choice.chosen.hours <= choice.configured.hours * 1.01
    before, after = (each.cost.samples_per_step for each in (choice.configured, choice.chosen))
    assert abs(after / before - 1) <= SAME_STEP
    assert changed.stages[0].trainable == config.stages[0].trainable
    assert changed.stages[0].optimizer == config.stages[0].optimizer


def test_padded_samples_are_packed_where_they_are_kept_apart(tmp_path: Path) -> None:
    padded = ["packing=false", "max_tokens=null", "micro_batch_size=16", "global_batch_size=128"]
    changes = [f"stages.align.{each}" for each in padded]
    config = first_stage(V1, tmp_path, *changes)
    overrides, (choice,) = choose(config, accelerator="H100", num_gpus=8)
    assert "stages.align.packing=true" in overrides
    assert choice.chosen.cost.useful_tokens > choice.configured.cost.useful_tokens
    eager = first_stage(V1, tmp_path, *changes, "model.attn_implementation=eager")
    overrides, _ = choose(eager, accelerator="H100", num_gpus=8)
    assert not any("packing" in each for each in overrides)


def test_a_stage_that_has_memory_to_spare_recomputes_nothing(tmp_path: Path) -> None:
    config = first_stage(V1, tmp_path, "stages.align.gradient_checkpointing=true")
    overrides, (choice,) = choose(config, accelerator="H200", num_gpus=8)
    assert "stages.align.gradient_checkpointing=false" in overrides
    # The language model is frozen: forward, gradient of the input, and no second forward.
    assert choice.chosen.mfu / choice.configured.mfu == pytest.approx(3 / 2)
    assert choice.chosen.hours < choice.configured.hours


def test_a_gpu_with_room_for_most_activations_recomputes_only_some_layers(tmp_path: Path) -> None:
    config = load_config(V1, [f"data.directory={tmp_path}"])
    config = config.model_copy(update={"stages": config.stages[1:2]})
    overrides, (choice,) = choose(config, accelerator="A100-40G", num_gpus=8)
    key = "stages.instruct.gradient_checkpointing"
    assert f"{key}=4" in overrides
    memory = {
        value: plan_run(
            override_config(config, [*overrides, f"{key}={value}"]), accelerator="A100-40G"
        )[0].memory.total
        for value in ("false", "4", "2", "true")
    }
    assert memory["false"] > choice.chosen.cost.gpu_memory >= memory["4"]
    assert memory["4"] > memory["2"] > memory["true"]


def test_a_measurement_takes_the_place_of_arithmetic(tmp_path: Path) -> None:
    config = first_stage(V1, tmp_path)
    _, (choice,) = choose(config, accelerator="H100", num_gpus=8)
    assert choice.chosen.measured_by is None
    assert any("hours are arithmetic" in sentence for sentence in reasons(choice))
    found = MeasuredSpeed(
        result="gpu-step.json",
        accelerator="H100",
        trains_language_model=False,
        gradient_checkpointing=True,
        mfu=0.9,
    )
    speeds = shipped_speeds().model_copy(update={"measured": (found,)})
    overrides, (choice,) = choose(config, accelerator="H100", num_gpus=8, speeds=speeds)
    assert "stages.align.gradient_checkpointing=true" in overrides
    assert any("measured (gpu-step.json)" in sentence for sentence in reasons(choice))
    _, (other,) = choose(config, accelerator="A100", num_gpus=8, speeds=speeds)
    assert other.chosen.measured_by is None


def test_what_fits_nowhere_is_refused_with_what_would_help(tmp_path: Path) -> None:
    config = load_config(V1, [f"data.directory={tmp_path}", "engine.offload_optimizer=none"])
    config = config.model_copy(update={"stages": config.stages[1:2]})
    message = r"stages.instruct: needs \S+ GB a GPU at the least of \d+ settings tried, and A10G"
    with pytest.raises(ConfigError, match=message):
        choose(config, accelerator="A10G", num_gpus=1)
