"""Plan the stages: what runs, from which weights, and what is finished in storage."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.prepared.dataset import PROCESSOR, PreparedDataset
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError, DataError
from llavamed.evaluate.scores import scores_fingerprint
from llavamed.storage.lease import Lease
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import (
    CheckpointManifest,
    DatasetManifest,
    ExportManifest,
    ScoresManifest,
    find,
    read,
)
from llavamed.train.checkpoint.listing import newest_checkpoint
from llavamed.train.job import StageJob


@dataclass(frozen=True)
class StagePlan:
    """One stage of the curriculum, and the places of its files."""

    stage: Stage
    initial_weights: str | None
    """Export or hub name to start from, or None for the model that the config describes."""
    folder: Location

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets that it trains on and is scored with."""
        settings = self.stage.evaluation
        return [*self.stage.mixture, *(settings.datasets if settings else ())]

    def data(self, prepared: dict[str, PreparedDataset]) -> Mixture:
        """Return the datasets that it trains on, as one."""
        shares = self.stage.mixture
        return Mixture(tuple(prepared[name] for name in shares), tuple(shares.values()))

    @property
    def export(self) -> Location:
        """Place of the trained model."""
        return self.folder / "export"

    @property
    def evaluation(self) -> Location:
        """Place of the answers and scores of the model."""
        return self.folder / "evaluation"

    @property
    def checkpoints(self) -> Location:
        """Place of the states to resume from."""
        return self.folder / "checkpoints"

    def result(self) -> ExportManifest | None:
        """Return the export's manifest when the stage is finished, else None."""
        return find(ExportManifest, self.export)

    def begun(self) -> ExportManifest | CheckpointManifest | None:
        """Return the export or newest checkpoint of the stage, or None when nothing is saved."""
        return self.result() or newest_checkpoint(self.checkpoints)

    def scores(self, datasets: str) -> ScoresManifest | None:
        """Return what its evaluation found, if its model, data, settings and scorer are the same.

        Args:
            datasets: URI of the folder with the prepared datasets.
        """
        settings, result = self.stage.evaluation, self.result()
        found = find(ScoresManifest, self.evaluation)
        if settings is None or result is None or found is None:
            return None
        now = fingerprints_now(datasets, found.datasets)
        wanted = scores_fingerprint(settings, result.fingerprint, now)
        return found if found.fingerprint == wanted else None

    def is_current(self, datasets: str) -> bool:
        """Return whether all of it is finished and its datasets, if still there, are unchanged.

        Args:
            datasets: URI of the folder with the prepared datasets.
        """
        result = self.result()
        if result is None or fingerprints_now(datasets, result.datasets) != result.datasets:
            return False
        return self.stage.evaluation is None or self.scores(datasets) is not None


def fingerprints_now(folder: str, before: dict[str, str]) -> dict[str, str]:
    """Return the fingerprints of datasets now, and for those that are gone the ones before."""
    found = dict(before)
    for name in before:
        with suppress(FileNotFoundError):
            found[name] = read(DatasetManifest, locate(folder) / name).fingerprint
    return found


def plan_curriculum(config: RunConfig) -> list[StagePlan]:
    """Return the stages in order, each with the weights it starts from."""
    plans: dict[str, StagePlan] = {}
    before: str | None = None
    for stage in config.stages:
        start = stage.initial_weights or before
        earlier = plans.get(start or "")
        folder = locate(config.directory) / "stages" / stage.name
        plans[stage.name] = StagePlan(stage, str(earlier.export) if earlier else start, folder)
        before = stage.name
    return list(plans.values())


def make_jobs(
    config: RunConfig,
    plans: list[StagePlan],
    fingerprints: Mapping[str, str] | None = None,
    lease: Lease | None = None,
) -> list[StageJob]:
    """Return the job of each stage, which its workers get.

    Args:
        fingerprints: Those of the prepared datasets by name. By default as they are in storage now;
            for a dataset that is gone, or was never prepared, the one its stage began with.
        lease: The right to write into the run's folder.
    """
    jobs: dict[str, StageJob] = {}
    folder = locate(config.datasets_directory)
    for plan in plans:
        names, start = list(plan.stage.mixture), plan.initial_weights
        known = fingerprints
        if known is None:
            begun = plan.begun()
            before = dict.fromkeys(names, "")
            if begun is not None:
                trained_on = begun.settings.data.datasets
                before |= {name: facts.fingerprint for name, facts in trained_on.items()}
            known = fingerprints_now(config.datasets_directory, before)
        jobs[str(plan.export)] = StageJob(
            config=config,
            stage=plan.stage,
            datasets=tuple(str(folder / name) for name in names),
            dataset_fingerprints=tuple(known[name] for name in names),
            processor=str(folder / PROCESSOR),
            initial_weights=start,
            initial_fingerprint=jobs[start].fingerprint if start in jobs else start,
            checkpoints=str(plan.checkpoints),
            export=str(plan.export),
            lease=lease,
        )
    return list(jobs.values())


def trained_on(config: RunConfig, plan: StagePlan) -> list[str]:
    """Return the names of the datasets that a stage and those before it are trained on."""
    names = [stage.name for stage in config.stages]
    stages = config.stages[: names.index(plan.stage.name) + 1]
    return list(dict.fromkeys(name for stage in stages for name in stage.mixture))


def scores_now(config: RunConfig, plan: StagePlan) -> ScoresManifest:
    """Return the scores of a stage with what the config says now. Raises: DataError."""
    scores = plan.scores(config.datasets_directory)
    if scores is None:
        raise DataError(
            f"stage={plan.stage.name}: is not scored with the model, data and settings of this "
            "config by the rules of this version; run `llavamed evaluate` first"
        )
    return scores


def find_stage(config: RunConfig, name: str | None) -> StagePlan:
    """Return a stage by name, or the last one. Raises: ConfigError."""
    plans = {plan.stage.name: plan for plan in plan_curriculum(config)}
    if name is None:
        return list(plans.values())[-1]
    if name not in plans:
        raise ConfigError(
            f"stage={name}: there is none of this name; use one of: {', '.join(plans)}"
        )
    return plans[name]
