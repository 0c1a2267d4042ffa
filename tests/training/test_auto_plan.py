"""`plan --auto` chooses what is fastest within memory, and the run accepts what it prints."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llavamed.config.engine import Kernels
from llavamed.config.load import load_config, override_config
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.model.cost.memory import Memory
from llavamed.model.cost.speeds import NEAR, Setting, Speeds, shipped_speeds, with_measurements
from llavamed.run.auto_plan import FASTEST_KERNELS, SAME_STEP, _trials, choose, reasons
from llavamed.run.plan import StageCost, plan_run, three_digits
from llavamed.storage.manifest import MeasuredMemory, Measurement, PlannedBytes

CONFIGS = Path(__file__).parents[2] / "ray_jobs" / "configs"
V1 = CONFIGS / "llava-med-v1.yaml"
V15 = CONFIGS / "llava-med-v1.5.yaml"


UNMEASURED = shipped_speeds().model_copy(update={"measured": ()})


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
    overrides, (choice,) = choose(config, accelerator="H200", num_gpus=8, speeds=UNMEASURED)
    assert "stages.align.gradient_checkpointing=false" in overrides
    # The language model is frozen: forward, gradient of the input, and no second forward.
    assert choice.chosen.mfu / choice.configured.mfu == pytest.approx(3 / 2)
    assert choice.chosen.hours < choice.configured.hours


def test_a_gpu_with_room_for_most_activations_recomputes_only_some_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llavamed.run.auto_plan._may_be_fast", lambda *_: False)  # they keep less
    config = load_config(V1, [f"data.directory={tmp_path}"])
    config = config.model_copy(update={"stages": config.stages[1:2]})
    speeds = UNMEASURED
    overrides, (choice,) = choose(config, accelerator="A100-40G", num_gpus=8, speeds=speeds)
    key = "stages.instruct.gradient_checkpointing"
    assert f"{key}=4" in overrides
    memory = {
        value: plan_run(
            override_config(config, [*overrides, f"{key}={value}"]),
            accelerator="A100-40G",
            speeds=speeds,
        )[0].memory.total
        for value in ("false", "4", "2", "true")
    }
    assert memory["false"] > choice.chosen.cost.gpu_memory >= memory["4"]
    assert memory["4"] > memory["2"] > memory["true"]


def test_a_measurement_takes_the_place_of_arithmetic(tmp_path: Path) -> None:
    config = first_stage(V1, tmp_path)
    _, (choice,) = choose(config, accelerator="H100", num_gpus=8, speeds=UNMEASURED)
    assert choice.chosen.mfu_origin is None
    assert any("hours are arithmetic" in sentence for sentence in reasons(choice))
    found = Measurement(
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
    assert other.chosen.mfu_origin == "taken from H100 (gpu-step.json)"


def test_what_was_measured_without_adapters_is_told_where_it_stands_for_adapters(
    tmp_path: Path,
) -> None:
    lora = ("stages.align.trainable=[projector, language_model]", "stages.align.lora={r: 8}")
    config = first_stage(V1, tmp_path)
    adapted = first_stage(V1, tmp_path, *lora)
    (cost,) = plan_run(config, accelerator="H100", speeds=UNMEASURED)
    frozen = measured(config, cost, mfu=0.9)
    (plain,), (found,) = (
        plan_run(each, accelerator="H100", speeds=frozen) for each in (config, adapted)
    )
    assert plain.mfu == found.mfu == 0.9
    assert plain.mfu_origin == "measured (gpu-step.json: ours)"
    assert found.mfu_origin == "taken without adapters (gpu-step.json: ours)"
    (found,) = plan_run(adapted, accelerator="A100", speeds=frozen)
    assert found.mfu_origin == "taken from H100 without adapters (gpu-step.json: ours)"
    assert "memory is measured" not in found.memory_source
    own = measured(adapted, found, mfu=0.3, accelerator="H100")
    both = frozen.model_copy(update={"measured": (*frozen.measured, *own.measured)})
    (found,) = plan_run(adapted, accelerator="H100", speeds=both)
    assert (found.mfu, found.mfu_origin) == (0.3, "measured (gpu-step.json: ours)")
    assert found.memory_source == "memory is measured (gpu-step.json: ours)"


def test_no_setting_is_tried_twice(tmp_path: Path) -> None:
    fast = [f"engine.kernels.{name}={json.dumps(value)}" for name, value in FASTEST_KERNELS.items()]
    config = first_stage(V1, tmp_path, "engine.zero_stage=2", *fast)
    changes = [trial.changes for trial in _trials(config, config.stages[0], "H100", UNMEASURED)]
    assert len({*changes}) == len(changes) > 10


def test_packs_get_the_fastest_kernels_that_were_measured(tmp_path: Path) -> None:
    config = first_stage(V15, tmp_path)
    overrides, (choice,) = choose(config, accelerator="H200", num_gpus=1)
    kernels = override_config(config, overrides).stages[0].engine.kernels
    assert kernels == Kernels(**FASTEST_KERNELS)
    assert choice.chosen.mfu > 0.5
    for setting in ("engine.precision=fp32", "model.attn_implementation=eager"):
        other = override_config(config, [setting])
        overrides, _ = choose(other, accelerator="H200", num_gpus=1)
        assert not any("kernels" in each for each in overrides), setting


def test_one_gpu_is_planned_without_zero_and_several_with_it(tmp_path: Path) -> None:
    config = load_config(V1, [f"data.directory={tmp_path}"])
    config = config.model_copy(update={"stages": config.stages[1:2]})
    memory = {}
    for num_gpus, zero_stages in ((1, {0}), (8, {1, 2, 3})):
        overrides, (choice,) = choose(config, accelerator="H200", num_gpus=num_gpus)
        changed = override_config(config, overrides)
        assert changed.engine_of(changed.stages[0]).zero_stage in zero_stages
        memory[num_gpus] = choice.chosen.cost.memory.total
    alone = override_config(config, ["scaling.num_workers=1"])
    needs = [
        plan_run(override_config(alone, [f"engine.zero_stage={stage}"]), accelerator="H200")[0]
        for stage in (0, 2)
    ]
    # Its step joins the gradients and copies them in fp32, where nothing is partitioned.
    assert needs[0].memory.total < needs[1].memory.total


def test_what_is_recomputed_slows_down_what_was_measured_without_it() -> None:
    setting = Setting("H200", True, False, Kernels(**FASTEST_KERNELS))
    mfu, by = shipped_speeds().mfu(setting)
    recomputing, counted = shipped_speeds().mfu(replace(setting, gradient_checkpointing=True))
    assert recomputing == pytest.approx(mfu * 3 / 4)
    assert counted == f"{by}, less what is recomputed"


def measured(config: RunConfig, cost: StageCost, *, times: float = 1.0, **facts: Any) -> Speeds:
    """The memory of a stage as if it were so many times its plan, with other facts changed."""
    stage = config.stages[0]
    found = Measurement(
        result="gpu-step.json: ours",
        **vars(Setting.of(stage, config.engine_of(stage).kernels, cost.accelerator)),
        memory=MeasuredMemory(
            planned=cost.memory.counted, peak_bytes=times * cost.memory.counted.total
        ),
    )
    found = found.replace(**facts)
    return shipped_speeds().model_copy(update={"measured": (found,)})


def test_the_measured_memory_of_the_same_setting_is_what_is_planned(tmp_path: Path) -> None:
    config = first_stage(V1, tmp_path)
    (cost,) = plan_run(config, accelerator="H100", speeds=UNMEASURED)
    assert cost.memory_source == "memory is estimated"
    speeds = measured(config, cost, times=1.3)
    (found,) = plan_run(config, accelerator="H100", speeds=speeds)
    peak = 1.3 * (cost.memory.total - cost.memory.workspace)
    assert found.memory.total == pytest.approx(peak + cost.memory.workspace)
    assert found.memory_source == "memory is measured (gpu-step.json: ours)"


def memory_of(parts: list[float]) -> Memory:
    return Memory(PlannedBytes(**dict(zip(PlannedBytes.model_fields, parts, strict=True))))


@given(
    own=st.lists(st.floats(1, 1e11), min_size=6, max_size=6),
    part=st.integers(0, 5),
    more=st.floats(-2, 2),
    times=st.floats(0.1, 10),
)
def test_a_plan_is_corrected_as_far_as_it_is_near(
    own: list[float], part: int, more: float, times: float
) -> None:
    first = memory_of(own)
    total = first.counted.total
    other = list(own)
    other[part] = max(0.0, other[part] + more * total)
    setting = Setting("H100", True, False, Kernels())
    memory = MeasuredMemory(planned=first.counted, peak_bytes=times * total)
    found = Measurement(result="it", **vars(setting), memory=memory)
    speeds = shipped_speeds().model_copy(update={"measured": (found,)})
    changed = abs(other[part] - own[part]) / total
    assume(abs(changed - NEAR) > 1e-6)
    corrected, by = speeds.correct(memory_of(other), setting)
    if changed > NEAR:
        assert (corrected, by) == (memory_of(other), None)
    else:
        assert by is not None
        assert by.factor == pytest.approx(times)
        assert corrected.counted.total == pytest.approx(times * memory_of(other).counted.total)
        assert corrected.workspace == first.workspace


def test_a_measurement_nearby_corrects_the_estimate_and_another_setting_does_not(
    tmp_path: Path,
) -> None:
    config = first_stage(V1, tmp_path)
    (cost,) = plan_run(config, accelerator="H100", speeds=UNMEASURED)
    speeds = measured(config, cost, times=1.3)
    smaller = override_config(config, ["stages.align.micro_batch_size=4"])
    (estimated,) = plan_run(smaller, accelerator="H100", speeds=UNMEASURED)
    (found,) = plan_run(smaller, accelerator="H100", speeds=speeds)
    assert found.memory_source.startswith("memory is the estimate times 1.30, measured nearby (gpu")
    assert found.memory.counted.activations == pytest.approx(
        1.3 * estimated.memory.counted.activations
    )
    for change in (
        "stages.align.gradient_checkpointing=2",
        "engine.kernels={liger: true}",
        "stages.align.trainable=[projector, language_model]",
        "stages.align.micro_batch_size=1",
    ):
        other = override_config(config, [change])
        (alone,) = plan_run(other, accelerator="H100", speeds=UNMEASURED)
        (found,) = plan_run(other, accelerator="H100", speeds=speeds)
        assert found == alone, change
    elsewhere = plan_run(config, accelerator="H200", speeds=speeds)[0].correction
    assert elsewhere is not None
    assert elsewhere.factor == pytest.approx(1.3)


def test_measured_memory_decides_what_fits(tmp_path: Path) -> None:
    config = first_stage(V1, tmp_path)
    overrides, (choice,) = choose(config, accelerator="H100", num_gpus=8)
    best = choice.chosen.cost
    changed = override_config(config, overrides)
    speeds = measured(changed, best, times=1.01 * best.gpu_memory / best.memory.counted.total)
    assert plan_run(changed, accelerator="H100", speeds=speeds)[0].savings != ()
    others, (choice,) = choose(config, accelerator="H100", num_gpus=8, speeds=speeds)
    assert choice.chosen.fits
    (planned,) = plan_run(override_config(config, others), accelerator="H100", speeds=speeds)
    assert planned.memory == choice.chosen.cost.memory
    assert planned.memory.total <= planned.gpu_memory
    assert others != overrides


def test_the_measured_utilization_of_a_setting_is_planned_with(tmp_path: Path) -> None:
    config = first_stage(V1, tmp_path)
    (cost,) = plan_run(config, accelerator="H100", speeds=UNMEASURED)
    speeds = measured(config, cost, mfu=0.5)
    (found,) = plan_run(config, accelerator="H100", speeds=speeds)
    assert (found.mfu, found.mfu_origin) == (0.5, "measured (gpu-step.json: ours)")
    assert found.hours == pytest.approx(cost.hours * 0.4 / 0.5)
    (given_,) = plan_run(config, accelerator="H100", speeds=speeds, mfu=0.3)
    assert (given_.mfu, given_.mfu_origin) == (0.3, None)


def test_measurements_are_read_from_results_before_those_that_come_with_it(tmp_path: Path) -> None:
    config = first_stage(V1, tmp_path)
    (cost,) = plan_run(config, accelerator="H100", speeds=UNMEASURED)
    own = measured(config, cost, mfu=0.5).measured
    file = tmp_path / "gpu-step.json"
    file.write_text(json.dumps({"measured": [each.model_dump(mode="json") for each in own]}))
    assert with_measurements([str(file)]).measured == (*own, *shipped_speeds().measured)
    assert with_measurements([]) == shipped_speeds()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "FileNotFoundError: "),
        ("{", "DamagedFileError: "),
        ("[]", "TypeError: "),
        ('{"cases": {}}', "KeyError: 'measured'"),
        ('{"measured": []}', "LookupError: nothing was measured, as on a CPU"),
        ('{"measured": [{"mfu": 2}]}', "ValidationError: "),
    ],
)
def test_a_file_without_measurements_is_refused(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    file = tmp_path / "it.json"
    if text is not None:
        file.write_text(text)
    message = f"measured={re.escape(str(file))}: holds no measurements: {problem}.*; name a result"
    with pytest.raises(ConfigError, match=message):
        with_measurements([str(file)])


def test_what_fits_nowhere_is_refused_with_what_would_help(tmp_path: Path) -> None:
    config = load_config(V1, [f"data.directory={tmp_path}", "engine.offload_optimizer=none"])
    config = config.model_copy(update={"stages": config.stages[1:2]})
    message = r"stages.instruct: needs \S+ GB a GPU at the least of \d+ settings tried, and A10G"
    with pytest.raises(ConfigError, match=message):
        choose(config, accelerator="A10G", num_gpus=1)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1e-8, "under 0.001"), (0.0123456, "0.0123"), (99.94, "99.9"), (1234.5, "1,234")],
)
def test_hours_have_no_exponent(number: float, text: str) -> None:
    assert three_digits(number) == text
