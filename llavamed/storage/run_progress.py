"""How far a run is, and what it has come to: small files in its folder, which tools read."""

from typing import ClassVar, Literal

from llavamed.errors import CheckpointError, DamagedFileError, LlavaMedError
from llavamed.storage.location import Location
from llavamed.storage.manifest import Facts, Manifest, Measurement, ScoresManifest, find


class Spending(Facts):
    """Time on GPUs and its price."""

    gpu_seconds: float = 0.0
    """Number of GPUs times the seconds for which workers held them."""
    cost: float | None = 0.0
    """Price of that time, null where the price of the GPU is unknown."""

    def __add__(self, other: "Spending") -> "Spending":
        unknown = self.cost is None or other.cost is None
        return Spending(
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
            cost=None if unknown else (self.cost or 0.0) + (other.cost or 0.0),
        )


class StageProgress(Facts):
    """One stage of a run."""

    name: str
    """Name of the stage."""
    state: Literal["waiting", "training", "evaluating", "finished"] = "waiting"
    """What is done with it now."""
    step: int = 0
    """Number of optimizer steps taken."""
    steps: int | None = None
    """Number of its optimizer steps, null until its training has begun."""
    flops: float | None = None
    """Floating point operations that its training takes, null until its datasets are prepared."""
    training: Spending = Spending()
    """What training has cost, in all attempts."""
    evaluation: Spending = Spending()
    """What evaluation has cost, in all attempts."""


class RunProgress(Manifest):
    """How far a run is. It is written every few seconds, and at the end of an attempt."""

    VERSION: ClassVar[int] = 1
    FILE: ClassVar[str] = "progress.json"
    ERROR: ClassVar[type[LlavaMedError]] = CheckpointError
    HINT: ClassVar[str] = "read it with the program that wrote it"

    name: str
    """Name of the run."""
    attempt: int
    """Attempts on the run so far, counted from 1."""
    state: Literal["running", "finished", "failed", "interrupted"] = "running"
    """What became of the attempt. One that was killed is left as running: see `updated_at`."""
    reason: str = ""
    """Why the attempt failed or was interrupted."""
    started_at: str
    """When the attempt began, in UTC."""
    updated_at: str
    """When this was written, in UTC."""
    task: Literal["prepare", "train", "evaluate"] = "prepare"
    """What the run does now."""
    stage: str | None = None
    """The stage that is trained or evaluated."""
    step: int = 0
    """How much of the task is done: samples prepared, optimizer steps, or questions answered."""
    steps: int | None = None
    """How much the task is in all, null until it is known."""
    loss: float | None = None
    """Loss of the last optimizer step."""
    tokens_per_second: float | None = None
    """Tokens of the last optimizer step divided by its duration, over all workers."""
    mfu: float | None = None
    """Model FLOPs utilization of the last optimizer step, null where the GPU is unknown."""
    seconds_left: float | None = None
    """Estimate for the rest of the task."""
    run_seconds_left: float | None = None
    """Estimate for the rest of the task and the training of the stages that wait, at the same
    floating point operations a second. Evaluations to come are not counted."""
    cost_at_end: float | None = None
    """Estimate of the cost of the run when that time is over."""
    num_workers: int = 0
    """Number of workers at work."""
    num_gpus: int = 0
    """Number of GPUs that they hold."""
    accelerator: str | None = None
    """Ray's name of the GPU model."""
    spent: Spending = Spending()
    """What all stages have cost, in all attempts."""
    currency: str
    """Currency of every cost."""
    prices_date: str
    """Day of the prices."""
    stages: tuple[StageProgress, ...]
    """All stages in order."""


class StageSummary(Facts):
    """A finished stage in a run's summary."""

    name: str
    """Name of the stage."""
    steps: int
    """Number of optimizer steps."""
    loss_first: float
    """Loss of the first step."""
    loss_last: float
    """Loss of the last step."""
    tokens_per_second: float
    """Median over the steps, of all workers together."""
    mfu: float | None
    """Median model FLOPs utilization, null where the peak of the GPU is unknown."""
    seconds: float
    """Seconds that the stage trained."""
    step_seconds: dict[str, float]
    """Percentiles of the seconds a step took, by name, such as `p95`."""
    export: str
    """URI of the trained model."""
    gpu_seconds: float
    """Number of GPUs times the seconds for which training and evaluation held them."""
    cost: float | None
    """Price of that time, null where the price of the GPU is unknown."""


class RunSummary(Manifest):
    """A finished run."""

    VERSION: ClassVar[int] = 2
    FILE: ClassVar[str] = "summary.json"
    ERROR: ClassVar[type[LlavaMedError]] = CheckpointError
    HINT: ClassVar[str] = "use the program that wrote it, or another run name"

    name: str
    """Name of the run."""
    fingerprint: str
    """Fingerprint of the whole config."""
    tracking_uri: str
    """URI of the MLflow server or database that the run is recorded in."""
    stages: tuple[StageSummary, ...]
    """All stages in order."""
    scores: dict[str, dict[str, float | None]]
    """Scores of the last evaluation, by control and measure."""
    evaluations: tuple[ScoresManifest, ...]
    """Every evaluation, in the order of stages."""
    currency: str
    """Currency of every cost."""
    prices_date: str
    """Day of the prices."""
    measured: tuple[Measurement, ...] = ()
    """What its stages measured on GPUs, for `llavamed plan --measured`."""


def find_progress(folder: Location) -> RunProgress | None:
    """Return how far the run of a folder is, or None where nothing legible says so.

    Raises:
        StorageError: The folder cannot be read.
    """
    try:
        return find(RunProgress, folder)
    except (CheckpointError, DamagedFileError):
        return None
