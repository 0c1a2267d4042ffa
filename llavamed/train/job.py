"""Describe a stage to its workers: settings, places, and the order of samples."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.order import StageOrder, order_stage
from llavamed.data.prepared.dataset import open_prepared
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError, DataError
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.lease import Lease
from llavamed.storage.location import locate
from llavamed.storage.manifest import StageSettings, TrainedData, TrainedDataset

_DECIDES_NO_NUMBER = {
    "name",
    "data",
    "initial_weights",
    "engine",
    "evaluation",
    "max_loss_ratio",
    "gradient_checkpointing",
}
"""Fields of a stage that `StageJob.settings` leaves out or replaces by fingerprints."""

_ONLY_LOG = {
    "steps_per_print",
    "wall_clock_breakdown",
    "comms_logger",
    "flops_profiler",
    "log_level",
    "dump_state",
    "memory_breakdown",
}
"""Settings of DeepSpeed that `StageJob.settings` leaves out."""


@dataclass(frozen=True)
class Workers:
    """The workers of a stage, once they run."""

    number: int
    num_gpus: int
    accelerator: str | None
    """Ray's name of their GPU model, None if it is unknown or there is none."""


@dataclass(frozen=True)
class StageJob:
    """Everything that a worker gets: the run's config, its stage, and the URIs of its files."""

    config: RunConfig
    stage: Stage
    datasets: tuple[str, ...]
    """The prepared datasets, in the order of `stage.mixture`."""
    dataset_fingerprints: tuple[str, ...]
    """The fingerprints of the datasets when the run started, in the same order."""
    processor: str
    initial_weights: str | None
    """An export or the name of a model on the hub; None for the model of the config."""
    initial_fingerprint: str | None
    """The fingerprint of the stage that exported the initial weights, or else their name."""
    checkpoints: str
    """The folder of the stage's checkpoints."""
    export: str
    """The folder to export the trained model to."""
    lease: Lease | None = None
    """The lease on the run's folder; None if nobody else can write there."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of `settings`, which checkpoints and exports of the stage share."""
        return fingerprint(self.settings.model_dump(mode="json"))

    @property
    def settings(self) -> StageSettings:
        """The settings that decide the numbers the stage computes, by config key.

        Settings that only decide where tensors are and in which order they are summed are left out:
        ZeRO stage, offload, number of workers, kernels, activation checkpointing. So are
        settings that decide when the stage is stopped, how it is scored, logged and saved, and
        where its files are.
        """
        settings = number_settings(self.config, self.stage)
        settings["stages"][self.stage.name]["initial_weights"] = self.initial_fingerprint
        datasets = zip(self.stage.mixture, self.dataset_fingerprints, strict=True)
        used = {name: TrainedDataset(fingerprint=value) for name, value in datasets}
        return StageSettings(**settings, data=TrainedData(datasets=used))

    def check_lease(self) -> None:
        """Raise LeaseError if another attempt has taken over; call it before any publishing."""
        if self.lease is not None:
            self.lease.check()


def number_settings(config: RunConfig, stage: Stage) -> dict[str, Any]:
    """Return the settings that decide the numbers of a stage; see `StageJob.settings`."""
    engine = config.engine_of(stage)
    deepspeed = engine.deepspeed.model_dump(mode="json", exclude=_ONLY_LOG)
    own = stage.model_dump(mode="json", exclude=_DECIDES_NO_NUMBER)
    own["data"] = [[dataset, passes] for dataset, passes in stage.mixture.items()]
    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"attn_implementation"}),
        "engine": {"precision": engine.precision, "deepspeed": deepspeed},
        "stages": {stage.name: own},
    }


def can_convert(before: int, now: int) -> bool:
    """Return whether a checkpoint of one ZeRO stage can be loaded at another one.

    DeepSpeed only converts between 1 and 2; 0 and 3 store the optimizer's state in other forms.
    """
    return before == now or {before, now} == {1, 2}


def check_conversion(saved: int, now: int) -> None:
    """Check that a checkpoint of one ZeRO stage can be loaded by another one.

    Raises:
        ConfigError: It cannot.
    """
    if not can_convert(saved, now):
        raise ConfigError(
            f"engine.zero_stage={now}: the checkpoint was saved with {saved}, and only 1 and 2 can "
            f"be converted into each other; set it to {saved}, or start under another name"
        )


def order_of(stage: Stage, data: Mixture, seed: int) -> StageOrder:
    """Return the order of a stage's samples.

    Raises:
        DataError: A sample is longer than a pack.
    """
    tokens = data.column("num_tokens")
    return order_stage(
        data.groups,
        tokens if stage.packing else np.ones_like(tokens),
        seed=seed,
        num_lanes=stage.num_lanes,
        capacity=stage.pack_tokens if stage.packing else stage.micro_batch_size,
        num_epochs=stage.num_train_epochs,
        max_steps=stage.max_steps,
        shares=data.shares,
    )


def open_mixture(job: StageJob) -> Mixture:
    """Open the datasets of a stage.

    Raises:
        DataError: A dataset has changed since the run started.
    """
    datasets = tuple(open_prepared(locate(place)) for place in job.datasets)
    for dataset, expected in zip(datasets, job.dataset_fingerprints, strict=True):
        if dataset.manifest.fingerprint != expected:
            raise DataError(
                f"{dataset.location}: has changed since the run started; use another name, or "
                "delete the stage's folder, to train on it as it is now"
            )
    return Mixture(datasets, tuple(job.stage.mixture.values()))
