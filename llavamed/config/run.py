"""The whole config of a run, and its sections `scaling`, `checkpoint` and `tracking`.

A config file is a `RunConfig` in YAML. Sections that feed one API carry that API's own names:
Ray's in `scaling`, DeepSpeed's in `engine`, Hugging Face's in `model.*.config`. Runtime facts
(rank, device, world size) never live here, and neither do secrets.
"""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from llavamed.config.corpus import Corpus
from llavamed.config.data import Data
from llavamed.config.engine import Engine, StageEngine
from llavamed.config.gpu_prices import GpuPrices, shipped_prices
from llavamed.config.model import Model
from llavamed.config.section import ONE, SEVERAL, Count, Section, Seed, one_or_several
from llavamed.config.stage import Stage
from llavamed.config.uri import below, check_no_password

NumWorkers = Annotated[int, Field(ge=1, le=2**16)]
RAY_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that Ray itself counts; any other name is one that the cluster's nodes declare."""


class Scaling(Section):
    """Ray Train's ScalingConfig, field for field, and where the workers run."""

    num_workers: Annotated[
        Annotated[NumWorkers, Tag(ONE)] | Annotated[tuple[NumWorkers, NumWorkers], Tag(SEVERAL)],
        Discriminator(one_or_several),
    ] = 1
    """Number of training workers, or the minimum and maximum. Within a range the free machines of
    the cluster decide, and a stage goes on from its last checkpoint when the number
    changes."""
    use_gpu: bool = False
    """Reserve one GPU per worker. By default workers run on the CPU."""
    resources_per_worker: dict[str, Annotated[float, Field(ge=0, le=2**53)]] = Field(
        default_factory=lambda: {"CPU": 1.0}
    )
    """Other resources to reserve per worker, by Ray's names: `CPU` in cores, `memory` in bytes, or
    a resource that the cluster defines."""
    accelerator_type: Annotated[str, Field(min_length=1)] | None = None
    """Ray's name of the GPU model to use, e.g. `A100`. By default any."""
    launcher: Literal["ray", "local"] = "ray"
    """Where training runs: on workers that Ray starts, or (`local`) in the process of the command
    itself, so that a breakpoint works. `local` needs one worker, and uses a GPU if there is one."""

    @property
    def least_workers(self) -> int:
        """The smallest number of workers there may be."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The largest number of workers there may be."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @field_validator("resources_per_worker")
    @classmethod
    def _ray_knows_them(cls, resources: dict[str, float]) -> dict[str, float]:
        known = {name.lower(): name for name in RAY_RESOURCES}
        for name, amount in resources.items():
            proper = known.get(name.lower(), name)
            if proper == "GPU":
                raise ValueError(
                    f"{name}={amount:g}: a worker has one GPU or none; remove it and set "
                    f"scaling.use_gpu to {'true' if amount else 'false'}"
                )
            if name != proper:
                raise ValueError(
                    f"{name}={amount:g}: Ray spells this resource {proper!r}; write it that way"
                )
            if not name.strip():
                raise ValueError(f"{name!r}={amount:g}: is not the name of a resource; remove it")
            if round(amount, 4) != amount:
                raise ValueError(
                    f"{name}={amount}: Ray counts in steps of 0.0001; use {max(amount, 1e-4):.4f}"
                )
        return resources

    @model_validator(mode="after")
    def _type_needs_gpu(self) -> Self:
        if self.accelerator_type is not None and not self.use_gpu:
            raise ValueError(
                f"accelerator_type={self.accelerator_type}: names a GPU, but use_gpu=false asks "
                "for none; set use_gpu to true, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _number_is_possible(self) -> Self:
        if self.launcher == "local" and self.most_workers > 1:
            raise ValueError(
                f"launcher=local: trains in one process, and num_workers={self.most_workers}; set "
                "num_workers to 1, or launcher to ray"
            )
        if not isinstance(self.num_workers, int) and self.num_workers[0] > self.num_workers[1]:
            least, most = self.num_workers
            raise ValueError(
                f"num_workers=[{least}, {most}]: the least is more than the most; write "
                f"[{most}, {least}]"
            )
        return self


class Checkpoint(Section):
    """Checkpoints of the training state, written while training goes on. Each worker needs host
    memory for a copy of its part of the state.
    """

    every_steps: Count = 500
    """Number of optimizer steps between two checkpoints."""
    num_to_keep: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Number of newest checkpoints to keep. Others are deleted, unless a field below keeps them."""
    keep_best: Literal["none", "loss"] = "none"
    """Also keep the checkpoint with the lowest mean loss over the last `every_steps` steps."""
    keep_every_hours: Annotated[float, Field(gt=0)] | None = None
    """Also keep the first checkpoint after each interval of this many hours of training. By default
    none is kept for its age."""


class Tracking(Section):
    """MLflow."""

    uri: str | None = None
    """URI of the tracking server. By default `MLFLOW_TRACKING_URI` of the environment, or else
    SQLite in a local `storage`."""
    experiment: Annotated[str, Field(min_length=1)] = "llavamed"
    """Experiment that contains the run."""
    log_every_steps: Count = 10
    """Number of steps between two reports. Each report has the metrics of every step. The loss is
    read from the GPU only then, and before a checkpoint."""

    @model_validator(mode="after")
    def _holds_no_password(self) -> Self:
        check_no_password(self.uri, "uri")
        return self


class RunConfig(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
    """Name of the run and of its folder in `storage`. The same name resumes the same run."""
    storage: Annotated[str, Field(min_length=1)]
    """URI of the folder for runs: a path that all workers share, or an object store."""
    seed: Seed = 0
    """Seed for weight initialization and sample order."""
    max_failures: Annotated[int, Field(ge=0, le=10_000)] = 3
    """Number of times that a stage is restarted from its last checkpoint after a worker died."""
    model: Model
    """The network."""
    data: Data
    """Datasets and their preparation."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """Stages in order. Each starts from the weights that the previous one exported."""
    scaling: Scaling = Scaling()
    """Training workers and their resources."""
    engine: Engine = Engine()
    """DeepSpeed's settings, which a stage may override."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are written, and which are kept."""
    tracking: Tracking = Tracking()
    """The MLflow server that records the run."""
    corpus: Corpus | None = None
    """How training data is made from open literature. Only `llavamed corpus` reads this section."""
    gpu_prices: GpuPrices = Field(default_factory=shipped_prices)
    """Prices of GPUs. By default the table that comes with llavamed, `config/gpu_prices.yaml`."""

    def engine_of(self, stage: Stage) -> Engine:
        """Return the engine of a stage: the run's, with what the stage itself sets."""
        own = {
            name: value
            for name in StageEngine.model_fields
            if (value := getattr(stage.engine, name)) is not None
        }
        return self.engine.model_copy(update=own)

    def row_tokens(self, stage: Stage) -> int:
        """Return the tokens to which the packs of a stage are padded, or 0 if they are not."""
        return stage.pack_tokens if stage.packing and self.engine_of(stage).kernels.compile else 0

    @property
    def directory(self) -> str:
        """URI of the run's folder."""
        return below(self.storage, self.name)

    @property
    def datasets_directory(self) -> str:
        """URI of the folder with the prepared datasets."""
        return self.data.directory or below(self.storage, "datasets")

    @property
    def corpus_directory(self) -> str:
        """URI of the folder of the corpus."""
        own = None if self.corpus is None else self.corpus.directory
        return own or below(self.storage, "corpus")

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
            self._check_engine(stage)
            self._check_kernels(stage)
        if self.model.image_grid_pinpoints is not None and self.data.store_images != "original":
            raise ValueError(
                f"data.store_images={self.data.store_images}: stores images at the size of one "
                "tile, and model.image_grid_pinpoints cuts larger ones into several; set it to "
                "original"
            )
        return self

    def _engine_setting(self, stage: Stage, name: str) -> str:
        """Return a setting of a stage's engine, with the key that sets it."""
        key = "" if getattr(stage.engine, name) is None else f"stages.{stage.name}."
        return f"{key}engine.{name}={getattr(self.engine_of(stage), name)}"

    def _check_engine(self, stage: Stage) -> None:
        """Refuse settings that DeepSpeed ignores, or storage of bitsandbytes that it cannot
        partition."""
        engine, key = self.engine_of(stage), f"stages.{stage.name}"
        zero_stage, offload = (
            self._engine_setting(stage, name) for name in ("zero_stage", "offload_optimizer")
        )
        if stage.lora is not None and stage.lora.quantize != "none" and engine.zero_stage == 3:
            raise ValueError(
                f"{key}.lora.quantize={stage.lora.quantize}: {zero_stage} cannot partition "
                "weights of four bits, whose scales it does not know; set zero_stage to 2, or "
                "quantize to none"
            )
        if engine.zero_stage == 0 and engine.offload_optimizer != "none":
            raise ValueError(
                f"{offload}: has no effect with {zero_stage}, which partitions nothing; set "
                "zero_stage to 1, 2 or 3, or offload_optimizer to none"
            )
        gradient = engine.gradient_format(1)
        # Without ZeRO our own step can add them up in fp32.
        where = f"the format of {self._engine_setting(stage, 'precision')}"
        formats = {engine.precision}
        if engine.zero_stage == 0 and engine.precision != "fp32":
            where, formats = f"fp32 or in {where}", {engine.precision, "fp32"}
        if engine.zero_stage < 2 and gradient not in formats:
            raise ValueError(
                f"engine.deepspeed.data_types.grad_accum_dtype={gradient}: {zero_stage} adds up "
                f"gradients in {where}; set zero_stage to 2 or 3, or remove it"
            )
        if stage.optimizer.name == "adamw_8bit" and (
            engine.zero_stage == 3 or engine.offload_optimizer != "none"
        ):
            raise ValueError(
                f"{key}.optimizer.name=adamw_8bit: its state stays whole and on the GPU, but "
                f"{zero_stage} and {offload}; set them to 2 or less and none, or use adamw"
            )
        is_fixed = isinstance(self.scaling.num_workers, int)
        if stage.optimizer.name == "adamw_8bit" and engine.zero_stage and not is_fixed:
            raise ValueError(
                f"{key}.optimizer.name=adamw_8bit: its state cannot be distributed again when "
                f"scaling.num_workers, which is a range, changes with {zero_stage}; set one number "
                "of workers, zero_stage to 0, or use adamw"
            )

    def _check_kernels(self, stage: Stage) -> None:
        """Refuse kernels that cannot run as the rest of the config is."""
        engine = self.engine_of(stage)
        key = "" if stage.engine.kernels is None else f"stages.{stage.name}."
        may_have_gpu = self.scaling.use_gpu or self.scaling.launcher == "local"
        for name in ("liger", "varlen"):
            if getattr(engine.kernels, name) and not may_have_gpu:
                raise ValueError(
                    f"{key}engine.kernels.{name}=true: its kernels are for GPUs, and "
                    "scaling.use_gpu=false reserves none; set use_gpu to true, or "
                    f"{name} to false"
                )
        if engine.kernels.varlen and (
            engine.precision != "bf16" or self.model.attn_implementation != "sdpa"
        ):
            raise ValueError(
                f"{key}engine.kernels.varlen=true: its kernel takes the place of sdpa in bf16, and "
                f"model.attn_implementation={self.model.attn_implementation} and "
                f"{self._engine_setting(stage, 'precision')}; set them to sdpa and bf16, or "
                "varlen to false"
            )
        if engine.kernels.compile and engine.zero_stage == 3:
            raise ValueError(
                f"{key}engine.kernels.compile=true: cannot compile layers whose weights are "
                f"gathered while they run, as {self._engine_setting(stage, 'zero_stage')} does; "
                "set zero_stage to 2, or compile to false"
            )

    def _check_lanes(self, stage: Stage) -> None:
        workers = self.scaling.most_workers
        if workers > stage.num_lanes:
            raise ValueError(
                f"scaling.num_workers={workers}: is more than the forward passes per step that "
                f"stage {stage.name} distributes, global_batch_size / micro_batch_size = "
                f"{stage.num_lanes}; use at most that many workers"
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
        if stage.packing and stage.pack_tokens < self.data.max_length:
            raise ValueError(
                f"stages.{stage.name}.max_tokens={stage.pack_tokens} is less than data.max_length="
                f"{self.data.max_length}: the longest sample would fit no pack; raise the first or "
                "lower the second"
            )
