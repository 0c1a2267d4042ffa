"""What runs, from which weights, and what is finished. Pure but for looking into storage."""

from dataclasses import dataclass
from typing import Any

from llavamed.config.schema import RunConfig
from llavamed.config.stages import Stage
from llavamed.data.mixture import Mixture
from llavamed.data.prepared import PreparedDataset
from llavamed.errors import ConfigError
from llavamed.model.export import read_manifest
from llavamed.storage import MANIFEST, Location, locate


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
        scored = [settings.data, settings.majority_from or settings.data] if settings else []
        return [*self.stage.mixture, *scored]

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

    def is_current(self, datasets: str) -> bool:
        """Whether the stage is finished and its datasets, if still there, unchanged since."""
        result = self.result()
        if result is None:
            return False
        for name, trained_on in result["datasets"].items():
            manifest = locate(datasets) / name / MANIFEST
            if manifest.exists() and manifest.read_json()["fingerprint"] != trained_on:
                return False
        return True


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
