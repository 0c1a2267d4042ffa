"""Stop a job, now or after a checkpoint that it is asked for, and say what that costs."""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from llavamed.cluster.kinds import RAY_JOB
from llavamed.cluster.logs import ask_job
from llavamed.cluster.status import ENDED, JobState, read_job, read_progress
from llavamed.errors import ClusterError, LlavaMedError, StorageError, UnreachableError
from llavamed.storage.checkpoint_request import ask_for_checkpoint, take_back_request
from llavamed.storage.location import locate
from llavamed.train.checkpoint.listing import newest_checkpoint

if TYPE_CHECKING:
    from llavamed.cluster.client import Cluster

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """How far a run is, and how much of it is saved."""

    stage: str | None
    """The stage in training; None if no stage trains, and then no step can be lost."""
    step: int = 0
    """Optimizer steps that it has taken."""
    saved: int = 0
    """Optimizer steps that its newest complete checkpoint holds."""


def describe_loss(found: Standing | str) -> str:
    """Return a sentence on what a stop costs.

    Args:
        found: How much of the run is saved, or why that is not known.
    """
    if isinstance(found, str):
        return (
            "the next job repeats the steps after the last checkpoint; how many is not known: "
            f"{found}"
        )
    if found.stage is None:
        return "no stage is in training, so no step is lost"
    return (
        f"{found.stage} has taken {found.step:,} steps and its last checkpoint holds "
        f"{found.saved:,}; the next job repeats {max(0, found.step - found.saved):,}"
    )


def read_standing(job: JobState) -> Standing | str:
    """Return how much of a job's run is saved, or why that cannot be read from here."""
    progress = read_progress(job)
    found = progress.found
    if found is None or job.directory is None:
        return progress.why_not
    if datetime.fromisoformat(found.updated_at) < job.created:
        return f"its progress is of an earlier job, until {found.updated_at}"
    if found.task != "train" or found.stage is None:
        return Standing(None)
    folder = locate(job.directory) / "stages" / found.stage / "checkpoints"
    try:
        checkpoint = newest_checkpoint(folder.without_retries())
    except LlavaMedError as error:
        return str(error)
    return Standing(found.stage, found.step, checkpoint.step if checkpoint else 0)


def wait_for_checkpoint(cluster: "Cluster", name: str, *, seconds: float) -> None:
    """Ask a run for a checkpoint, and wait until it is complete, or there is nothing to save.

    If the run cannot be asked, wait for its next checkpoint.

    Args:
        seconds: Seconds between two checks.

    Raises:
        ClusterError: The job is not running, or its checkpoints cannot be read from here.
    """
    job = read_running(cluster, name)
    before = read_standing(job)
    if isinstance(before, str):
        raise ClusterError(
            f"RayJob={name}: its checkpoints cannot be read from here: {before}; stop it without "
            "--after-checkpoint"
        )
    if before.stage is None:
        return
    assert job.directory is not None, "its progress was read there"
    folder = locate(job.directory).without_retries()
    try:
        ask_for_checkpoint(folder)
    except StorageError as error:
        logger.warning(
            "%s: cannot be asked for a checkpoint (%s); its next is waited for", name, error
        )
    try:
        while not _is_saved(read_standing(job), before):
            time.sleep(seconds)
            with suppress(UnreachableError):
                job = read_running(cluster, name)
    finally:
        with suppress(StorageError):
            take_back_request(folder)


def _is_saved(now: Standing | str, before: Standing) -> bool:
    """Return whether a checkpoint holds what was done, or the stage is no longer in training."""
    if isinstance(now, str):
        return False
    is_new = before.saved < now.saved and before.step <= now.saved
    return now.stage is None or now.stage != before.stage or is_new


def read_running(cluster: "Cluster", name: str) -> JobState:
    """Return the state of a job. Raises: ClusterError: There is none, or it is not running."""
    job = read_job(cluster.get(RAY_JOB, name), cluster.options)
    if job.state != "running":
        hint = "" if job.state in ENDED else f"; `llavamed cluster delete {job.target}` deletes it"
        raise ClusterError(f"RayJob={name}: is {job.state}, so there is nothing to stop{hint}")
    return job


def stop(cluster: "Cluster", name: str) -> tuple[JobState, Standing | str]:
    """Ask a job to stop. Its run is interrupted, and can resume from its last checkpoint.

    Returns:
        The job, and how much of its run was saved at this moment, or why that is not known.

    Raises:
        ClusterError: There is no such job, it is not running, or its head does not answer.
    """
    job = read_running(cluster, name)
    standing = read_standing(job)
    ask_job(cluster, job, "POST", f"/api/jobs/{job.job_id}/stop")
    return job, standing
