"""Look up the measured speed and memory of a setting, or calculate them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from llavamed.config.engine import Kernels
from llavamed.config.section import Fraction, Section
from llavamed.config.stage import Recomputed, Stage
from llavamed.errors import ConfigError, StorageError
from llavamed.model.cost.memory import Memory
from llavamed.storage.location import locate
from llavamed.storage.manifest import Measurement

_SHIPPED = Path(__file__).with_suffix(".yaml")
Positive = Annotated[float, Field(gt=0)]
SAME = 0.01
"""Two plans of memory that differ by no more than this fraction are of the same setting."""
NEAR = 0.5
"""A measurement corrects plans that differ from its own by no more than this fraction."""


class AssumedSpeed(Section):
    """Assumptions about a GPU that no benchmark has measured."""

    mfu: Fraction
    """Model-FLOPs utilization without recomputation."""
    gather_bytes_per_second: Positive
    """Bytes that a GPU sends or receives a second in the collectives of ZeRO."""


@dataclass(frozen=True)
class Setting:
    """The facts about a stage that a measurement must share to apply to it."""

    accelerator: str
    trains_language_model: bool
    gradient_checkpointing: Recomputed
    kernels: Kernels
    adapters: bool = False

    @classmethod
    def of(cls, stage: Stage, kernels: Kernels, accelerator: str) -> "Setting":
        """Return the setting of a stage on a GPU."""
        learns = "language_model" in stage.trainable and stage.lora is None
        adapted = stage.lora is not None
        return cls(accelerator, learns, stage.gradient_checkpointing, kernels, adapters=adapted)

    def is_of(self, found: Measurement) -> bool:
        """Return whether a measurement was made with it, on any GPU, with adapters or without.

        Adapters are a small part of the operations and the memory of a frozen language model.
        """
        others = {"accelerator", "adapters"}
        own = {name: value for name, value in vars(self).items() if name not in others}
        return all(getattr(found, name) == value for name, value in own.items())

    def differences(self, found: Measurement) -> str:
        """Return how the GPU and the adapters of a measurement differ, as the end of a sentence."""
        gpu = "" if found.accelerator == self.accelerator else f" from {found.accelerator}"
        which = "with" if found.adapters else "without"
        return gpu + ("" if found.adapters == self.adapters else f" {which} adapters")


@dataclass(frozen=True)
class Correction:
    """What a measurement says of the memory of a stage."""

    result: str
    """The measurement."""
    factor: float
    """What it measured, divided by what its own plan counted."""
    is_same: bool
    """Whether it was made with the very setting of the stage."""


class Speeds(Section):
    """A dated table of measurements."""

    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """Day on which it was last changed."""
    measured: tuple[Measurement, ...]
    """What benchmarks and runs have measured."""
    assumed: AssumedSpeed
    """The assumption for the rest."""

    def measured_mfu(self, setting: Setting) -> tuple[float, str] | None:
        """Return the utilization of a setting and where it is from, None if none was measured.

        For a GPU without a measurement, that of another GPU is taken, and for adapters what was
        measured without them.
        """
        found = [each for each in self.measured if setting.is_of(each) and each.mfu]
        if not found:
            return None
        best = min(
            found,
            key=lambda each: (
                each.accelerator != setting.accelerator,
                each.adapters != setting.adapters,
            ),
        )
        differences = setting.differences(best)
        origin = f"taken{differences}" if differences else "measured"
        return best.mfu or 0.0, f"{origin} ({best.result})"

    def mfu(self, setting: Setting) -> tuple[float, str | None]:
        """Return the utilization of a setting, and where it is from, None for arithmetic.

        Recomputation is one more forward pass of the language model, which costs as much as the
        gradient of its input and as that of its weights.
        """
        if (found := self.measured_mfu(setting)) is not None:
            return found
        whole = replace(setting, gradient_checkpointing=False)
        mfu, origin = self.measured_mfu(whole) or (self.assumed.mfu, None)
        passes = 3 if setting.trains_language_model else 2
        recomputed = setting.gradient_checkpointing
        again = 1 / int(recomputed) if recomputed else 0.0
        mfu *= passes / (passes + again)
        return mfu, f"{origin}, less what is recomputed" if origin else None

    def correct(self, planned: Memory, setting: Setting) -> tuple[Memory, Correction | None]:
        """Correct a plan of memory by the nearest measurement, if one is near enough.

        A measurement on another GPU counts too: tensors take the same bytes there. The workspace
        is not corrected: it stands for what tensors do not take.
        """
        own = planned.counted
        near = [
            (
                distance,
                each.adapters != setting.adapters,
                each.result,
                each.memory.peak_bytes / each.memory.planned.total,
            )
            for each in self.measured
            if each.memory is not None and setting.is_of(each)
            if (distance := each.memory.planned.distance(own)) <= NEAR
        ]
        if not near:
            return planned, None
        distance, is_other, result, factor = min(near)
        is_same = distance <= SAME and not is_other
        return planned.times(factor), Correction(result, factor, is_same=is_same)


@cache
def shipped_speeds() -> Speeds:
    """Return the table that comes with this program."""
    return Speeds.model_validate(yaml.safe_load(_SHIPPED.read_text(encoding="utf-8")))


def with_measurements(files: Sequence[str]) -> Speeds:
    """Return the measurements in some files, followed by those that come with this program.

    Args:
        files: Results of `benchmarks/gpu/step.py`, or summaries of runs.

    Raises:
        ConfigError: A file cannot be read, or holds no measurements.
    """
    shipped, found = shipped_speeds(), list[Measurement]()
    for file in files:
        try:
            body = locate(file).read_json()
            rows = [Measurement.model_validate(row) for row in body["measured"]]
            if not rows:
                raise LookupError("nothing was measured, as on a CPU")
            found += rows
        except (OSError, StorageError, LookupError, TypeError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"measured={file}: holds no measurements: {type(error).__name__}: {reason}; name a "
                "result of benchmarks/gpu/step.py, or the summary.json of a run"
            ) from error
    return shipped.model_copy(update={"measured": (*found, *shipped.measured)})
