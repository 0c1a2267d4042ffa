"""Settings that DeepSpeed cannot bring together are refused, with their cure."""

from pathlib import Path

import pytest

from llavamed.config.load import load_config
from llavamed.errors import ConfigError

DEMO = Path(__file__).parents[2] / "ray_jobs" / "configs" / "demo.yaml"
LORA = "stages.instruct.lora={quantize: nf4}"
ADDED = "engine.deepspeed.data_types.grad_accum_dtype=bf16"
EIGHT_BIT = "stages.instruct.optimizer.name=adamw_8bit"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            (LORA, "engine.zero_stage=3"),
            "stages.instruct.lora.quantize=nf4: engine.zero_stage=3 cannot partition weights of "
            "four bits, whose scales it does not know; set zero_stage to 2, or quantize to none",
        ),
        (
            (EIGHT_BIT, "engine.zero_stage=3"),
            "stages.instruct.optimizer.name=adamw_8bit: its state stays whole and on the GPU, but "
            "engine.zero_stage=3 and engine.offload_optimizer=none; set them to 2 or less and "
            "none, or use adamw",
        ),
        (
            (EIGHT_BIT, "engine.offload_optimizer=cpu"),
            "stages.instruct.optimizer.name=adamw_8bit: its state stays whole and on the GPU, but "
            "engine.zero_stage=2 and engine.offload_optimizer=cpu; set them to 2 or less and "
            "none, or use adamw",
        ),
        (
            (EIGHT_BIT, "scaling.num_workers=[1, 2]"),
            "stages.instruct.optimizer.name=adamw_8bit: its state cannot be distributed again when "
            "scaling.num_workers, which is a range, changes with engine.zero_stage=2; set one "
            "number of workers, zero_stage to 0, or use adamw",
        ),
        (
            (ADDED, "engine.zero_stage=1"),
            "engine.deepspeed.data_types.grad_accum_dtype=bf16: engine.zero_stage=1 adds up "
            "gradients in the format of engine.precision=fp32; set zero_stage to 2 or 3, or remove "
            "it",
        ),
        (
            (ADDED.replace("bf16", "fp16"), "engine.zero_stage=0", "engine.precision=bf16"),
            "engine.deepspeed.data_types.grad_accum_dtype=fp16: engine.zero_stage=0 adds up "
            "gradients in fp32 or in the format of engine.precision=bf16; set zero_stage to 2 or "
            "3, or remove it",
        ),
    ],
    ids=[
        "four bits",
        "eight bits",
        "eight bits elsewhere",
        "eight bits on a range of workers",
        "sums of gradients",
        "sums of gradients without ZeRO",
    ],
)
def test_what_deepspeed_cannot_share_out_or_move(overrides, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, overrides)
    assert str(caught.value) == sentence
    for override in overrides:
        load_config(DEMO, [override])  # each alone is right
