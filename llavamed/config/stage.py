"""The `stages` section: what each stage trains, on which data and for how long."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from llavamed.config.engine import StageEngine
from llavamed.config.evaluation import Evaluation
from llavamed.config.model import ModelPart
from llavamed.config.section import (
    NUMBER,
    ONE,
    SEVERAL,
    SWITCH,
    Fraction,
    Name,
    Section,
    one_or_several,
    switch_or_number,
)

Passes = Annotated[float, Field(gt=0, le=100)]
LearningRate = Annotated[float, Field(gt=0)]
WeightDecay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Recomputed = Annotated[
    Annotated[bool, Tag(SWITCH)] | Annotated[int, Field(ge=2, le=1000), Tag(NUMBER)],
    Discriminator(switch_or_number),
]
"""Layers whose activations are recomputed: all, none, or every Nth."""

DEFAULT_MAX_TOKENS = 2048


class PartOptimizer(Section):
    """Optimizer settings of one part of the model, where they differ from the stage's."""

    lr: LearningRate | None = None
    """Peak learning rate. By default the stage's."""
    weight_decay: WeightDecay | None = None
    """Decoupled weight decay. By default the stage's."""


class Optimizer(Section):
    """AdamW."""

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """Implementation: `adamw` is PyTorch's; `adamw_8bit` is that of bitsandbytes, which keeps each
    moment in one byte per parameter instead of four."""
    lr: LearningRate
    """Peak learning rate."""
    weight_decay: WeightDecay = 0.0
    """Decoupled weight decay of matrices. Biases and norms never decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment, both less than 1."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Term added to the denominator for numerical stability."""
    parts: dict[ModelPart, PartOptimizer] = Field(default_factory=dict)
    """Settings for single parts of the model, e.g. `{projector: {lr: 2e-3}}`. The schedule scales
    all learning rates alike."""

    def peak_lr(self, part: ModelPart) -> float:
        """Return the peak learning rate of a part."""
        own = self.parts.get(part, PartOptimizer()).lr
        return self.lr if own is None else own

    def decay(self, part: ModelPart) -> float:
        """Return the weight decay of a part's matrices."""
        own = self.parts.get(part, PartOptimizer()).weight_decay
        return self.weight_decay if own is None else own


class Lora(Section):
    """Low-rank adapters: two small matrices next to each frozen matrix of the language model."""

    r: Annotated[int, Field(ge=1, le=65536)] = 16
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the adapters: their output is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of the adapters' input. Above 0, results depend on how samples are
    packed, padded (by `engine.kernels.compile`) and distributed over workers."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as `q_proj`. By default all but the output
    layer."""
    quantize: Literal["none", "nf4"] = "none"
    """Storage of the frozen linear layers: unchanged, or in four bits (`nf4`, QLoRA). An export
    contains the weights used in training, i.e. after rounding to four bits."""


class Schedule(Section):
    """The learning rate over a stage."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up. Cosine and linear end at 0."""
    warmup_ratio: Fraction = 0.03
    """Fraction of the steps during which the learning rate rises linearly from 0."""


class Stage(Section):
    """One stage of the curriculum: what it trains, on which data, for how long."""

    name: Name
    """Name of the stage, used in overrides such as `stages.align.optimizer.lr=1e-3`."""
    data: Annotated[
        Annotated[Name, Tag(ONE)]
        | Annotated[dict[Name, Passes], Tag(SEVERAL), Field(min_length=1)],
        Discriminator(one_or_several),
    ]
    """Dataset to train on; or several, each with its number of passes per epoch. With
    `{dialogues: 1, captions: 0.5}` an epoch takes half of the captions and the next the rest."""
    trainable: Annotated[tuple[ModelPart, ...], Field(min_length=1)]
    """Parts of the model that are trained. The other parts do not change by a single bit."""
    lora: Lora | None = None
    """Adapters to train instead of the language model's own weights. `trainable` then names
    `language_model`, for its adapters, and `projector`. An export has the adapters merged."""
    num_train_epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of passes over the data."""
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Exact number of optimizer steps. Epochs are cut short or repeated to reach it."""
    packing: bool = True
    """Join samples into packs, in which each sample attends only to itself. Without packing, the
    samples of a forward pass are padded to the longest of them."""
    max_tokens: Annotated[int, Field(ge=16, le=2**24)] | None = None
    """Number of tokens per pack. By default 2048, as `data.max_length`. Refused without `packing`,
    because it then has no effect."""
    micro_batch_size: BatchSize = 1
    """Number of samples per worker and forward pass. With packing it is 1 pack."""
    global_batch_size: BatchSize
    """Number of samples per optimizer step over all workers; with packing, number of packs."""
    optimizer: Optimizer
    """Settings of AdamW."""
    schedule: Schedule = Schedule()
    """Learning-rate schedule."""
    engine: StageEngine = StageEngine()
    """Settings of the run's `engine` that differ in this stage."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Maximum norm of the gradient, to which it is clipped."""
    max_loss_ratio: Annotated[float, Field(gt=1)] | None = None
    """Stop before a step whose loss exceeds this multiple of the median of the 50 steps before it,
    except during warm-up. By default there is no such limit."""
    gradient_checkpointing: Recomputed = False
    """Recompute activations in the backward pass: less memory for about a third more time. A number
    N does so for every Nth layer only, so that 2 saves and costs about half as much."""
    initial_weights: str | None = None
    """Weights to start from: an earlier stage, or the path, URI or hub name of a whole LLaVA. By
    default those of the previous stage."""
    evaluation: Evaluation | None = None
    """How the trained model is scored. By default it is not."""

    @property
    def mixture(self) -> dict[str, float]:
        """The number of passes per epoch over each dataset."""
        return {self.data: 1.0} if isinstance(self.data, str) else self.data

    @property
    def num_lanes(self) -> int:
        """Forward passes per optimizer step, over all workers."""
        return self.global_batch_size // self.micro_batch_size

    def forward_passes(self, num_workers: int) -> int:
        """Return the forward passes of each worker in a step, of which some may hold no sample."""
        return -(-self.num_lanes // num_workers)

    @property
    def pack_tokens(self) -> int:
        """Tokens that a pack holds; meaningless without packing."""
        return self.max_tokens or DEFAULT_MAX_TOKENS

    def recomputed_layers(self, number: int) -> int:
        """Return how many of this number of layers are recomputed in the backward pass."""
        return -(-number // int(self.gradient_checkpointing)) if self.gradient_checkpointing else 0

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
        if not self.packing and self.max_tokens is not None:
            raise ValueError(
                f"max_tokens={self.max_tokens}: has no effect with packing=false, where a forward "
                f"pass holds micro_batch_size={self.micro_batch_size} samples; remove it or set it "
                "to null, or set packing to true"
            )
        if self.global_batch_size % self.micro_batch_size:
            lower = self.global_batch_size // self.micro_batch_size * self.micro_batch_size
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size="
                f"{self.micro_batch_size}; use {lower or self.micro_batch_size} or "
                f"{lower + self.micro_batch_size}"
            )
        return self
