"""On a GPU the host waits for nothing inside a step."""

from typing import Any

import pytest
import torch

from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import StageLoader
from llavamed.model.attention import attend_per_sample
from llavamed.model.freeze import freeze
from llavamed.model.llava import build_model
from llavamed.model.loss import supervised_loss
from llavamed.model.placement import trust_image_tokens
from llavamed.train.context import local_context
from llavamed.train.engine import TrainingEngine
from llavamed.train.job import order_of
from tests.support.training_setup import LEARNING, mixture, processor_of, small_config


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("zero_stage", [0, 2])
@pytest.mark.parametrize("varlen", [False, True])
def test_steps_pass_where_every_wait_of_the_host_is_an_error(
    tiny_config: RunConfig, varlen: bool, zero_stage: int
) -> None:
    config = small_config(
        tiny_config,
        *LEARNING,
        "engine.precision=bf16",
        f"engine.zero_stage={zero_stage}",
        "stages.align.global_batch_size=1",
        "scaling.num_workers=1",
    )
    stage, data = config.stages[0], mixture(config)
    model: Any = build_model(config.model, processor_of(config), seed=0, precision="bf16")
    freeze(model, stage.trainable)
    attend_per_sample(model, varlen=varlen)
    trust_image_tokens(model, model.config.image_token_id)
    order = order_of(stage, data, config.seed)
    loader = StageLoader(data, order, rank=0, world_size=1, packing=True, pins=True)
    with local_context(lambda _: None) as context:
        engine = TrainingEngine(
            model.train().to(context.device), stage=stage, config=config.engine, world_size=1
        )
        try:
            for number, (batch,) in enumerate(loader.steps()):
                loss = supervised_loss(engine.model, batch.to(context.device))
                engine.backward(loss, 100)
                engine.update(1.0, loss.detach())
                if number == 1:  # the first ones allocate
                    torch.cuda.set_sync_debug_mode("error")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        engine.close()
