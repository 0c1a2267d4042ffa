"""Add up gradients and take steps in bf16 without ZeRO, so that the host does not wait.

DeepSpeed's optimizer for this case adds up the gradients of a step's forward passes in bf16, reads
every sum on the host, and keeps the sums beside their fp32 copies. On an H200 with 7B weights the
host waited for it 304 times a step.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist


class WithoutZero:
    """The gradients of a model in bf16 without ZeRO, kept in fp32 beside the optimizer's copies."""

    def __init__(self, optimizer: Any, world_size: int, *, adds: bool, takes_steps: bool) -> None:
        """Take over the gradients of DeepSpeed's optimizer, and its step if `takes_steps`.

        Args:
            optimizer: DeepSpeed's optimizer. If it is not that for bf16 without ZeRO, all calls do
                nothing.
            world_size: The number of ranks.
            adds: Whether the gradients of a step's passes are added up in fp32.
            takes_steps: Whether to call AdamW directly. It then clips the gradient and skips steps
                by itself.
        """
        self.is_used = hasattr(optimizer, "fp32_groups")
        self._optimizer = optimizer
        self._world_size = world_size
        self._adds = adds
        groups = (
            zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True) if self.is_used else ()
        )
        self._pairs = [
            pair for weights, copies in groups for pair in zip(weights, copies, strict=True)
        ]
        if self.is_used and takes_steps:
            optimizer.step = self._step

    @torch.no_grad()
    def add(self) -> None:
        """End a forward pass that is not the last of its step."""
        if self._adds:
            for weight, copy in self._pairs:
                _move_gradient(weight, copy)

    @torch.no_grad()
    def complete(self) -> None:
        """Add the gradients of the last pass, which DeepSpeed has averaged over the ranks."""
        for weight, copy in self._pairs:
            if copy.grad is not None and self._world_size > 1:
                dist.all_reduce(copy.grad)
                copy.grad /= self._world_size
            _move_gradient(weight, copy)

    def gradients(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each parameter with its complete gradient."""
        yield from ((weight, copy.grad) for weight, copy in self._pairs)

    def give_back(self) -> None:
        """Let DeepSpeed take the step, from the complete gradients rounded to bf16."""
        for weight, copy in self._pairs:
            weight.grad, copy.grad = copy.grad.to(weight.dtype), None

    @torch.no_grad()
    def _step(self) -> None:
        self._optimizer.optimizer.step()
        for weight, copy in self._pairs:
            weight.copy_(copy)
            copy.grad = None


def _move_gradient(weight: torch.Tensor, copy: torch.Tensor) -> None:
    """Add a weight's gradient to that of its copy.

    A weight that a pass has not reached adds zeros, so that all ranks have sums to average.
    """
    found = torch.zeros_like(weight) if weight.grad is None else weight.grad
    copy.grad = found.float() if copy.grad is None else copy.grad.add_(found)
    weight.grad = None
