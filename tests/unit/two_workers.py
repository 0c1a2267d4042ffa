"""Two processes with one gloo group between them: a stage as Ray's workers run it, without Ray."""

import os
import socket
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training_setup import StageJob

from llavamed.train.context import Context, _forget_groups
from llavamed.train.worker import train_stage

WORLD_SIZE = 2


def run_on_two_workers(jobs: Sequence[StageJob]) -> None:
    """Train stages one after another on the same two processes; fails when one of them does."""
    ports = [_free_port() for _ in jobs]
    mp.set_forkserver_preload(["llavamed.train.worker"])  # imported once for both
    mp.start_processes(
        _work, (list(jobs), ports), WORLD_SIZE, daemon=True, start_method="forkserver"
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _work(rank: int, jobs: list[StageJob], ports: list[int]) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD_SIZE),
        LOCAL_SIZE=str(WORLD_SIZE),
        MASTER_ADDR="127.0.0.1",
    )
    for job, port in zip(jobs, ports, strict=True):  # groups that follow must not share a store
        os.environ["MASTER_PORT"] = str(port)
        dist.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE)
        train_stage(job, Context(rank, WORLD_SIZE, torch.device("cpu"), lambda _: None))
        dist.destroy_process_group()
        _forget_groups()
