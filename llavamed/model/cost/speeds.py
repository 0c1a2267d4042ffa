"""The speed of GPUs by setting: measured by benchmarks, and calculated for the rest."""

from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from llavamed.config.engine import Kernels
from llavamed.config.section import Fraction, Section
from llavamed.config.stage import Recomputed

_SHIPPED = Path(__file__).with_suffix(".yaml")
Positive = Annotated[float, Field(gt=0)]


class MeasuredSpeed(Section):
    """What one benchmark has found on one GPU."""

    result: str
    """The result it is taken from, such as `gpu-step.json`."""
    accelerator: str
    """Ray's name of the GPU model."""
    trains_language_model: bool
    """Whether the weights of the language model have gradients."""
    gradient_checkpointing: Recomputed
    """Which activations are recomputed in the backward pass, as `stages.*.gradient_checkpointing`
    says."""
    kernels: Kernels = Kernels()
    """The kernels that it used, as `engine.kernels` says."""
    mfu: Fraction
    """Model-FLOPs utilization, which does not count what is recomputed."""


class AssumedSpeed(Section):
    """What is assumed of a GPU that no benchmark has measured."""

    mfu: Fraction
    """Model-FLOPs utilization without recomputation."""
    gather_bytes_per_second: Positive
    """Bytes that a GPU sends or receives a second in the collectives of ZeRO."""


class Speeds(Section):
    """A dated table of speeds."""

    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """Day on which it was last changed."""
    measured: tuple[MeasuredSpeed, ...]
    """What benchmarks have measured."""
    assumed: AssumedSpeed
    """The assumption for the rest."""

    def mfu(
        self,
        accelerator: str,
        *,
        trains_language_model: bool,
        gradient_checkpointing: Recomputed,
        kernels: Kernels,
    ) -> tuple[float, str | None]:
        """Return the utilization of a setting, and the result that says so, None for arithmetic.

        Recomputation is one more forward pass of the language model, which costs as much as the
        gradient of its input and as that of its weights.
        """
        wanted = (accelerator, trains_language_model, gradient_checkpointing, kernels)
        for each in self.measured:
            if wanted == (
                each.accelerator,
                each.trains_language_model,
                each.gradient_checkpointing,
                each.kernels,
            ):
                return each.mfu, each.result
        passes = 3 if trains_language_model else 2
        again = 1 / int(gradient_checkpointing) if gradient_checkpointing else 0.0
        return self.assumed.mfu * (passes / (passes + again)), None


@cache
def shipped_speeds() -> Speeds:
    """Return the table that comes with this program."""
    return Speeds.model_validate(yaml.safe_load(_SHIPPED.read_text(encoding="utf-8")))
