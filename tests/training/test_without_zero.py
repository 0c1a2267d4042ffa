"""Gradients of bf16 without ZeRO add up over passes and ranks, as one pass in fp32 would."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from llavamed.train.without_zero import WithoutZero

NUM_PASSES, SIZE = 24, 1000


def gradient(rank: int, number: int) -> torch.Tensor:
    """What a rank finds in a pass."""
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(100 * rank + number))


def total(world_size: int, rank: int, *, adds: bool) -> torch.Tensor:
    """The gradient that a rank takes a step with, where DeepSpeed averages the last pass."""
    weight = torch.zeros(SIZE, dtype=torch.bfloat16, requires_grad=True)
    copy = torch.zeros(SIZE, requires_grad=True)
    frozen = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)  # no pass reaches it
    rare = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)  # the first of rank 0 does
    copies = [copy, torch.zeros(2), torch.zeros(2)]
    groups = {"fp16_groups": [[weight, frozen, rare]], "fp32_groups": [copies]}
    sums = WithoutZero(SimpleNamespace(**groups), world_size, adds=adds, takes_steps=False)
    for number in range(NUM_PASSES):
        found = gradient(rank, number).bfloat16()
        weight.grad = found if weight.grad is None else weight.grad + found
        if rank == number == 0:
            rare.grad = torch.ones(2, dtype=torch.bfloat16)
        if number < NUM_PASSES - 1:
            sums.add()
    if world_size > 1:
        dist.all_reduce(weight.grad)
        weight.grad /= world_size
    sums.complete()
    (_, summed), (_, none), (_, once) = sums.gradients()
    assert summed.dtype == none.dtype == torch.float32
    assert not none.any()
    assert once.tolist() == [1 / world_size] * 2
    return summed


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(total(2, rank, adds=True), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_and_passes_add_up_to_the_mean_over_ranks(tmp_path: Path) -> None:
    processes.spawn(run_rank, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*found)
    exact = sum(gradient(rank, n).bfloat16().double() for rank in range(2) for n in range(24)) / 2
    # Only the last pass is averaged by DeepSpeed, in bf16.
    assert (found[0] - exact).abs().max() < 0.02


@pytest.mark.parametrize("adds", [False, True])
def test_sums_in_fp32_do_not_round(adds: bool) -> None:
    exact = sum(gradient(0, number).bfloat16().double() for number in range(NUM_PASSES))
    apart = float((total(1, 0, adds=adds) - exact).abs().max())
    assert (apart < 1e-5) is adds
    assert apart < 0.3


def test_another_optimizer_is_left_alone() -> None:
    other = SimpleNamespace(step=len)
    sums = WithoutZero(other, 1, adds=True, takes_steps=True)
    sums.add()
    sums.complete()
    sums.give_back()
    assert not sums.is_used
    assert list(sums.gradients()) == []
    assert other.step is len


def test_deepspeed_gets_the_sums_back_in_its_own_format() -> None:
    weight = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    groups = {"fp16_groups": [[weight]], "fp32_groups": [[torch.zeros(3)]]}
    sums = WithoutZero(SimpleNamespace(**groups), 1, adds=True, takes_steps=False)
    for value in (1.0, 0.25):
        weight.grad = torch.full((3,), value, dtype=torch.bfloat16)
        if value == 1.0:
            sums.add()
    sums.complete()
    sums.give_back()
    assert torch.equal(weight.grad, torch.full((3,), 1.25, dtype=torch.bfloat16))
    assert next(sums.gradients())[1] is None
