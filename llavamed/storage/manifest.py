"""What a dataset, a checkpoint, an export, an evaluation and a lease say of themselves.

Each kind is a typed model with a version of its own. `write` seals it with a checksum, and `read`
gives it back or says which version it found and which it needs. A folder is complete when its
manifest exists, so every writer writes it last.
"""

from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from llavamed.errors import (
    CheckpointError,
    DamagedFileError,
    DataError,
    LeaseError,
    LlavaMedError,
)
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import MANIFEST, Location, to_json

_VERSION = "schema_version"
_CHECKSUM = "checksum"


class Facts(BaseModel):
    """Part of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    def replace(self, **changes: Any) -> Self:
        """Return the same facts with some changed."""
        return type(self).model_validate(self.model_dump() | changes)


class Manifest(Facts):
    """A manifest of one kind, with what a reader needs to know of the kind."""

    VERSION: ClassVar[int]
    FILE: ClassVar[str] = MANIFEST
    """Name of the file below the folder that it describes."""
    ERROR: ClassVar[type[LlavaMedError]]
    """Raised for a manifest of another version."""
    HINT: ClassVar[str]
    """What to do about another version."""


M = TypeVar("M", bound=Manifest)


def write(folder: Location, manifest: Manifest, *, name: str | None = None) -> None:
    """Write a manifest into a folder, whole or not at all.

    Args:
        folder: What it describes.
        manifest: What to write.
        name: Name of the file; by default that of the kind.

    Raises:
        StorageError: It cannot be written.
    """
    (folder / (name or manifest.FILE)).write_bytes(dump(manifest))


def dump(manifest: Manifest) -> bytes:
    """Return a manifest as `write` stores it; equal manifests give equal bytes."""
    body = {_VERSION: manifest.VERSION} | manifest.model_dump(mode="json")
    return to_json(body | {_CHECKSUM: fingerprint(body)})


def read(kind: type[M], folder: Location, *, name: str | None = None) -> M:
    """Read the manifest of a folder.

    Args:
        kind: Which manifest the folder should have.
        folder: What it describes.
        name: Name of the file; by default that of the kind.

    Raises:
        FileNotFoundError: There is none, so the folder is not complete.
        DamagedFileError: It is not as it was written.
        LlavaMedError: The kind's own error: another version of this program wrote it.
        StorageError: It cannot be read.
    """
    file = folder / (name or kind.FILE)
    body = file.read_json()
    if not isinstance(body, dict):
        raise DamagedFileError(f"{file}: is no manifest, it is damaged", "no manifest")
    version = body.pop(_VERSION, None)
    if version != kind.VERSION:
        found = "none" if version is None else version
        raise kind.ERROR(
            f"{file}: {_VERSION}={found}: this program reads {kind.VERSION}; {kind.HINT}"
        )
    checksum = body.pop(_CHECKSUM, None)
    if checksum != fingerprint({_VERSION: version} | body):
        reason = "differs from its checksum"
        raise DamagedFileError(f"{file}: {reason}, it is damaged", reason)
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        raise kind.ERROR(
            f"{file}: {keys}: not what {_VERSION}={version} holds; {kind.HINT}"
        ) from error


def find(kind: type[M], folder: Location) -> M | None:
    """Read the manifest of a folder, or return None where the folder is not complete.

    Raises:
        LlavaMedError: As `read` does.
    """
    try:
        return read(kind, folder)
    except FileNotFoundError:
        return None


class ImageFacts(Facts):
    """How the images of a dataset were made; the fields of `processor.images.ImageSettings`."""

    size: int
    aspect_ratio: Literal["square", "pad", "stretch"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    backend: Literal["exact", "fast"] = "exact"
    resample: Literal["bicubic", "bilinear"] = "bicubic"


class MadeFrom(Facts):
    """The settings a dataset was prepared with."""

    read: dict[str, Any]
    """The config's `read` section."""
    tokenizer: str
    """Hash of the tokenizer."""
    template: str
    """Hash of the chat template."""
    images: ImageFacts
    max_length: int
    store_images: Literal["pixels", "original"]
    rows_per_shard: int
    row_group_size: int
    drop_duplicates: bool


class Decontamination(Facts):
    """One removal of samples that evaluation sets have too."""

    against: dict[str, str]
    """Fingerprints of the evaluation sets by name."""
    by: tuple[str, ...]
    max_distance: int
    num_removed: int


class DatasetManifest(Manifest):
    """A prepared dataset. The counts are zero until its samples are counted."""

    VERSION: ClassVar[int] = 5
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "prepare the dataset again"

    made_from: MadeFrom
    source_hash: str
    """Hash of the source's listing."""
    num_rows: int
    """Rows of the source."""
    template: str
    """Name of the chat template in the config."""
    num_image_tokens: int
    image_token_id: int
    pad_token_id: int
    fingerprint: str = ""
    num_samples: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    num_images: int = 0
    num_truncated: int = 0
    num_duplicates: int = 0
    num_quarantined: int = 0
    quarantined: dict[str, int] = {}
    """Quarantined samples by reason."""
    unread_keys: dict[str, int] = {}
    """Keys of the source that nothing reads, with the number of samples that have them."""
    num_unnamed: int = 0
    """Samples without an id."""
    num_repeated_names: int = 0
    """Samples with the id of an earlier one."""
    revision: int = 0
    """How many times samples were removed after preparing."""
    decontaminated: tuple[Decontamination, ...] = ()


class ProcessorManifest(Manifest):
    """The processor that the datasets of a folder share."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "set data.directory to another folder, or delete this one"

    made_from: dict[str, Any]
    """The config's settings that it was made with."""


class FiguresManifest(Manifest):
    """A part of a corpus: the figures of some articles, after one step."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "make the part again: delete its folder, then start the same command"

    made_from: str
    """Fingerprint of the settings, and of the part of the step before."""
    fingerprint: str
    """Hash of the rows."""
    num_figures: int
    num_kept: int
    """Figures that nothing has refused."""
    refused: dict[str, int] = {}
    """Refused figures by reason."""


class FileFacts(Facts):
    """A file of a checkpoint."""

    bytes: int
    sha256: str


class Layout(Facts):
    """How the state of a checkpoint is shared out; another layout is converted at loading."""

    world_size: int
    zero_stage: int


class CheckpointManifest(Manifest):
    """The state of a stage to resume from."""

    VERSION: ClassVar[int] = 4
    ERROR: ClassVar[type[LlavaMedError]] = CheckpointError
    HINT: ClassVar[str] = "resume with the program that saved it, or delete it"

    stage: str
    fingerprint: str
    settings: dict[str, Any]
    """What the fingerprint is of."""
    step: int
    seconds: float
    """Time that the stage had trained."""
    loss: float
    """Mean loss over the steps since the checkpoint before."""
    layout: Layout
    files: dict[str, FileFacts]
    """Files of all ranks by relative path."""


class PartFacts(Facts):
    """Parameters of a part of the model."""

    num_trained: int
    num_frozen: int


class ExportManifest(Manifest):
    """A trained model that others load. The records of its steps lie beside it as a table."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = CheckpointError
    HINT: ClassVar[str] = "use the program that exported it, or another run name"

    stage: str
    fingerprint: str
    settings: dict[str, Any]
    """What the fingerprint is of."""
    datasets: dict[str, str]
    """Fingerprints of the datasets it was trained on, by name."""
    template: str
    """Name of the chat template in the config."""
    template_hash: str
    steps: int
    num_tokens: int
    loss_first: float
    loss_last: float
    tokens_per_second: float
    """Median over the steps."""
    mfu: float | None = None
    """Median model-FLOPs utilisation, where the peak of the GPU is known."""
    step_seconds: dict[str, float]
    """Percentiles by name, such as `p95`."""
    seconds: float
    parts: dict[str, PartFacts]
    logits_difference: float
    """Largest difference of two logits between what was trained and what was loaded back, as a part
    of the largest logit."""


class EstimateFacts(Facts):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


class GroupScores(Facts):
    """What is measured over a group of questions."""

    by: str
    """What the group is made by: `all`, or a field of the answers such as `question_type`."""
    name: str
    """What its questions have there."""
    part: Literal["all", "closed", "open", "pairs"]
    """Which of its questions: all, those of one answer type, or pairs, right only together."""
    num_questions: int
    """Of pairs: the number of pairs."""
    num_images: int
    """Number of clusters that the intervals rest on."""
    scores: dict[str, dict[str, EstimateFacts]]
    """Means by condition and measure."""
    gains: dict[str, dict[str, EstimateFacts]]
    """How much higher the trained model scores than each control, by measure, question by
    question. That over `blank_image` is called grounding."""


class ScoresManifest(Manifest):
    """What an evaluation found, and all that it depends on."""

    VERSION: ClassVar[int] = 1
    FILE: ClassVar[str] = "scores.json"
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "delete the evaluation's folder to score again"

    dataset: str
    scores: dict[str, dict[str, float | None]]
    """Values by control and metric."""
    samples: tuple[dict[str, str], ...]
    """A few questions with the answer of every control."""
    num_questions: int
    scorer: str
    export: str
    """URI of the model."""
    datasets: dict[str, str]
    """Fingerprints of the datasets it used, by name."""
    fingerprint: str
    report: str
    """URI of the page for people."""


class LeaseRecord(Manifest):
    """One attempt's hold on a folder."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = LeaseError
    HINT: ClassVar[str] = "end the attempt of the other program, then delete the file"

    attempt: int
    token: str
    holder: str
    host: str
    pid: int
    since: str
    beat: int
    released: bool
