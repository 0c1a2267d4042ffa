"""The whole config of a run, and its sections `scaling`, `checkpoint` and `tracking`.

A config file is a `RunConfig` in YAML. Sections that feed one API carry that API's own names:
Ray's in `scaling`, DeepSpeed's in `engine`, Hugging Face's in `model.*.config`. Runtime facts
(rank, device, world size) never live here, and neither do secrets.
"""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, model_validator

from llavamed.config.data import Data
from llavamed.config.engine import Engine
from llavamed.config.model import Model
from llavamed.config.section import ONE, SEVERAL, Section, one_or_several
from llavamed.config.stage import Stage

NumWorkers = Annotated[int, Field(ge=1)]


class Scaling(Section):
    """Ray Train's ScalingConfig, field for field."""

    num_workers: Annotated[
        Annotated[NumWorkers, Tag(ONE)] | Annotated[tuple[NumWorkers, NumWorkers], Tag(SEVERAL)],
        Discriminator(one_or_several),
    ] = 1
    """Training workers; or the least and the most of them, then the cluster's free machines decide,
    and a stage goes on from its last checkpoint when their number changes."""
    use_gpu: bool = False
    """One GPU a worker."""
    resources_per_worker: dict[str, float] = Field(default_factory=lambda: {"CPU": 1.0})
    """What else a worker reserves."""
    accelerator_type: str | None = None
    """Ray's name of the GPU, e.g. `A100`."""

    @property
    def least_workers(self) -> int:
        """The smallest number of workers there may be."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The largest number of workers there may be."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _least_before_most(self) -> Self:
        if not isinstance(self.num_workers, int) and self.num_workers[0] > self.num_workers[1]:
            least, most = self.num_workers
            raise ValueError(
                f"num_workers=[{least}, {most}]: the least is more than the most; write "
                f"[{most}, {least}]"
            )
        return self


class Checkpoint(Section):
    """Saving the state to resume from, while training goes on; each worker needs host memory for a
    copy of its part of the state."""

    every_steps: Annotated[int, Field(ge=1)] = 500
    """Optimizer steps between two checkpoints."""
    num_to_keep: Annotated[int, Field(ge=1)] = 2
    """The newest ones stay, so many; others are deleted, unless a field below keeps them."""
    keep_best: Literal["none", "loss"] = "none"
    """`loss` keeps also the one with the lowest mean loss over the last `every_steps` steps."""
    keep_every_hours: Annotated[float, Field(gt=0)] | None = None
    """Keep also the first one after every so many hours of the stage's training; none: none."""


class Tracking(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking server; none: `MLFLOW_TRACKING_URI`, or else SQLite below a local `storage`."""
    experiment: str = "llavamed"
    """Experiment that holds the run."""
    log_every_steps: Annotated[int, Field(ge=1)] = 10
    """Steps between two reports; each still holds every step's metrics."""

    @model_validator(mode="after")
    def _holds_no_password(self) -> Self:
        if urlsplit(self.uri or "").password is not None:
            raise ValueError(
                "uri: holds a password, and a config is shown and stored; remove it and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return self


class RunConfig(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
    """Names the run and its folder below `storage`; the same name resumes the same run."""
    storage: Annotated[str, Field(min_length=1)]
    """URI of the folder for runs: a path all workers share, or an object store."""
    seed: int = 0
    """Of random weights and of the order of samples."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Times a stage is started again, from its last checkpoint, after a worker died."""
    model: Model
    data: Data
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """In order; each starts from the weights the last one exported."""
    scaling: Scaling = Scaling()
    engine: Engine = Engine()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()

    @property
    def directory(self) -> str:
        """URI of the run's folder."""
        return f"{self.storage.rstrip('/')}/{self.name}"

    @property
    def datasets_directory(self) -> str:
        """URI of the folder with the prepared datasets."""
        return self.data.directory or f"{self.storage.rstrip('/')}/datasets"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"stages: name={name} is used {names.count(name)} times; rename one"
                )
        known = ", ".join(self.data.datasets)
        for position, stage in enumerate(self.stages):
            if stage.initial_weights in names[position:]:
                raise ValueError(
                    f"stages.{stage.name}.initial_weights={stage.initial_weights}: is not an "
                    "earlier stage, so it has no weights yet; name an earlier one, or leave it out"
                )
            uses = [("data", name) for name in stage.mixture]
            if stage.evaluation is not None:
                uses.append(("evaluation.data", stage.evaluation.data))
                uses.append(("evaluation.majority_from", stage.evaluation.majority))
            for key, name in uses:
                if name not in self.data.datasets:
                    raise ValueError(
                        f"stages.{stage.name}.{key}={name} is not in data.datasets; use one of: "
                        f"{known}"
                    )
            self._check_lanes(stage)
            self._check_bytes(stage)
        return self

    def _check_bytes(self, stage: Stage) -> None:
        """What bitsandbytes stores in four or eight bits DeepSpeed cannot cut up or move."""
        engine, key = self.engine, f"stages.{stage.name}"
        if stage.lora is not None and stage.lora.quantize != "none" and engine.zero_stage == 3:
            raise ValueError(
                f"{key}.lora.quantize={stage.lora.quantize}: engine.zero_stage=3 cannot share out "
                "weights of four bits, whose scales it does not know; set zero_stage to 2, or "
                "quantize to none"
            )
        if stage.optimizer.name == "adamw_8bit" and (
            engine.zero_stage == 3 or engine.offload_optimizer != "none"
        ):
            raise ValueError(
                f"{key}.optimizer.name=adamw_8bit: its state stays whole and on the GPU, but "
                f"engine.zero_stage={engine.zero_stage} and engine.offload_optimizer="
                f"{engine.offload_optimizer}; set them to 2 or less and none, or use adamw"
            )
        is_fixed = isinstance(self.scaling.num_workers, int)
        if stage.optimizer.name == "adamw_8bit" and engine.zero_stage and not is_fixed:
            raise ValueError(
                f"{key}.optimizer.name=adamw_8bit: its state cannot be shared out anew when "
                f"scaling.num_workers, which is a range, changes with engine.zero_stage="
                f"{engine.zero_stage}; set one number of workers, zero_stage to 0, or use adamw"
            )

    def _check_lanes(self, stage: Stage) -> None:
        workers = self.scaling.most_workers
        if workers > stage.num_lanes:
            raise ValueError(
                f"scaling.num_workers={workers}: stage {stage.name} has only {stage.num_lanes} "
                "forward passes a step to share out (global_batch_size / micro_batch_size); use at "
                "most so many workers"
            )
        if isinstance(self.scaling.num_workers, int) and stage.num_lanes % workers:
            unit = stage.micro_batch_size * workers
            lower = stage.global_batch_size // unit * unit
            fitting = [n for n in range(1, stage.num_lanes + 1) if stage.num_lanes % n == 0]
            nearest = [n for n in fitting if n < workers][-1:] + [n for n in fitting if n > workers]
            numbers = " or ".join(map(str, nearest[:2]))
            raise ValueError(
                f"stages.{stage.name}.global_batch_size={stage.global_batch_size} is not a "
                "multiple of "
                f"micro_batch_size x scaling.num_workers = {stage.micro_batch_size} x {workers} = "
                f"{unit}; use {lower or unit} or {lower + unit}, or {numbers} workers"
            )
        if stage.packing and stage.max_tokens < self.data.max_length:
            raise ValueError(
                f"stages.{stage.name}.max_tokens={stage.max_tokens} is less than data.max_length="
                f"{self.data.max_length}: the longest sample would fit no pack; raise the first or "
                "lower the second"
            )
