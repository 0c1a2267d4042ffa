"""Derive DeepSpeed's configuration of a stage from ours and the number of workers.

`engine.deepspeed` is merged last and may not change derived fields.
"""

from typing import Any

from llavamed.config.engine import Engine
from llavamed.config.stage import Stage


def deepspeed_config(config: Engine, stage: Stage, world_size: int) -> dict[str, Any]:
    """Return the whole DeepSpeed configuration of a stage."""
    accumulation = stage.forward_passes(world_size)
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": config.offload_optimizer}
    if config.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": stage.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": stage.micro_batch_size * accumulation * world_size,
        "gradient_clipping": stage.max_grad_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed would compile its own at run time
        "steps_per_print": 10**9,
    }
    gradient = config.gradient_format(accumulation)
    if gradient != config.precision:
        derived["data_types"] = {"grad_accum_dtype": gradient}
    extra = config.deepspeed.model_dump(mode="json")
    zero |= extra.pop("zero_optimization", {})
    settings = derived | extra
    if config.zero_stage == 0 and gradient == "fp32":
        settings.pop("data_types", None)  # we add them up; see `without_zero`
    return settings
