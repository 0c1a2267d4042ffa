"""What a stage is told: its settings, where things lie, and in which order its samples come."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.order import StageOrder, order_stage
from llavamed.data.prepared.dataset import open_prepared
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import DataError
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.lease import Lease
from llavamed.storage.location import locate

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


@dataclass(frozen=True)
class StageJob:
    """All a worker is told: the run's config, which stage, and where things lie (URIs)."""

    config: RunConfig
    stage: Stage
    datasets: tuple[str, ...]  # in the order of the stage's mixture
    dataset_fingerprints: tuple[str, ...]
    processor: str
    initial_weights: str | None  # an export or hub name; none: the model the config describes
    initial_fingerprint: str | None  # of the stage that exported them, or their name
    checkpoints: str
    export: str
    lease: Lease | None = None  # of the run's folder; none where nobody else can write there

    @property
    def fingerprint(self) -> str:
        """Fingerprint of `settings`; a checkpoint or export of another one is not the stage's."""
        return fingerprint(self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers that the stage computes, by the config's keys.

        Left out is what changes only where numbers lie or in which order they are summed: ZeRO
        stage, offload, number of workers, attention kernels, recomputed activations. So is what a
        stage stops at, how it is scored, logged and saved, and where things lie.
        """
        settings = number_settings(self.config, self.stage)
        settings["stages"][self.stage.name]["initial_weights"] = self.initial_fingerprint
        datasets = zip(self.stage.mixture, self.dataset_fingerprints, strict=True)
        fingerprints = {name: {"fingerprint": value} for name, value in datasets}
        return settings | {"data": {"datasets": fingerprints}}

    def check_lease(self) -> None:
        """Check, before anything is published, that no other attempt has taken over.

        Raises:
            LeaseError: One has.
        """
        if self.lease is not None:
            self.lease.check()


def number_settings(config: RunConfig, stage: Stage) -> dict[str, Any]:
    """Return the settings that decide the numbers of a stage; see `StageJob.settings`."""
    engine = config.engine_of(stage)
    own = stage.model_dump(mode="json", exclude=_DECIDES_NO_NUMBER)
    own["data"] = [[dataset, passes] for dataset, passes in stage.mixture.items()]
    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"attn_implementation"}),
        "engine": {"precision": engine.precision, "deepspeed": dict(engine.deepspeed)},
        "stages": {stage.name: own},
    }


def can_convert(before: int, now: int) -> bool:
    """Return whether a checkpoint of one ZeRO stage can be loaded by another one.

    DeepSpeed converts between 1 and 2 only; 0 and 3 keep the optimizer's state in other forms.
    """
    return before == now or {before, now} == {1, 2}


def order_of(stage: Stage, data: Mixture, seed: int) -> StageOrder:
    """The order of a stage's samples. Raises: DataError, when a sample is longer than a pack."""
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
    """What the stage trains on. Raises: DataError, when it changed since the run started."""
    datasets = tuple(open_prepared(locate(place)) for place in job.datasets)
    for dataset, expected in zip(datasets, job.dataset_fingerprints, strict=True):
        if dataset.manifest.fingerprint != expected:
            raise DataError(
                f"{dataset.location}: has changed since the run started; use another name, or "
                "delete the stage's folder, to train on it as it is now"
            )
    return Mixture(datasets, tuple(job.stage.mixture.values()))
