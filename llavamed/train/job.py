"""What a stage is told: its settings, where things lie, and in which order its samples come."""

from dataclasses import dataclass

import numpy as np

from llavamed.config.load import fingerprint
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.order import StageOrder, order_stage
from llavamed.data.prepared.dataset import open_prepared
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import DataError
from llavamed.storage.lease import Lease
from llavamed.storage.location import locate


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
        """Of everything that decides what the stage computes; a resume must have the same."""
        decides_nothing = {"evaluation", "max_loss_ratio"}
        return fingerprint(
            {
                "stage": self.stage.model_dump(mode="json", exclude=decides_nothing),
                "model": self.config.model.model_dump(mode="json"),
                "engine": self.config.engine.model_dump(mode="json"),
                "seed": self.config.seed,
                "datasets": self.dataset_fingerprints,
                "initial_weights": self.initial_fingerprint,
            }
        )

    def check_lease(self) -> None:
        """Before anything is published. Raises: TrainingError, when another attempt took over."""
        if self.lease is not None:
            self.lease.check()


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
        if dataset.manifest["fingerprint"] != expected:
            raise DataError(
                f"{dataset.location}: has changed since the run started; use another name, or "
                "delete the stage's folder, to train on it as it is now"
            )
    return Mixture(datasets, tuple(job.stage.mixture.values()))
