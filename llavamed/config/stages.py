"""The stages' part of the tree: what trains, on what, for how long, and how it is scored."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from llavamed.config.datasets import ONE, SEVERAL, Fraction, Name, Section, one_or_several

Passes = Annotated[float, Field(gt=0, le=100)]
ModelPart = Literal["vision_tower", "projector", "language_model"]


class Optimizer(Section):
    """AdamW."""

    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices; never of biases and norms."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""


class Schedule(Section):
    """The learning rate over a stage."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear end at 0."""
    warmup_ratio: Fraction = 0.03
    """Part of the steps in which the rate rises linearly from 0."""


class Evaluation(Section):
    """Answering test questions with the stage's model and by two controls that must do worse."""

    data: str
    """The dataset of questions."""
    majority_from: str | None = None
    """The dataset whose most frequent closed answer is the majority control; none: `data`."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens an answer, greedily."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Questions answered at once."""
    num_cards: Annotated[int, Field(ge=0)] = 60
    """Samples shown on the HTML page."""


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
