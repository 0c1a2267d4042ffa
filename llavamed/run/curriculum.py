"""What runs, from which weights, and what is finished. Pure but for looking into storage."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError
from llavamed.evaluate.scores import read_scores, scores_fingerprint
from llavamed.model.export import read_manifest
from llavamed.storage.location import MANIFEST, Location, locate


@dataclass(frozen=True)
class StagePlan:
    """One stage of the curriculum and where its things lie."""

    stage: Stage
    initial_weights: str | None
    """Export or hub name to start from; none: the model the config describes."""
    folder: Location

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets it trains on and is scored with."""
        settings = self.stage.evaluation
        return [*self.stage.mixture, *(settings.datasets if settings else ())]

    def data(self, prepared: dict[str, PreparedDataset]) -> Mixture:
        """What it trains on."""
        shares = self.stage.mixture
        return Mixture(tuple(prepared[name] for name in shares), tuple(shares.values()))

    @property
    def export(self) -> Location:
        """Where the trained model is published."""
        return self.folder / "export"

    @property
    def evaluation(self) -> Location:
        """Where the answers and scores of the model are published."""
        return self.folder / "evaluation"

    @property
    def checkpoints(self) -> Location:
        """Where the state to resume from is saved."""
        return self.folder / "checkpoints"

    def result(self) -> dict[str, Any] | None:
        """The export's manifest when the stage is finished, else none."""
        return read_manifest(self.export)

    def scores(self, datasets: str) -> dict[str, Any] | None:
        """What its evaluation found, if of its model, data, settings and scorer as they are now.

        Args:
            datasets: URI of the folder with the prepared datasets.
        """
        settings, result, found = self.stage.evaluation, self.result(), read_scores(self.evaluation)
        if settings is None or result is None or found is None or "fingerprint" not in found:
            return None
        now = _fingerprints(datasets, found["datasets"])
        wanted = scores_fingerprint(settings, result["fingerprint"], now)
        return found if found["fingerprint"] == wanted else None

    def is_current(self, datasets: str) -> bool:
        """Whether all of it is finished and its datasets, if still there, unchanged since.

        Args:
            datasets: URI of the folder with the prepared datasets.
        """
        result = self.result()
        if result is None or _fingerprints(datasets, result["datasets"]) != result["datasets"]:
            return False
        return self.stage.evaluation is None or self.scores(datasets) is not None


def _fingerprints(folder: str, before: dict[str, str]) -> dict[str, str]:
    """Fingerprints of datasets as they are now; of those that are gone, as they were before."""
    found = dict(before)
    for name in before:
        with suppress(FileNotFoundError):
            found[name] = (locate(folder) / name / MANIFEST).read_json()["fingerprint"]
    return found


def plan_curriculum(config: RunConfig) -> list[StagePlan]:
    """The stages in order, each with the weights it starts from."""
    plans: dict[str, StagePlan] = {}
    before: str | None = None
    for stage in config.stages:
        start = stage.initial_weights or before
        earlier = plans.get(start or "")
        folder = locate(config.directory) / "stages" / stage.name
        plans[stage.name] = StagePlan(stage, str(earlier.export) if earlier else start, folder)
        before = stage.name
    return list(plans.values())


def find_stage(config: RunConfig, name: str | None) -> StagePlan:
    """A stage by name, or the last one. Raises: ConfigError."""
    plans = {plan.stage.name: plan for plan in plan_curriculum(config)}
    if name is None:
        return list(plans.values())[-1]
    if name not in plans:
        raise ConfigError(
            f"stage={name}: there is none of this name; use one of: {', '.join(plans)}"
        )
    return plans[name]
