"""Wrap DeepSpeed: forward, backward, step, snapshot, load, gather.

No other module trains with it; `train.context` resets the process groups that it keeps.

We create the optimizer ourselves, so that nothing is compiled at run time.
"""

import argparse
import contextlib
import io
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported

# DeepSpeed's autotuner, which we do not use, would load MLflow: a second of every worker's start.
if _HIDES_MLFLOW := "mlflow" not in sys.modules:
    sys.modules["mlflow"] = None  # type: ignore[assignment]

import deepspeed
import deepspeed.ops
import deepspeed.runtime.compiler
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from llavamed.config.engine import Engine
from llavamed.config.stage import Stage
from llavamed.errors import CheckpointError, ConfigError
from llavamed.model.freeze import part_of
from llavamed.storage.manifest import Layout
from llavamed.train.deepspeed_config import deepspeed_config
from llavamed.train.job import check_conversion
from llavamed.train.optimizer import check_other_workers, make_optimizer
from llavamed.train.without_zero import WithoutZero

if _HIDES_MLFLOW:
    del sys.modules["mlflow"]
# DeepSpeed's Muon, which we do not use, would load PyTorch's compiler: another second.
deepspeed.runtime.compiler.compile = lambda: deepspeed.runtime.compiler.dummy_decorator
# DeepSpeed would compile its shared-memory collectives for CPUs at first use, which takes minutes.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# DeepSpeed calls a collective by a deprecated name, and torch warns at every step.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")

_TAG = "state"
_ENVELOPE_SUFFIX = "model_states.pt"


class TrainingEngine:
    """The model in training on this rank."""

    def __init__(
        self, model: torch.nn.Module, *, stage: Stage, config: Engine, world_size: int
    ) -> None:
        self.accumulation = stage.forward_passes(world_size)
        self._world_size = world_size
        self._zero_stage = config.zero_stage
        self._offloads = config.offload_optimizer != "none"
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._part_of = {id(parameter): part_of(name) for name, parameter in trained}
        self._max_grad_norm = stage.max_grad_norm
        self._settings = stage.optimizer
        optimizer = make_optimizer(model, stage.optimizer)
        self._peak_lrs = [group["peak_lr"] for group in optimizer.param_groups]
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, stage, world_size),
            dist_init_required=False,
        )
        if config.zero_stage == 0:
            # DeepSpeed initializes bf16's moments by an empty step, which would count as the first.
            optimizer.state.clear()
        # DeepSpeed reads a norm on the host to clip by it. Where it leaves the gradient to AdamW as
        # it is, we let AdamW's kernel clip, and skip a step, by tensors that the host never reads.
        wrapper = self._engine.optimizer
        is_ours = stage.optimizer.name == "adamw" and not self._offloads
        adds = config.gradient_format(self.accumulation) == "fp32"
        self._bf16 = WithoutZero(wrapper, world_size, adds=adds, takes_steps=is_ours)
        self.can_refuse = is_ours and (
            wrapper is self._engine.basic_optimizer  # fp32 without ZeRO
            or hasattr(wrapper, "compute_grad_norm")  # ZeRO-1 and ZeRO-2
            or self._bf16.is_used
        )
        """Whether a step with a number that is not finite, and all steps after it, change no weight
        although the host does not wait to see that number; see `update`."""
        self._set_clipping()
        self._refused = torch.zeros((), dtype=torch.bool, device=self._engine.device)
        self._norms = torch.zeros(1, device=self._engine.device)
        self._writer = self._engine.checkpoint_engine = _MemoryWriter()
        # DeepSpeed would copy a script of its own into every checkpoint.
        self._engine._copy_recovery_script = lambda _: None

    @property
    def model(self) -> torch.nn.Module:
        """The module to call for a forward pass."""
        return self._engine

    @property
    def layout(self) -> Layout:
        """The number of ranks and the ZeRO stage, by which the state is partitioned."""
        return Layout(world_size=self._world_size, zero_stage=self._zero_stage)

    def loads(self, saved: Layout) -> bool:
        """Return whether a state of this layout can be loaded without conversion."""
        # Without ZeRO every rank holds the whole state, whatever the number of ranks.
        return saved.zero_stage == self._zero_stage and (
            self._zero_stage == 0 or saved.world_size == self._world_size
        )

    def backward(self, loss_sum: torch.Tensor, num_supervised: int) -> None:
        """Add the gradient of a loss sum, as its share of the mean over the global step.

        Args:
            loss_sum: Scalar, summed over this rank's supervised tokens of one forward pass.
            num_supervised: Supervised tokens of all ranks and forward passes of the step.
        """
        # DeepSpeed averages over ranks and over accumulated passes; undo both.
        scale = self._world_size * self.accumulation / max(1, num_supervised)
        self._engine.backward(loss_sum * scale)

    def step(self) -> None:
        """End a forward pass that is not the last one of its global step."""
        self._engine.step()
        self._bf16.add()

    def update(self, rate_factor: float, loss_sum: torch.Tensor) -> None:
        """End the last forward pass of a global step, and update the weights.

        A step whose loss or gradient is not finite changes no weight. Where `can_refuse`, neither
        does any step after it, and the host is not asked.

        Args:
            rate_factor: Factor on the peak learning rate of each part.
            loss_sum: Scalar, summed over the global step's supervised tokens of all ranks.
        """
        groups = self._engine.optimizer.param_groups
        for group, peak_lr in zip(groups, self._peak_lrs, strict=True):
            group["lr"] = peak_lr * rate_factor
        device = self._engine.device
        self._bf16.complete()
        squares = torch.zeros(0, device=device) if self._offloads else self._squares_of_parts()
        norm = squares.sum().sqrt()
        if self.can_refuse:
            self._refused |= ~(torch.isfinite(norm) & torch.isfinite(loss_sum))
            adamw = self._engine.basic_optimizer
            adamw.found_inf = self._refused.float()
            adamw.grad_scale = ((norm + 1e-6) / self._max_grad_norm).clamp(min=1.0)
        else:
            self._bf16.give_back()
        self._engine.step()
        if not self.can_refuse:
            is_applied = self._engine.was_step_applied()
            measured = self._engine.get_global_grad_norm() if is_applied else math.inf
            norm = norm if measured is None else torch.tensor(float(measured), device=device)
        self._norms = torch.cat([norm[None], squares.sqrt()])

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that `norms` covers: none with `offload_optimizer`, away from the GPU."""
        return () if self._offloads else tuple(sorted(set(self._part_of.values())))

    def norms(self) -> torch.Tensor:
        """Return the L2 norm of the last gradient, then that of each of `parts`, before clipping.

        Each rank sums the squares of the gradient that it keeps, and one small all-reduce adds them
        up, so nothing is gathered. The first is infinite if DeepSpeed has left out the step.

        Returns:
            float32 tensor of shape [1 + parts], on the engine's device.
        """
        return self._norms

    def _squares_of_parts(self) -> torch.Tensor:
        """Return the squared L2 norm of the gradient of each of `parts`; every rank must call it.

        Returns:
            float32 tensor of shape [parts], on the engine's device, over all ranks.
        """
        squares: dict[str, list[torch.Tensor]] = {part: [] for part in self.parts}
        for parameter, gradient in self._kept_gradients():
            norm = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
            squares[self._part_of[id(parameter)]].append(norm**2)
        zero = torch.zeros((), device=self._engine.device)
        sums = torch.stack([sum(squares[part], start=zero) for part in self.parts])
        if self._zero_stage > 0:  # else every rank keeps the whole gradient
            torch.distributed.all_reduce(sums)
        return sums

    def _set_clipping(self) -> None:
        """Let DeepSpeed clip the gradient, unless AdamW's kernel does; a loaded state resets it."""
        bound = 0.0 if self.can_refuse else self._max_grad_norm
        self._engine._config.gradient_clipping = bound
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "clip_grad"):
            optimizer.clip_grad = bound
        if self.can_refuse and hasattr(optimizer, "compute_grad_norm"):
            optimizer.compute_grad_norm = optimizer.check_grad_overflow = False

    def _kept_gradients(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each parameter with this rank's part of its reduced gradient, before a step ends.

        DeepSpeed has no call for this, so it reads the lists from which DeepSpeed computes its
        norm.
        """
        optimizer = self._engine.optimizer
        if self._bf16.is_used:
            yield from self._bf16.gradients()
        elif self._zero_stage == 0:
            parameters = self.model.parameters()
            yield from ((each, each.grad) for each in parameters if each.grad is not None)
        else:
            groups = (
                optimizer.fp16_groups if self._zero_stage == 3 else optimizer.params_in_partition
            )
            for number, gradients in optimizer.averaged_gradients.items():
                real = [each for each in gradients or () if not hasattr(each, "_zero_padding")]
                yield from zip(groups[number], real, strict=False)

    def snapshot(self) -> dict[str, Any]:
        """Copy this rank's part of the state to host memory; every rank must call it.

        Frozen weights are left out. No file is written, so that a thread can write while training
        continues.

        Returns:
            The states to write with `torch.save`, by path, for `load`. The next call reuses their
                memory, so they must be written before.
        """
        self._engine.save_checkpoint(
            ".", tag=_TAG, save_latest=False, exclude_frozen_parameters=True
        )
        return self._writer.take()

    def load(self, folder: Path, *, is_universal: bool = False) -> None:
        """Load the state; every rank must call it.

        Args:
            folder: What the same number of ranks has saved, or the result of `to_universal`.
            is_universal: Whether it is the result of `to_universal`.

        Raises:
            CheckpointError: The folder holds no state of this shape.
        """
        if not (folder / _TAG).is_dir():  # DeepSpeed would raise an AssertionError
            raise CheckpointError(f"{folder}: holds no state of this run; delete the checkpoint")
        groups = self._engine.optimizer.param_groups
        settings = [{key: group[key] for key in group if key != "params"} for group in groups]
        self._engine._config.load_universal_checkpoint = is_universal
        if hasattr(self._engine.optimizer, "compute_grad_norm"):
            self._engine.optimizer.compute_grad_norm = True  # or it refuses states others clipped
        path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
        self._engine._config.load_universal_checkpoint = False
        if path is None:
            raise CheckpointError(f"{folder}: holds no state of this run; delete the checkpoint")
        self._set_clipping()
        # Keep ours: ZeRO-3 gives every group the settings of the first one, so biases and norms
        # would decay, and a state of another version may name another kernel.
        for group, own in zip(groups, settings, strict=True):
            group.update(own)
        for parameter, state in self._engine.basic_optimizer.state.items():
            if torch.is_tensor(count := state.get("step")):
                # AdamW's kernel wants the count where the weights are, and a tensor for each, where
                # ZeRO-3 loads one for all groups, to which each would add.
                state["step"] = count.to(parameter.device, copy=True)

    def envelope(self, step: int) -> dict[str, Any]:
        """Return the states that DeepSpeed reads before the tensors; every rank must call it.

        They depend on the ZeRO stage that loads, unlike the tensors, which `to_universal` joins.

        Args:
            step: The number of steps that the saved state has taken.
        """
        states = {
            path: state
            for path, state in self.snapshot().items()
            if path.endswith(_ENVELOPE_SUFFIX)
        }
        for state in states.values():
            if "global_steps" in state:
                state["global_steps"] = step
        return states

    def check_universal(self, saved: Layout) -> None:
        """Check that this rank can load a state after conversion, before it is converted.

        Args:
            saved: The layout of the saved state.

        Raises:
            ConfigError: DeepSpeed cannot convert between the ZeRO stages; there are more workers
                than it can distribute the weights to; or the moments have eight bits, in blocks
                that depend on the number of workers.
        """
        check_conversion(saved.zero_stage, self._zero_stage)
        check_other_workers(self._settings, self._world_size)
        if self._zero_stage not in (1, 2):
            return
        for group in self._engine.optimizer.bit16_groups:
            if all(parameter._hp_mapping is None for parameter in group):
                total = sum(parameter.numel() for parameter in group)
                raise ConfigError(
                    f"scaling.num_workers={self._world_size}: leaves a worker none of {total} "
                    "weights, and DeepSpeed then loads no checkpoint of another number of workers; "
                    "use fewer, or as many as saved it"
                )

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all weights on the CPU on rank 0, {} elsewhere; every rank must call it."""
        if self._zero_stage == 3:
            return self._engine._zero3_consolidated_16bit_state_dict() or {}
        if torch.distributed.get_rank() != 0:
            return {}
        return {name: value.cpu() for name, value in self._engine.module.state_dict().items()}

    def close(self) -> None:
        """Free memory and hooks, so that this process can create another engine."""
        self._writer.close()
        self._engine.destroy()
        del self._engine, self._bf16  # whoever still holds this one holds no weights


class _MemoryWriter(TorchCheckpointEngine):
    """Keeps in host memory what DeepSpeed's own writer writes to files.

    Each state reuses the memory of the last one: the kernel zeroes new memory page by page, which
    takes longer than the copy. With a GPU the memory is pinned, so that the GPU copies
    asynchronously.
    """

    def __init__(self) -> None:
        super().__init__()
        on_gpu = torch.cuda.is_available()
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu,
                use_non_blocking_copy=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,
            )
        )
        self._held: dict[str, Any] = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: no folder is needed."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Keep a state under its path."""
        self._held[path] = self._stager.stage(state_dict)

    def take(self) -> dict[str, Any]:
        """Return what was saved since the last call, by path."""
        held, self._held = self._held, {}
        return held

    def close(self) -> None:
        """Free the memory."""
        self._stager.close()


def to_universal(folder: Path, target: Path, envelope: dict[str, Any]) -> None:
    """Convert the state that all ranks saved to one that any number of ranks loads.

    One process does this. The values do not change: partitions are joined, and each parameter gets
    its own files. It takes seconds, or minutes for large models. Meanwhile `target` grows to twice
    the size of the state.

    Args:
        folder: The state that all ranks saved.
        envelope: `TrainingEngine.envelope` of rank 0 of the engine that will load it.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(folder / _TAG),
                output_folder=str(target / _TAG),
                num_extract_workers=1,  # in this process, which may hold a GPU and must not fork
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,  # no tensor is split; only Megatron writes this state
            )
        )
    for file in (target / _TAG).glob(f"*{_ENVELOPE_SUFFIX}"):
        file.unlink()
    for path, state in envelope.items():
        torch.save(state, target / path)
