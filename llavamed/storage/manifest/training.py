"""What a checkpoint and an export of a stage say of themselves."""

from typing import Any, ClassVar

from llavamed.errors import CheckpointError, LlavaMedError
from llavamed.storage.fingerprint import differences
from llavamed.storage.manifest.measurement import Measurement
from llavamed.storage.manifest.typed import Facts, Manifest


class TrainedDataset(Facts):
    """A dataset that a stage trains on."""

    fingerprint: str
    """Fingerprint of the dataset as it was when the stage began."""


class TrainedData(Facts):
    """The data that a stage trains on."""

    datasets: dict[str, TrainedDataset]
    """Its datasets by name."""


class StageSettings(Facts):
    """The settings that decide the numbers a stage computes, by their keys in the config."""

    seed: int
    """Seed for weight initialization and sample order."""
    model: dict[str, Any]
    """The `model` section."""
    engine: dict[str, Any]
    """Settings of the `engine` section that change numbers."""
    stages: dict[str, dict[str, Any]]
    """Settings of the stage that change numbers, by the name of the stage."""
    data: TrainedData
    """The datasets it trains on, by their fingerprints."""

    def differences(self, now: "StageSettings") -> list[str]:
        """Return one `key=value, was value` for each key whose value is another one now."""
        return differences(self.model_dump(mode="json"), now.model_dump(mode="json"))


class StageManifest(Manifest):
    """What a checkpoint and an export of a stage have in common."""

    ERROR: ClassVar[type[LlavaMedError]] = CheckpointError

    stage: str
    """Name of the stage."""
    fingerprint: str
    """Fingerprint of `settings`."""
    settings: StageSettings
    """The settings it was trained with."""


class FileFacts(Facts):
    """A file of a checkpoint."""

    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of the file."""


class Layout(Facts):
    """How the state of a checkpoint is partitioned; another layout is converted at loading."""

    world_size: int
    """Number of workers."""
    zero_stage: int
    """ZeRO stage."""


class CheckpointManifest(StageManifest):
    """The state of a stage to resume from."""

    VERSION: ClassVar[int] = 4
    HINT: ClassVar[str] = "resume with the program that saved it, or delete it"

    step: int
    """Number of optimizer steps that were taken."""
    seconds: float
    """Seconds that the stage had trained."""
    loss: float
    """Mean loss over the steps since the checkpoint before."""
    layout: Layout
    """How the state is partitioned."""
    files: dict[str, FileFacts]
    """Files of all ranks by relative path."""


class PartFacts(Facts):
    """Parameters of a part of the model."""

    num_trained: int
    """Number of parameters that the stage trained."""
    num_frozen: int
    """Number of parameters that did not change."""


class ExportManifest(StageManifest):
    """A trained model that others load. The records of its steps are in a table next to it."""

    VERSION: ClassVar[int] = 1
    HINT: ClassVar[str] = "use the program that exported it, or another run name"

    datasets: dict[str, str]
    """Fingerprints of the datasets it was trained on, by name."""
    template: str
    """Name of the chat template in the config."""
    template_hash: str
    """Hash of the chat template."""
    steps: int
    """Number of optimizer steps."""
    num_tokens: int
    """Number of tokens of all steps."""
    loss_first: float
    """Loss of the first step."""
    loss_last: float
    """Loss of the last step."""
    tokens_per_second: float
    """Median over the steps, of all workers together."""
    mfu: float | None = None
    """Median model FLOPs utilization, where the peak of the GPU is known."""
    step_seconds: dict[str, float]
    """Percentiles of the seconds a step took, by name, such as `p95`."""
    seconds: float
    """Seconds that the stage trained."""
    parts: dict[str, PartFacts]
    """Parameters by part of the model."""
    logits_difference: float
    """Largest difference between a logit of the trained model and of the export that was loaded
    back, divided by the largest logit."""
    measured: Measurement | None = None
    """What the last attempt measured on its first GPU, where the peak of the GPU is known."""
