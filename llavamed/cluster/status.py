"""The state of a submitted run, from its RayJob and its progress file, not from its log."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from llavamed.cluster.kinds import Named, Object, is_being_deleted, name_of
from llavamed.cluster.rayjob import DIRECTORY, RUN
from llavamed.errors import LlavaMedError
from llavamed.storage.location import locate
from llavamed.storage.run_progress import RunProgress, find_progress

State = Literal["pending", "running", "suspended", "succeeded", "stopped", "failed"]
ENDED: frozenset[State] = frozenset({"succeeded", "stopped", "failed"})
SILENCE_SECONDS = 60.0
"""Age of its progress after which a running job is shown as silent."""


@dataclass(frozen=True)
class JobState(Named):
    """What KubeRay says about a job."""

    run: str
    directory: str | None
    state: State
    reason: str
    """Reason for the state, if KubeRay gives one."""
    cluster: str
    """Name of its RayCluster; empty while there is none."""
    job_id: str
    """Identifier on the Ray cluster; empty until it is submitted."""
    created: datetime
    attempts: int
    """Number of clusters that were created for it."""
    keeps_cluster: bool = False
    """Whether its cluster stays when it is stopped: KubeRay has rules for other ends only."""
    is_being_deleted: bool = False
    """Whether it is being deleted."""

    @property
    def shown_state(self) -> str:
        """Its state in words."""
        return f"{self.state}, being deleted" if self.is_being_deleted else self.state


def read_job(job: Object, options: str = "") -> JobState:
    """Read the state of a RayJob; `options` lead another command to it."""
    metadata, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    annotations = metadata.get("annotations") or {}
    reason = ": ".join(str(status[key]).strip() for key in ("reason", "message") if status.get(key))
    return JobState(
        name=name_of(job),
        run=annotations.get(RUN, name_of(job)),
        directory=annotations.get(DIRECTORY),
        state=_state(status),
        reason=reason,
        cluster=status.get("rayClusterName", ""),
        job_id=status.get("jobId", ""),
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        attempts=1 + int(status.get("failed") or 0),
        keeps_cluster="rayClusterSpec" in spec and not spec.get("shutdownAfterJobFinishes"),
        is_being_deleted=is_being_deleted(job),
        options=options,
    )


def _state(status: Object) -> State:
    """Return the state of a job. The deployment's status decides: a job may be lost with its
    head."""
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment in ("Failed", "ValidationFailed"):
        return "failed"
    if deployment in ("Suspended", "Suspending"):
        return "suspended"
    if deployment == "Complete":
        ends: dict[str, State] = {"STOPPED": "stopped", "FAILED": "failed"}
        return ends.get(job, "succeeded")
    return "running" if deployment == "Running" and job == "RUNNING" else "pending"


@dataclass(frozen=True)
class ProgressReport:
    """The progress of a run, or why it is not known."""

    found: RunProgress | None
    why_not: str = ""


def read_progress(job: JobState) -> ProgressReport:
    """Read the progress of a job's run from storage, once and without retries."""
    if not job.directory:
        return ProgressReport(None, "the job was not submitted with `llavamed cluster submit`")
    try:
        place = locate(job.directory)
        if place.is_local:
            return ProgressReport(
                None, f"{job.directory} is a folder of the cluster, not of this machine"
            )
        found = find_progress(place.without_retries())
    except LlavaMedError as error:
        return ProgressReport(None, str(error))
    return ProgressReport(found, "" if found else f"{place} has none yet")


def describe(job: JobState, progress: ProgressReport, now: datetime) -> list[tuple[str, str]]:
    """Describe a job as pairs of a label and a text.

    Args:
        job: The state from its RayJob.
        progress: The progress of its run.
        now: The time, with its time zone.
    """
    state = f"{job.shown_state}{f', attempt {job.attempts}' if job.attempts > 1 else ''}"
    lines = [("job", f"{job.name}  {state}")]
    if job.reason:
        lines.append(("reason", job.reason))
    if job.state == "stopped" and job.keeps_cluster and job.cluster:
        lines.append(("cluster", f"{job.cluster} {kept_until_deleted(job)}"))
    found = progress.found
    if found is None:
        return [*lines, ("progress", f"unknown: {progress.why_not}")]
    updated = datetime.fromisoformat(found.updated_at)
    if updated < job.created:
        lines.append(
            ("progress", f"of an earlier job, until {found.updated_at}; none of this job yet")
        )
    elif found.state != "running":
        why = f": {found.reason}" if found.reason else ""
        lines.append(("run", f"{job.run}  attempt {found.attempt} {found.state}{why}"))
    else:
        left = found.run_seconds_left
        rest = "" if left is None else f", about {clock(left)} until {_end(found)}"
        lines.append(("run", f"{job.run}  attempt {found.attempt}{rest}"))
        silent = (now - updated).total_seconds()
        if job.state == "running" and silent > SILENCE_SECONDS:
            lines.append(
                ("silent", f"for {clock(silent)}: see `llavamed cluster logs {job.target}`")
            )
    lines += _work(found, is_running=job.state not in ENDED)
    lines.append(("cost", _cost(found, is_over=job.state in ENDED)))
    return lines


def kept_until_deleted(job: JobState) -> str:
    """Return what becomes of the cluster of a job that is stopped."""
    return f"stays, with its GPUs, until `llavamed cluster delete {job.target}`"


def _work(found: RunProgress, *, is_running: bool) -> list[tuple[str, str]]:
    lines = []
    words = {"prepare": "samples prepared", "train": "steps", "evaluate": "answers"}
    total = "" if found.steps is None else f" of {found.steps:,}"
    task = f"{found.step:,}{total} {words[found.task]}"
    if found.stage is not None:
        names = [stage.name for stage in found.stages]
        position = f"{names.index(found.stage) + 1} of {len(names)}" if names else ""
        task = f"{found.stage} ({position})  {task}"
    if is_running and found.seconds_left is not None:
        task += f", {clock(found.seconds_left)} left"
    lines.append(("stage", task))
    speed = []
    if found.loss is not None:
        speed.append(f"loss {found.loss:.4g}")
    if found.tokens_per_second is not None:
        speed.append(f"{found.tokens_per_second:,.0f} tokens/s")
    if found.mfu is not None:
        speed.append(f"{found.mfu:.1%} MFU")
    if speed:
        lines.append(("speed", ", ".join(speed)))
    if is_running and found.num_workers:
        model = f" {found.accelerator}" if found.accelerator else ""
        lines.append(("workers", f"{found.num_workers}, on {found.num_gpus}{model} GPUs"))
    return lines


def _cost(found: RunProgress, *, is_over: bool) -> str:
    hours = f"{found.spent.gpu_seconds / 3600:,.2f} GPU hours"
    if found.spent.cost is None:
        return f"{hours}, at an unknown price"
    if is_over or found.cost_at_end is None:
        return f"{found.spent.cost:,.2f} {found.currency}{'' if is_over else ' so far'}, {hours}"
    so_far = f"{found.spent.cost:,.2f} {found.currency} so far, {hours}"
    return f"{so_far}; about {found.cost_at_end:,.2f} when {_end(found)}"


def _end(found: RunProgress) -> str:
    """Return the end point of the estimate for the rest of a run."""
    last = found.stages[-1].name
    is_evaluated = found.task == "evaluate" and found.stage == last
    return f"{last} is {'evaluated' if is_evaluated else 'trained'}"


def clock(seconds: float) -> str:
    """Return a duration as `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def now_utc() -> datetime:
    """Return the time."""
    return datetime.now(UTC)
