"""The `engine` section: how DeepSpeed distributes and computes a stage."""

from typing import Literal

from llavamed.config.deepspeed import DeepSpeed
from llavamed.config.section import Section, added_later

Precision = Literal["bf16", "fp32"]
"""Number format of weights and activations."""
ZeroStage = Literal[0, 1, 2, 3]
OffloadDevice = Literal["none", "cpu"]
FEW_PASSES = 8
"""The sum of the gradients of so many passes in bf16 is measured to be off by no more than 0.3 %,
about the rounding of one of them; that of 64 is off by 1.8 %, of 256 by 7 %."""


class Kernels(Section):
    """Faster kernels for the language model in training. They change numbers by no more than
    rounding, so a run may go on with others; but with dropout, `compile` draws other masks.
    `compile` and `varlen` together were fastest on an H200: 1.4 times as fast as without. They are
    off because they need a GPU; `llavamed plan --auto` switches them on for packs.
    """

    compile: bool = False
    """Compile each decoder layer with `torch.compile`, all but its attention. Packs are padded to
    `max_tokens`, so that they all have one shape. Compiling lengthens the first steps:
    on an H200 by less than 20 seconds."""
    liger: bool = False
    """Use Liger's kernels for norms and feed-forward layers, which keep fewer activations. They
    need a GPU and the extra `liger`."""
    varlen: bool = False
    """Attend within all samples of a pack in one call of PyTorch's kernel for samples of various
    lengths, instead of one call for each. It needs a GPU and bf16."""


class Engine(Section):
    """How DeepSpeed distributes and computes every stage, unless the stage overrides it."""

    zero_stage: ZeroStage = 2
    """What is partitioned among the workers: nothing (0), the optimizer state (1), the gradients as
    well (2), or the parameters as well (3). 2 costs no more communication than 0; 3 does."""
    precision: Precision = "bf16"
    """Number format of weights and activations. The optimizer always keeps a copy in fp32."""
    offload_optimizer: OffloadDevice = "none"
    """Where the optimizer state is kept: on the GPU (`none`) or in host memory (`cpu`)."""
    deepspeed: DeepSpeed = DeepSpeed()
    """Further settings of DeepSpeed, by its own names. Settings that other fields decide are
    refused."""
    kernels: Kernels = added_later(Kernels())
    """Faster kernels for the language model."""

    def gradient_format(self, num_passes: int) -> Literal["fp32", "fp16", "bf16"]:
        """Return the number format in which the gradients of the passes of a step are added up.

        A bf16 number has 8 significant bits, so that a long sum loses what it adds last. With more
        than `FEW_PASSES` the format is fp32, except with ZeRO-1, unless `deepspeed` says otherwise.

        Args:
            num_passes: Forward passes of a worker in a step.
        """
        types = self.deepspeed.data_types
        if types is not None and types.grad_accum_dtype is not None:
            return types.grad_accum_dtype
        is_long = num_passes > FEW_PASSES
        return "fp32" if is_long and self.zero_stage != 1 else self.precision


class StageEngine(Section):
    """Fields of the run's `engine` that one stage overrides."""

    zero_stage: ZeroStage | None = None
    """The stage's own `engine.zero_stage`, e.g. 2 for alignment and 3 for instruction tuning."""
    precision: Precision | None = None
    """The stage's own `engine.precision`."""
    offload_optimizer: OffloadDevice | None = None
    """The stage's own `engine.offload_optimizer`."""
    deepspeed: DeepSpeed | None = None
    """The stage's own `engine.deepspeed`, which replaces the run's completely."""
    kernels: Kernels | None = added_later(None)
    """The stage's own `engine.kernels`, which replaces the run's completely."""
