"""DeepSpeed does the arithmetic of AdamW on the mean over the global step, however it shares it."""

import gc
import math
import re
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from llavamed.config.engine import FEW_PASSES, Engine
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.loader import Batch
from llavamed.errors import CheckpointError, ConfigError
from llavamed.model.freeze import freeze
from llavamed.model.llava import build_model
from llavamed.model.loss import supervised_loss
from llavamed.processor.turns import IGNORE_INDEX
from llavamed.train.context import local_context
from llavamed.train.deepspeed_config import deepspeed_config
from llavamed.train.engine import TrainingEngine
from llavamed.train.without_zero import WithoutZero
from tests.support.training_setup import (
    assert_same_weights,
    joined,
    processor_of,
    small_config,
    step_batches,
)

SMOOTH = "stages.align.optimizer.eps=1e-4"
"""AdamW's first step is +-lr for the smallest gradient; this keeps errors of rounding small."""
LINEAR = "stages.align.optimizer={lr: 1e3, eps: 1e3}"
"""Makes AdamW's first step the gradient itself, within a thousandth."""


@dataclass
class Trained:
    """Weights before and after some steps, and the norm of each step's gradient."""

    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    norms: list[float]


def train(
    config: RunConfig, steps: Iterable[list[Batch]], *overrides: str, loss_factor: float = 1.0
) -> Trained:
    config = small_config(config, *overrides)
    stage = config.stages[0]
    model = build_model(
        config.model, processor_of(config), seed=0, precision=config.engine.precision
    )
    freeze(model, stage.trainable)
    norms = []
    with local_context(lambda _: None):
        engine = TrainingEngine(model.train(), stage=stage, config=config.engine, world_size=1)
        before = copy_of(engine.weights())
        for batches in steps:
            total = sum(int((batch.targets != IGNORE_INDEX).sum()) for batch in batches)
            for batch in batches[:-1]:
                engine.backward(supervised_loss(engine.model, batch), total)
                engine.step()
            engine.backward(supervised_loss(engine.model, batches[-1]) * loss_factor, total)
            loss_sum = torch.tensor(float(total))  # the loss is finite, the gradient perhaps not
            engine.update(1.0, loss_sum)
            norms.append(engine.norms()[0].item())
        after = copy_of(engine.weights())
        engine.close()
    return Trained(before, after, norms)


def copy_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.fixture(scope="module")
def steps(tiny_config: RunConfig) -> list[list[Batch]]:
    """Two steps of four packs."""
    return step_batches(small_config(tiny_config, "stages.align.max_steps=2"))


ALL = "stages.align.trainable=[vision_tower, projector, language_model]"


@pytest.fixture(scope="module")
def without_zero(tiny_config: RunConfig, steps: list[list[Batch]]) -> dict[str, Trained]:
    """What the stages of ZeRO must agree with."""
    return {
        precision: train(
            tiny_config, steps, ALL, SMOOTH, "engine.zero_stage=0", f"engine.precision={precision}"
        )
        for precision in ("fp32", "bf16")
    }


@pytest.mark.parametrize(
    ("zero_stage", "precision"), [(1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16")]
)
def test_stages_of_zero_give_the_same_weights(
    tiny_config: RunConfig,
    steps: list[list[Batch]],
    without_zero: dict[str, Trained],
    zero_stage: int,
    precision: str,
) -> None:
    settings = (f"engine.zero_stage={zero_stage}", f"engine.precision={precision}")
    trained = train(tiny_config, steps, ALL, SMOOTH, *settings)
    expected = without_zero[precision]
    # In bf16 a weight near one rounds by 0.004, and gradients are summed in another order.
    assert_same_weights(trained.after, expected.after, atol=1e-6 if precision == "fp32" else 0.004)
    assert trained.norms == pytest.approx(expected.norms, rel=1e-5 if precision == "fp32" else 0.01)


def test_without_zero_the_first_step_of_bf16_is_the_first(without_zero: dict[str, Trained]) -> None:
    """DeepSpeed's empty step to make AdamW's moments would shorten it by a quarter."""
    lengths = []
    for trained in without_zero.values():
        name = "model.multi_modal_projector.linear_1.bias"  # begins near zero, where bf16 is fine
        lengths.append((trained.after[name].float() - trained.before[name].float()).norm().item())
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1)


@pytest.mark.parametrize("bound", [0.1, 100.0])
def test_without_zero_a_step_of_bf16_is_that_of_deepspeed(
    tiny_config: RunConfig, steps: list[list[Batch]], monkeypatch: pytest.MonkeyPatch, bound: float
) -> None:
    settings = ("engine.zero_stage=0", "engine.precision=bf16")
    settings += (f"stages.align.max_grad_norm={bound}", SMOOTH, ALL)
    ours = train(tiny_config, steps, *settings)
    monkeypatch.setattr(
        "llavamed.train.engine.WithoutZero",
        lambda _, *sizes, **settings: WithoutZero(object(), *sizes, **settings),
    )
    theirs = train(tiny_config, steps, *settings)
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-3)
    assert min(theirs.norms) > 0.1  # so the small bound clips
    assert_same_weights(ours.after, theirs.after, atol=0.004)  # a weight near one rounds by that
    apart = [(ours.after[name] != theirs.after[name]).float().mean() for name in ours.after]
    assert max(apart) < 0.01


def test_accumulation_is_one_pass_over_the_same_samples(
    tiny_config: RunConfig, steps: list[list[Batch]]
) -> None:
    four = train(tiny_config, steps, ALL, SMOOTH)
    one = train(
        tiny_config,
        [[joined(batches)] for batches in steps],
        ALL,
        SMOOTH,
        "scaling.num_workers=1",
        "stages.align.global_batch_size=1",
    )
    assert_same_weights(one.after, four.after, atol=1e-6)
    assert one.norms == pytest.approx(four.norms, rel=1e-6)


def test_weight_decay_touches_matrices_only(
    tiny_config: RunConfig, steps: list[list[Batch]]
) -> None:
    runs = [
        train(tiny_config, steps[:1], ALL, f"stages.align.optimizer.weight_decay={decay}")
        for decay in (0.0, 0.5)
    ]
    config = small_config(tiny_config)
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    freeze(model, ("vision_tower", "projector", "language_model"))
    for name, parameter in model.named_parameters():
        plain, decayed, start = runs[0].after[name], runs[1].after[name], runs[0].before[name]
        if parameter.requires_grad and parameter.ndim >= 2:
            torch.testing.assert_close(decayed, plain - 2e-3 * 0.5 * start, rtol=0.0, atol=1e-7)
        else:
            assert torch.equal(plain, decayed), name


@pytest.mark.parametrize("zero_stage", [0, 2])
@pytest.mark.parametrize("bound", [0.1, 100.0])
def test_gradients_are_clipped_to_their_norm(
    tiny_config: RunConfig, steps: list[list[Batch]], zero_stage: int, bound: float
) -> None:
    trained = train(
        tiny_config,
        steps[:1],
        ALL,
        LINEAR,
        f"stages.align.max_grad_norm={bound}",
        f"engine.zero_stage={zero_stage}",
    )
    moved = [(trained.after[name] - trained.before[name]).flatten() for name in trained.after]
    (norm,) = trained.norms
    assert 0.2 < norm < 2.0
    assert torch.cat(moved).norm().item() == pytest.approx(min(norm, bound), rel=2e-3)


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [(0, "fp32"), (0, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")],
)
def test_a_gradient_that_is_not_finite_shows_in_its_norm(
    tiny_config: RunConfig, steps: list[list[Batch]], zero_stage: int, precision: str
) -> None:
    settings = (f"engine.zero_stage={zero_stage}", f"engine.precision={precision}")
    trained = train(tiny_config, steps, *settings, loss_factor=math.inf)
    assert not any(map(math.isfinite, trained.norms))
    assert_same_weights(trained.after, trained.before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_closed_engine_holds_no_weights(
    tiny_config: RunConfig, zero_stage: int, precision: str
) -> None:
    """Rank 0 loads the export for comparison while the saver of the stage holds the engine."""
    config = small_config(
        tiny_config, f"engine.zero_stage={zero_stage}", f"engine.precision={precision}"
    )
    model = build_model(config.model, processor_of(config), seed=0, precision=precision)
    freeze(model, ["projector"])
    with local_context(lambda _: None):
        engine = TrainingEngine(model, stage=config.stages[0], config=config.engine, world_size=1)
        held = [weakref.ref(model), weakref.ref(engine.model.optimizer)]
        engine.close()
        del model
        gc.collect()
        assert [each() for each in held] == [None, None]


def test_a_folder_without_state_is_not_loaded(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = small_config(tiny_config)
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    freeze(model, ["projector"])
    with local_context(lambda _: None):
        engine = TrainingEngine(model, stage=config.stages[0], config=config.engine, world_size=1)
        with pytest.raises(CheckpointError, match=r"holds no state of this run; delete"):
            engine.load(tmp_path)
        engine.close()


def test_a_worker_without_a_share_cannot_resume_from_another_number(tiny_config: RunConfig) -> None:
    config = small_config(tiny_config, "stages.align.optimizer.weight_decay=0.01")
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    freeze(model, ["projector"])
    with local_context(lambda _: None):
        engine = TrainingEngine(model, stage=config.stages[0], config=config.engine, world_size=1)
        engine.check_universal(engine.layout)
        for parameter in engine.model.optimizer.bit16_groups[1]:
            parameter._hp_mapping = None  # as on the last of so many workers
        with pytest.raises(ConfigError, match=r"num_workers=1: leaves a worker none of 32 weights"):
            engine.check_universal(engine.layout)
        engine.close()


def make_stage(**settings: Any) -> Stage:
    base = {"name": "align", "data": "captions", "trainable": ["projector"]}
    return Stage.model_validate(base | {"optimizer": {"lr": 1e-3}} | settings)


@pytest.mark.parametrize(
    "engine",
    [
        "{zero_stage: 0}",
        "{zero_stage: 0, deepspeed: {data_types: {grad_accum_dtype: fp32}}}",
        "{zero_stage: 2}",
        "{zero_stage: 3}",
        "{zero_stage: 2, offload_optimizer: cpu}",
    ],
)
def test_many_gradients_in_bf16_add_up_to_the_mean(
    tiny_config: RunConfig, steps: list[list[Batch]], engine: str
) -> None:
    """Added in bf16, 64 of them are 1.8 % off, and the norm of their mean by 0.15 %."""
    norms = {}
    for number in (16, 64):  # each gradient is rounded alike, as their weights are powers of two
        trained = train(
            tiny_config,
            [steps[0] * (number // 4)],
            LINEAR,
            f"engine={engine}",
            "engine.precision=bf16",
            "scaling.num_workers=1",
            f"stages.align.global_batch_size={number}",
            "stages.align.max_grad_norm=1e9",
        )
        norms[number] = trained.norms[0]
    assert norms[64] == pytest.approx(norms[16], rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_gradients_are_added_up_in_fp32_where_deepspeed_can(
    zero_stage: int, precision: str
) -> None:
    stage = make_stage(global_batch_size=2 * FEW_PASSES)
    engine = Engine.model_validate({"zero_stage": zero_stage, "precision": precision})
    for workers in (1, 2, 16):
        types = deepspeed_config(engine, stage, workers).get("data_types")
        adds = precision == "bf16" and zero_stage >= 2 and workers == 1
        assert types == ({"grad_accum_dtype": "fp32"} if adds else None)
    for asked in ("bf16", "fp32"):
        types = {"grad_accum_dtype": asked}
        changed = Engine.model_validate(engine.model_dump() | {"deepspeed": {"data_types": types}})
        for workers in (1, 2):
            found = deepspeed_config(changed, stage, workers).get("data_types")
            # Without ZeRO we add them up in fp32, and DeepSpeed would refuse to.
            assert found == (None if zero_stage == 0 and asked == "fp32" else types)


@pytest.mark.parametrize(
    ("micro", "total", "workers", "accumulation"),
    [(1, 8, 1, 8), (1, 8, 2, 4), (4, 32, 8, 1), (4, 32, 1, 8)],
)
def test_batch_sizes_are_derived(micro: int, total: int, workers: int, accumulation: int) -> None:
    stage = make_stage(packing=False, micro_batch_size=micro, global_batch_size=total)
    settings = deepspeed_config(Engine(), stage, workers)
    assert settings["train_micro_batch_size_per_gpu"] == micro
    assert settings["gradient_accumulation_steps"] == accumulation
    assert settings["train_batch_size"] == total
    assert settings["gradient_clipping"] == 1.0


def test_raw_settings_are_merged_last() -> None:
    config = Engine.model_validate(
        {
            "zero_stage": 3,
            "offload_optimizer": "cpu",
            "deepspeed": {
                "zero_optimization": {"stage3_max_live_parameters": 1},
                "steps_per_print": 7,
            },
        }
    )
    settings = deepspeed_config(config, make_stage(global_batch_size=1), 1)
    assert settings["steps_per_print"] == 7
    assert settings["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage3_max_live_parameters": 1,
    }


@pytest.mark.parametrize(
    ("raw", "key", "owner"),
    [
        ({"train_batch_size": 8}, "train_batch_size", "stages.*.global_batch_size"),
        ({"gradient_clipping": 2}, "gradient_clipping", "stages.*.max_grad_norm"),
        ({"fp16": {"enabled": True}}, "fp16", "engine.precision"),
        ({"optimizer": {"type": "Adam"}}, "optimizer", "stages.*.optimizer"),
        ({"scheduler": {}}, "scheduler", "stages.*.schedule"),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage", "engine.zero_stage"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer",
            "engine.offload_optimizer",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_derived_settings_are_refused_with_the_name_of_ours(
    raw: dict[str, Any], key: str, owner: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key}: is derived; set {owner} instead")):
        Engine(deepspeed=raw)
