"""A process killed at the sharpest moments of a save: what is left, and how the run goes on."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from llavamed.config.run import RunConfig
from llavamed.storage.location import locate
from llavamed.train.checkpoint import save as saver
from llavamed.train.checkpoint.listing import complete_checkpoints
from llavamed.train.job import StageJob
from tests.support.gloo_workers import new_group, run_as_worker, run_on_workers
from tests.support.training_setup import (
    LEARNING,
    assert_same_weights,
    exported_weights,
    make_job,
    run_stage,
    small_config,
)

FIRST, SECOND = "step-000002", "step-000004"
ENOUGH_SECONDS = 200
forkserver = multiprocessing.get_context("forkserver")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_the_second_save(owner: Any, name: str) -> None:
    """Die where the second save calls a function, told by its place among the arguments."""
    plain = getattr(owner, name)

    def call(*args: Any) -> Any:
        if any(SECOND in str(arg) for arg in args):
            die()
        return plain(*args)

    setattr(owner, name, call)


def copied() -> None:
    at_the_second_save(saver, "publish")


def half_uploaded() -> None:
    put_file, num_copied = LocalFileSystem.put_file, 0

    def call(fs: LocalFileSystem, source: str, target: str) -> None:
        nonlocal num_copied
        num_copied += SECOND in target
        if num_copied == 2:
            data = Path(source).read_bytes()
            Path(target).write_bytes(data[: len(data) // 2])
            die()
        put_file(fs, source, target)

    LocalFileSystem.put_file = call


def uploaded() -> None:
    at_the_second_save(saver, "write")


def completed() -> None:
    at_the_second_save(saver, "names_to_keep")


LEFT = {copied: 0, half_uploaded: 2, uploaded: 4, completed: 5}
"""How many files of the second save each moment leaves."""


def train_and_die(job: StageJob, moment: Callable[[], None]) -> None:
    moment()
    run_stage(job)


def work_and_die(rank: int, group: str, job: StageJob) -> None:
    if rank == 1:
        copied()
    run_as_worker(rank, 2, job, group)


@pytest.fixture(scope="module", autouse=True)
def _preload() -> None:
    multiprocessing.set_forkserver_preload(["llavamed.train.worker"])


@pytest.mark.parametrize("moment", LEFT, ids=lambda moment: moment.__name__)
def test_a_run_killed_in_a_save_goes_on_from_what_was_complete(
    tiny_config: RunConfig, undisturbed: StageJob, moment: Callable[[], None]
) -> None:
    settings = (*LEARNING, "checkpoint.num_to_keep=1", f"name=killed-{moment.__name__}")
    job = make_job(small_config(tiny_config, *settings))
    process = forkserver.Process(target=train_and_die, args=(job, moment))
    process.start()
    process.join(ENOUGH_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    place = locate(job.checkpoints)
    files = [path for path in Path(job.checkpoints, SECOND).rglob("*") if path.is_file()]
    assert len(files) == LEFT[moment]
    complete = [FIRST, SECOND] if moment is completed else [FIRST]
    assert complete_checkpoints(place) == complete
    reported: list[int] = []
    run_stage(job, lambda records: reported.append(records[-1]["step"]))
    assert reported[0] == int(complete[-1][-1])
    assert_same_weights(exported_weights(job), exported_weights(undisturbed))
    assert place.children() == ["step-000006"]


def test_a_worker_killed_in_an_upload_leaves_no_other_waiting(tiny_config: RunConfig) -> None:
    settings = (*LEARNING, "checkpoint.num_to_keep=1", "scaling.num_workers=2")
    quiet, job = (
        make_job(small_config(tiny_config, *settings, f"name=two-{name}"))
        for name in ("quiet", "killed")
    )
    group = new_group()
    workers = [
        forkserver.Process(target=work_and_die, args=(rank, group, job), daemon=True)
        for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(ENOUGH_SECONDS)
    assert workers[1].exitcode == -signal.SIGKILL
    assert workers[0].exitcode == 1
    assert complete_checkpoints(locate(job.checkpoints)) == [FIRST]
    run_on_workers(2, [quiet, job])
    assert_same_weights(exported_weights(job), exported_weights(quiet))
