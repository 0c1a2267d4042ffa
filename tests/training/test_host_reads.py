"""A step asks the device for nothing; a step that is not finite still changes nothing."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import llavamed.train.worker
from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import Batch, StageLoader
from llavamed.errors import DataError, TrainingError
from llavamed.model.loss import supervised_loss
from llavamed.storage.location import locate
from llavamed.train.context import PreemptionWatch
from llavamed.train.engine import TrainingEngine
from llavamed.train.job import order_of
from llavamed.train.metrics import StepRecord
from tests.support.training_setup import (
    LEARNING,
    exported_weights,
    make_job,
    mixture,
    run_stage,
    small_config,
    step_batches,
)

SELDOM = ("tracking.log_every_steps=100", "checkpoint.every_steps=100")
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
"""Operations for which a host waits for a GPU."""


class CountReads(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.number = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().split(".")[0]
        if name in READS:
            self.number[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        ("engine.zero_stage=2", "engine.precision=bf16"),
        ("engine.zero_stage=0", "engine.precision=bf16"),
        ("engine.zero_stage=0",),
    ],
    ids=["zero 2, bf16", "no zero, bf16", "no zero, fp32"],
)
def test_more_steps_read_no_more(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    monkeypatch.setattr(PreemptionWatch, "asks", lambda _: False)  # it reads a flag of the host
    reads = []
    for num_steps in (2, 5):
        name = f"name=reads-{abs(hash(settings))}-{num_steps}"
        steps = f"stages.align.max_steps={num_steps}"
        job = make_job(small_config(tiny_config, *LEARNING, *SELDOM, *settings, steps, name))
        with CountReads() as counted:
            run_stage(job)
        reads.append(counted.number)
    assert reads[0] == reads[1]
    assert reads[0]  # those before the first step and after the last


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_step_that_is_not_finite_is_named_later_and_nothing_after_it_is_applied(
    tiny_config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    zero_stage: int,
    precision: str,
) -> None:
    config = small_config(
        tiny_config,
        *LEARNING,
        *SELDOM,
        f"engine.zero_stage={zero_stage}",
        f"engine.precision={precision}",
        f"name=later-{broken}",
    )
    wanted = step_batches(config)[2]
    spoilt = {sample for batch in wanted for sample in batch.sample_ids}
    engines: list[TrainingEngine] = []
    weights: list[dict[str, torch.Tensor]] = []
    update = TrainingEngine.update

    def spoil(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        loss = supervised_loss(model, batch)
        if not spoilt & set(batch.sample_ids):
            return loss
        if broken == "loss":
            return loss * torch.nan
        return loss + loss.detach() * 0 * (loss - loss.detach()).sqrt()  # its slope is infinite

    def watched(engine: TrainingEngine, *arguments: Any) -> None:
        update(engine, *arguments)
        engines[:] = [engine]
        weights.append({name: value.clone() for name, value in engine.weights().items()})

    monkeypatch.setattr(llavamed.train.worker, "supervised_loss", spoil)
    monkeypatch.setattr(TrainingEngine, "update", watched)
    job = make_job(config)
    message = r"^loss=nan at step 3: " if broken == "loss" else r"^grad_norm=\S+ at step 3: "
    with pytest.raises(TrainingError, match=message) as error:
        run_stage(job)
    assert all(repr(sample) in str(error.value) for sample in spoilt)
    assert len(weights) == 6  # it was read after the last step
    for name, value in weights[1].items():
        assert all(torch.equal(value, later[name]) for later in weights[2:]), name
    assert any(not torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert locate(job.checkpoints).children() == []
    assert not locate(job.export).exists()


def test_reading_seldom_trains_and_records_the_same(tiny_config: RunConfig) -> None:
    runs = []
    for name, settings in (("often", ()), ("seldom", SELDOM)):
        job = make_job(small_config(tiny_config, *LEARNING, *settings, f"name={name}"))
        observed: list[StepRecord] = []
        history = run_stage(job, observed.extend).history
        assert observed == history
        names = ("step", "loss", "grad_norm", "grad_norm.projector", "num_tokens")
        runs.append(([[record[key] for key in names] for record in history], exported_weights(job)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


def test_tokens_of_images_are_counted_where_they_are_loaded(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tiny_config)
    data = mixture(config)
    order = order_of(config.stages[0], data, config.seed)
    loader = StageLoader(data, order, rank=0, world_size=1, packing=True)
    longer = replace(data.tiling, num_tile_tokens=data.tiling.num_tile_tokens + 1)
    monkeypatch.setattr(type(data), "tiling", longer)
    with pytest.raises(DataError, match=r"samples=\[.*\]: have \d+ tokens of images, and \d+ are"):
        next(loader.steps())
