"""Processes with one gloo group between them: a stage as Ray's workers run it, without Ray.

What each of them does is written down, for tests to compare: the samples of every step, and the
state of the optimizer, gathered from all ranks, whenever it is saved or restored.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from llavamed.data.feed.loader import Batch, StageLoader
from llavamed.train.context import Context, forget_groups
from llavamed.train.engine import TrainingEngine
from llavamed.train.worker import train_stage
from tests.support.log_messages import on_log
from tests.support.training_setup import StageJob

STATES = ("exp_avg", "exp_avg_sq")


def run_on_workers(num_workers: int, jobs: Sequence[StageJob], *, num_machines: int = 1) -> None:
    """Train stages one after another on the same processes; fails when one of them does.

    Each believes to share its machine with as many as the numbers give.
    """
    groups = [new_group() for _ in jobs]
    mp.set_forkserver_preload(["llavamed.train.worker"])  # imported once for all
    mp.start_processes(
        _work,
        (num_workers, num_workers // num_machines, list(jobs), groups),
        num_workers,
        daemon=True,
        start_method="forkserver",
    )


def samples_seen(job: StageJob) -> dict[int, list[str]]:
    """The samples of each step that the job's last run took, over all ranks, sorted."""
    seen: dict[int, list[str]] = {}
    for file in _notes(job).glob("samples-*.json"):
        for step, samples in json.loads(file.read_text()):
            seen[step] = sorted(seen.get(step, []) + samples)
    return seen


def gathered_state(job: StageJob, event: str, step: int) -> dict[str, torch.Tensor]:
    """What was `saved` or `restored` after a step: weights, moments, counters, settings."""
    return torch.load(_notes(job) / f"{event}-{step}.pt")


def warnings_of(job: StageJob) -> str:
    """What the job's workers warned of."""
    return (_notes(job) / "warnings.txt").read_text()


def new_group() -> str:
    """A file by which the processes of a group find each other; a port could be taken meanwhile."""
    return str(Path(tempfile.mkdtemp()) / "group")


def run_as_worker(rank: int, num_workers: int, job: StageJob, group: str) -> None:
    """Be one of the workers of a stage, in this process."""
    _work(rank, num_workers, num_workers, [job], [group])


def _notes(job: StageJob) -> Path:
    return Path(f"{job.export}-notes")


def _work(
    rank: int, num_workers: int, num_local: int, jobs: list[StageJob], groups: list[str]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank % num_local),
        WORLD_SIZE=str(num_workers),
        LOCAL_SIZE=str(num_local),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",  # DeepSpeed only looks whether there is one
    )
    plain = TrainingEngine.snapshot, TrainingEngine.load, StageLoader.steps
    for job, group in zip(jobs, groups, strict=True):  # groups that follow must not share a store
        dist.init_process_group("gloo", f"file://{group}", rank=rank, world_size=num_workers)
        _take_notes(_notes(job), rank, *plain)
        warn = (_notes(job) / "warnings.txt").write_text
        with on_log(warn, level=logging.WARNING):
            train_stage(job, Context(rank, num_workers, torch.device("cpu"), lambda _: None))
        dist.destroy_process_group()
        forget_groups()


def _take_notes(folder: Path, rank: int, snapshot: Any, load: Any, steps: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    samples: list[tuple[int, list[str]]] = []

    def note(engine: TrainingEngine, event: str) -> None:
        state = _gather(engine)
        if rank == 0:
            torch.save(state, folder / f"{event}-{engine.model.global_steps}.pt")

    def noted_snapshot(self: TrainingEngine) -> dict[str, Any]:
        files = snapshot(self)
        if self.model.global_steps:  # a state that is about to be loaded is no save
            note(self, "saved")
        return files

    def noted_load(self: TrainingEngine, source: Path, **how: bool) -> None:
        load(self, source, **how)
        note(self, "restored")

    def noted_steps(self: StageLoader, *, start: int | None = None) -> Iterator[list[Batch]]:
        for step, batches in enumerate(steps(self, start=start or 0), start=start or 0):
            if start is not None:  # else the first batch is read to check something by it
                samples.append((step, [name for batch in batches for name in batch.sample_ids]))
                (folder / f"samples-{rank}.json").write_text(json.dumps(samples))
            yield batches

    TrainingEngine.snapshot, TrainingEngine.load = noted_snapshot, noted_load  # type: ignore[method-assign]
    StageLoader.steps = noted_steps  # type: ignore[method-assign]


def _gather(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """Of each trained parameter the fp32 weight and both moments, whole on every rank."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    inner, found = engine.model, {}
    if engine.layout.zero_stage in (1, 2):
        # DeepSpeed links these accessors within the first group's first step, before the second's.
        inner.optimizer._hp_optimizer_states_linked = False
        inner.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in inner.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.layout.zero_stage > 0:
            found[f"{name}/fp32"] = safe_get_full_fp32_param(parameter)
            for key in STATES:
                found[f"{name}/{key}"] = safe_get_full_optimizer_state(parameter, key)
        else:
            found[f"{name}/fp32"] = parameter.detach().clone()
            of_parameter = inner.optimizer.state.get(parameter, {})
            found |= {f"{name}/{key}": of_parameter[key] for key in STATES if key in of_parameter}
    for number, group in enumerate(inner.optimizer.param_groups):
        found[f"group-{number}/weight_decay"] = torch.tensor(group["weight_decay"])
    found["counters"] = torch.tensor(sorted({int(s["step"]) for s in _counted(inner)}))
    return found


def _counted(inner: Any) -> list[Any]:
    return [state for state in inner.basic_optimizer.state.values() if "step" in state]
