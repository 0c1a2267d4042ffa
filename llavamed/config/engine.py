"""The `engine` section: how DeepSpeed spreads and computes a stage."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.section import Section

_DERIVED = {  # DeepSpeed's settings, and the fields of ours that decide them
    "train_micro_batch_size_per_gpu": "stages.*.micro_batch_size",
    "gradient_accumulation_steps": "stages.*.global_batch_size",
    "train_batch_size": "stages.*.global_batch_size",
    "gradient_clipping": "stages.*.max_grad_norm",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "optimizer": "stages.*.optimizer",
    "scheduler": "stages.*.schedule",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer": "engine.offload_optimizer",
}


class Engine(Section):
    """DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """What the workers share out: nothing, optimizer state, + gradients, + parameters."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of weights and activations; the optimizer's own copy is fp32 always."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where the optimizer state lives."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Raw DeepSpeed settings, merged last; keys that other fields set are refused."""

    @model_validator(mode="after")
    def _derived_stay_derived(self) -> Self:
        for key, value in self.deepspeed.items():
            nested = [f"{key}.{name}" for name in value] if isinstance(value, dict) else []
            for name in (key, *nested):
                if name in _DERIVED:
                    raise ValueError(f"deepspeed.{name}: is derived; set {_DERIVED[name]} instead")
        return self
