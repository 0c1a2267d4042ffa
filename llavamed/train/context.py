"""Describe where a worker runs (rank, device, where to report), so that the loop needs no Ray."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from llavamed.model.cost.flops import accelerator_name
from llavamed.train.job import Workers
from llavamed.train.metrics import StepRecord


@dataclass(frozen=True)
class Context:
    """One worker of a stage, with an initialized process group."""

    rank: int
    world_size: int
    device: torch.device
    report: Callable[[list[StepRecord]], None]
    """Called by rank 0 with the new records."""
    is_preempted: Callable[[], bool] = lambda: False
    """Whether a machine of the stage is about to be taken away; every rank must call it together.
"""
    observe: Callable[[StepRecord], None] = lambda _: None
    """Called by every rank with the record of each step, as soon as the step is done."""

    def workers(self) -> Workers:
        """Describe all workers of the stage, which have equal devices."""
        if self.device.type != "cuda":
            return Workers(self.world_size, 0, None)
        name = accelerator_name(torch.cuda.get_device_name(self.device))
        return Workers(self.world_size, self.world_size, name)


PREEMPTION_CHECK_SECONDS = 1.0
"""Seconds between checks; a machine is announced at least about thirty seconds before it goes."""


class PreemptionWatch:
    """Decides when to check for preemption, which takes a collective call, so not at every step.

    The same broadcast tells every rank whether a checkpoint was requested, which only rank 0 knows.
    """

    def __init__(self, context: Context, is_requested: Callable[[], bool]) -> None:
        """Begin to watch; every rank must do so.

        Args:
            is_requested: Whether a checkpoint was requested; only rank 0's answer counts.
        """
        self._is_requested = is_requested
        self._checked_at = time.monotonic()
        self.wants_checkpoint = False
        # Use a group of its own between hosts: a flag on the GPU would wait for the GPU's work.
        on_gpu = context.device.type == "cuda"
        self._group = dist.new_group(backend="gloo") if on_gpu else None

    def asks(self) -> bool:
        """Return whether a check is due by the clock of rank 0; every rank must call it."""
        is_time = time.monotonic() - self._checked_at >= PREEMPTION_CHECK_SECONDS
        flags = torch.tensor([is_time, is_time and self._is_requested()], dtype=torch.float)
        dist.broadcast(flags, src=0, group=self._group)
        is_due, self.wants_checkpoint = map(bool, flags.tolist())
        if is_due:
            self._checked_at = time.monotonic()
        return is_due


def ray_context(report: Callable[[list[StepRecord]], None]) -> Context:
    """Return the context of a Ray Train worker, whose process group Ray has initialized."""
    import ray.train
    import ray.train.torch

    here = ray.train.get_context()
    return Context(
        rank=here.get_world_rank(),
        world_size=here.get_world_size(),
        device=ray.train.torch.get_device(),
        report=report,
        is_preempted=lambda: ray.train.get_preemption_info() is not None,
    )


@contextmanager
def local_context(report: Callable[[list[StepRecord]], None]) -> Iterator[Context]:
    """Provide the context of a single worker in this process, without Ray.

    Tests and experiments on one GPU run the same training loop this way.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    before = dict(os.environ)
    os.environ.update(environment)  # without these, DeepSpeed asks MPI
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=0, world_size=1)
    try:
        yield Context(0, 1, torch.device("cuda", 0) if on_gpu else torch.device("cpu"), report)
    finally:
        dist.destroy_process_group()
        forget_groups()
        for name in environment:  # otherwise the next library in this process would act as a worker
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def forget_groups() -> None:
    """Make DeepSpeed forget the process group, so that the next stage can run in this process.

    DeepSpeed keeps the first groups in module variables and has no call to reset them.
    """
    import deepspeed.comm.comm
    from deepspeed.utils import groups

    deepspeed.comm.comm.cdb = None
    variables: dict[str, Any] = vars(groups)
    for name, value in list(variables.items()):
        if name.startswith("_") and name.isupper():
            if isinstance(value, dict):
                value.clear()
            elif not isinstance(value, int | str | bool):
                variables[name] = None
