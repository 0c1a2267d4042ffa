"""A stage stops before a jump of its loss does harm, and says what to do when memory runs out."""

import re
import statistics
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import llavamed.train.worker
from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.errors import TrainingError
from llavamed.model.cost.memory import stage_memory
from llavamed.model.freeze import freeze
from llavamed.model.llava import shape_on_meta
from llavamed.storage.location import locate
from llavamed.train.guard import check_loss, explained_memory
from llavamed.train.measure import Sizing
from llavamed.train.metrics import StepRecord
from tests.support.training_setup import make_job, mixture, run_stage, small_config

BOTH = "stages.align.trainable=[projector, language_model]"
DIVERGING = (BOTH, "stages.align.optimizer.lr=5", "checkpoint.every_steps=1")


@given(
    losses=st.lists(st.floats(0.1, 10), min_size=1, max_size=120),
    loss=st.floats(0.1, 30),
    bound=st.floats(1.1, 5),
    warmup=st.floats(0, 1),
)
def test_a_loss_is_refused_above_the_bound_and_after_the_warm_up(
    tiny_config: RunConfig, losses: list[float], loss: float, bound: float, warmup: float
) -> None:
    stage = tiny_config.stages[0]
    stage = stage.model_copy(
        update={
            "max_loss_ratio": bound,
            "schedule": stage.schedule.model_copy(update={"warmup_ratio": warmup}),
        }
    )
    history: list[StepRecord] = [{"loss": value} for value in losses]
    is_warm = len(losses) >= warmup * 120
    too_high = loss > bound * statistics.median(losses[-50:])
    message = rf"at step {len(losses) + 1}: exceeds stages.align.max_loss_ratio="
    refused = is_warm and too_high
    with pytest.raises(TrainingError, match=message) if refused else nullcontext():
        check_loss(tiny_config, stage, history, loss, 120)


def test_without_a_bound_or_a_step_before_no_loss_is_refused(tiny_config: RunConfig) -> None:
    stage = tiny_config.stages[0]
    check_loss(tiny_config, stage, [{"loss": 1.0}] * 9, 1e9, 10)
    stage = stage.model_copy(update={"max_loss_ratio": 2.0})
    check_loss(tiny_config, stage, [], 1e9, 10)


def test_a_jump_ends_the_stage_before_the_step_and_a_higher_bound_goes_on(
    tiny_config: RunConfig,
) -> None:
    config = small_config(tiny_config, *DIVERGING, "name=jump", "stages.align.max_loss_ratio=1.02")
    job = make_job(config)
    free = make_job(small_config(tiny_config, *DIVERGING, "name=free"))
    losses = [record["loss"] for record in run_stage(free).history]
    step = next(k for k in range(1, 6) if losses[k] > 1.02 * statistics.median(losses[:k]))
    message = (
        rf"loss={losses[step]:.4g} at step {step + 1}: exceeds stages.align.max_loss_ratio=1.02 x "
        rf"{statistics.median(losses[:step]):.4g}, the median of the steps before, and no weight "
        rf"was changed by it; raise max_loss_ratio to go on from the checkpoint of step {step}, or "
    )
    with pytest.raises(TrainingError, match=message):
        run_stage(job)
    assert not locate(job.export).exists()
    assert locate(job.checkpoints).children()[-1] == f"step-{step:06d}"
    raised = make_job(
        small_config(tiny_config, *DIVERGING, "name=jump", "stages.align.max_loss_ratio=1e9")
    )
    assert [record["loss"] for record in run_stage(raised).history] == losses


def test_memory_that_runs_out_in_the_loop_is_explained(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(llavamed.train.worker, "supervised_loss", run_out)
    job = make_job(small_config(tiny_config, BOTH, "name=full"))
    message = (
        r"memory=2\.0 GB: is the planned need of stage align on each worker \(weights 0\.0, "
        r"gradients 0\.0, optimizer 0\.0, activations 0\.0, logits 0\.0, update 0\.0, "
        r"workspace 2\.0\), and its GPU ran out of it: CUDA out of memory; set "
    )
    with pytest.raises(TrainingError, match=message):
        run_stage(job)


@pytest.mark.parametrize(
    ("num_workers", "overrides", "first"),
    [
        (4, ("engine.zero_stage=0",), "engine.zero_stage=3"),
        (4, ("engine.zero_stage=3",), "stages.align.gradient_checkpointing=true"),
        (1, (), "engine.offload_optimizer=cpu"),
        (
            1,
            (
                "engine.precision=bf16",
                "engine.offload_optimizer=cpu",
                "stages.align.gradient_checkpointing=true",
            ),
            "stages.align.max_tokens=512",
        ),
        (
            1,
            (
                "engine.precision=bf16",
                "stages.align.packing=false",
                "stages.align.max_tokens=null",
                "stages.align.micro_batch_size=4",
                "stages.align.global_batch_size=8",
                "engine.offload_optimizer=cpu",
                "stages.align.gradient_checkpointing=true",
            ),
            "stages.align.micro_batch_size=2",
        ),
    ],
    ids=["share out", "recompute", "offload", "shorter packs", "fewer samples"],
)
def test_the_settings_that_are_named_save_what_is_told(
    tiny_config: RunConfig, num_workers: int, overrides: tuple[str, ...], first: str
) -> None:
    """With a language model of a size that counts, on a device that holds nothing."""
    data = mixture(small_config(tiny_config))
    wide = "hidden_size: 1024, intermediate_size: 4096, num_hidden_layers: 24"
    heads = "num_attention_heads: 8, num_key_value_heads: 8, vocab_size: 32000"
    config = small_config(
        tiny_config,
        BOTH,
        "stages.align.max_tokens=1024",
        f"model.language_model.config={{model_type: llama, {wide}, {heads}}}",
        *overrides,
    )
    model = shape_on_meta(config.model)
    counts = freeze(model, config.stages[0].trainable)

    def planned(changed: RunConfig) -> float:
        stage = changed.stages[0]
        share = data.column("num_supervised").sum() / data.column("num_tokens").sum()
        return stage_memory(
            model,
            counts,
            stage=stage,
            engine=changed.engine,
            num_workers=num_workers,
            longest=int(data.column("num_tokens").max()),
            supervised=share,
            tiles_per_token=float((data.column("num_tiles") / data.column("num_tokens")).max()),
        ).total

    with (
        pytest.raises(TrainingError) as caught,
        explained_memory(config, config.stages[0], Sizing.of(model, counts, data, num_workers)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried")
    told = re.findall(
        r"(\S+=\S+) \((\d+\.\d) GB less(?:, under another name)?\)", str(caught.value)
    )
    assert 1 <= len(told) <= 3
    assert told[0][0] == first
    assert f"memory={planned(config) / 1e9:.1f} GB" in str(caught.value)
    for change, saved in told:
        less = planned(config) - planned(override_config(config, [change]))
        assert f"{less / 1e9:.1f}" == saved
    assert [float(saved) for _, saved in told] == sorted(
        (float(saved) for _, saved in told), reverse=True
    )
