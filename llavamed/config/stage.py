"""The `stages` section: what each stage trains, on what and for how long."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from llavamed.config.evaluation import Evaluation
from llavamed.config.model import ModelPart
from llavamed.config.section import ONE, SEVERAL, Fraction, Name, Section, one_or_several

Passes = Annotated[float, Field(gt=0, le=100)]


class PartOptimizer(Section):
    """What the optimizer does otherwise for one part of the model."""

    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; none: the stage's."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Decoupled weight decay; none: the stage's."""


class Optimizer(Section):
    """AdamW."""

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` is bitsandbytes': each moment in one byte a parameter instead of four."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices; never of biases and norms."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    parts: dict[ModelPart, PartOptimizer] = Field(default_factory=dict)
    """Other settings for some parts: `{projector: {lr: 2e-3}}`; the schedule scales each alike."""

    def peak_lr(self, part: ModelPart) -> float:
        """The peak learning rate of a part."""
        own = self.parts.get(part, PartOptimizer()).lr
        return self.lr if own is None else own

    def decay(self, part: ModelPart) -> float:
        """The weight decay of a part's matrices."""
        own = self.parts.get(part, PartOptimizer()).weight_decay
        return self.weight_decay if own is None else own


class Lora(Section):
    """Low-rank adapters: two thin matrices beside each frozen one of the language model."""

    r: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """What they add is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the adapters' input. Above 0 a result depends on how samples are packed and shared out."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as `q_proj`; empty: all but the output."""
    quantize: Literal["none", "nf4"] = "none"
    """`nf4` keeps the frozen linear layers in four bits (QLoRA); what is exported has them as they
    were trained with, not as they were before."""


class Schedule(Section):
    """The learning rate over a stage."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear end at 0."""
    warmup_ratio: Fraction = 0.03
    """Part of the steps in which the rate rises linearly from 0."""


class Stage(Section):
    """One stage of the curriculum: what trains, on what, for how long."""

    name: Name
    """Overrides refer to it: `stages.align.optimizer.lr=1e-3`."""
    data: Annotated[
        Annotated[Name, Tag(ONE)]
        | Annotated[dict[Name, Passes], Tag(SEVERAL), Field(min_length=1)],
        Discriminator(one_or_several),
    ]
    """The dataset it trains on; or several, each with how often an epoch passes over it: with
    `{dialogues: 1, captions: 0.5}` an epoch takes half of the captions, the next one the rest."""
    trainable: Annotated[tuple[ModelPart, ...], Field(min_length=1)]
    """Parts of the model that learn; the others stay as they are, bit for bit."""
    lora: Lora | None = None
    """Train adapters in place of the language model's own weights. `trainable` then names
    `language_model`, for its adapters, and `projector`; an export has them merged."""
    num_train_epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the data."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many optimizer steps, within the epochs or repeating them."""
    packing: bool = True
    """Join samples to packs of `max_tokens`, each attending only to itself; else pad samples."""
    max_tokens: Annotated[int, Field(ge=16)] = 2048
    """Tokens a pack."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 1
    """Rows a worker sends through the model at once: samples, or with packing one pack."""
    global_batch_size: Annotated[int, Field(ge=1)]
    """Rows an optimizer step, over all workers: samples, or with packing packs."""
    optimizer: Optimizer
    """AdamW's settings."""
    schedule: Schedule = Schedule()
    """Learning-rate schedule."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    max_loss_ratio: Annotated[float, Field(gt=1)] | None = None
    """Stop before a step whose loss exceeds so many times the median of the 50 steps before it;
    warm-up steps are let pass. None: never."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    initial_weights: str | None = None
    """An earlier stage, or path or hub name of a whole LLaVA; none: the stage before."""
    evaluation: Evaluation | None = None
    """How the stage's model is scored once it is trained."""

    @property
    def mixture(self) -> dict[str, float]:
        """The passes of an epoch over each dataset."""
        return {self.data: 1.0} if isinstance(self.data, str) else self.data

    @property
    def num_lanes(self) -> int:
        """Forward passes an optimizer step, over all workers."""
        return self.global_batch_size // self.micro_batch_size

    @model_validator(mode="after")
    def _parts_train(self) -> Self:
        trained = ", ".join(self.trainable)
        for part in self.optimizer.parts:
            if part not in self.trainable:
                raise ValueError(
                    f"optimizer.parts.{part}: does not train in this stage, whose trainable is "
                    f"[{trained}]; remove it, or add {part} to trainable"
                )
        if self.lora is not None and not {"projector", "language_model"} <= set(self.trainable):
            raise ValueError(
                f"trainable=[{trained}]: lora trains the language model's adapters and the "
                "projector; name both, or remove lora"
            )
        return self

    @model_validator(mode="after")
    def _batch_arithmetic(self) -> Self:
        if self.packing and self.micro_batch_size != 1:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size}: with packing a forward pass takes one "
                "pack; set it to 1 and raise max_tokens instead"
            )
        if self.global_batch_size % self.micro_batch_size:
            lower = self.global_batch_size // self.micro_batch_size * self.micro_batch_size
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size="
                f"{self.micro_batch_size}; use {lower or self.micro_batch_size} or "
                f"{lower + self.micro_batch_size}"
            )
        return self
