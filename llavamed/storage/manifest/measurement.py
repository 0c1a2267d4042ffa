"""Measurements of a stage under one setting, from which other runs are planned."""

from typing import Annotated

from pydantic import Field

from llavamed.config.engine import Kernels
from llavamed.config.section import Fraction
from llavamed.config.stage import Recomputed
from llavamed.storage.manifest.typed import Facts

Bytes = Annotated[float, Field(ge=0)]


class PlannedBytes(Facts):
    """The bytes of one GPU that a plan counts, which tell one setting from another."""

    weights: Bytes
    """The weights of the model."""
    gradients: Bytes
    """The gradients of what trains."""
    optimizer: Bytes
    """The optimizer's state, with its copies of the weights."""
    activations: Bytes
    """What the forward pass keeps for the backward pass."""
    logits: Bytes
    """The logits of supervised tokens and their gradients."""
    update: Bytes = 0.0
    """What the optimizer's step adds, when activations and logits are free again."""

    @property
    def total(self) -> float:
        """The most of them at once: the step of the optimizer comes after the backward pass."""
        lasting = self.weights + self.gradients + self.optimizer
        return lasting + max(self.activations + self.logits, self.update)

    def distance(self, other: "PlannedBytes") -> float:
        """Return how far the other is: all differences, as a fraction of this total."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return sum(abs(own - its) for own, its in pairs) / self.total


class MeasuredMemory(Facts):
    """The memory of a GPU, beside what the plan says of the same setting."""

    planned: PlannedBytes
    """What the plan counts."""
    peak_bytes: Annotated[float, Field(gt=0)]
    """The most bytes that tensors took at once."""


class Measurement(Facts):
    """What a benchmark or a run has found on one GPU."""

    result: str
    """Where it is taken from, such as `gpu-step-align: ours`."""
    accelerator: str
    """Ray's name of the GPU model."""
    trains_language_model: bool
    """Whether the weights of the language model have gradients."""
    adapters: bool = False
    """Whether the language model has adapters (`stages.*.lora`)."""
    gradient_checkpointing: Recomputed
    """Which activations are recomputed in the backward pass, as `stages.*.gradient_checkpointing`
    says."""
    kernels: Kernels = Kernels()
    """The kernels that it used, as `engine.kernels` says."""
    mfu: Fraction | None = None
    """Model-FLOPs utilization, which does not count what is recomputed."""
    memory: MeasuredMemory | None = None
    """The memory it took."""
