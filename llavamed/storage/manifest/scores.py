"""What an evaluation says of itself."""

from typing import ClassVar, Literal

from llavamed.errors import DataError, LlavaMedError
from llavamed.storage.manifest.typed import Facts, Manifest


class EstimateFacts(Facts):
    """A mean with its 95 % interval."""

    value: float
    """The mean."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


class GroupScores(Facts):
    """What is measured over a group of questions."""

    by: str
    """What the group is made by: `all`, or a field of the answers such as `question_type`."""
    name: str
    """What its questions have there."""
    part: Literal["all", "closed", "open", "pairs"]
    """Which of its questions: all, those of one answer type, or pairs, right only together."""
    num_questions: int
    """Number of questions, or of pairs."""
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
    """Name of the dataset with the questions."""
    scores: dict[str, dict[str, float | None]]
    """Values by control and metric."""
    samples: tuple[dict[str, str], ...]
    """A few questions with the answer of every control."""
    num_questions: int
    """Number of questions that every control answered."""
    scorer: str
    """Name and version of the rules."""
    export: str
    """URI of the model."""
    datasets: dict[str, str]
    """Fingerprints of the datasets it used, by name."""
    fingerprint: str
    """Fingerprint of everything that decides the scores."""
    report: str
    """URI of the page for people."""
