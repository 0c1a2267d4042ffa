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

    VERSION: ClassVar[int] = 2
    FILE: ClassVar[str] = "scores.json"
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "delete the evaluation's folder to score again"

    dataset: str
    """Name of the questions: a dataset, or a benchmark with its version."""
    split: str
    """Name of the split, where the questions have one."""
    questions_fingerprint: str
    """Hash of the questions and images."""
    num_questions: int
    """Number of questions that were answered under every condition."""
    num_images: int
    """Number of images, or items without one, that the intervals rest on."""
    model: str
    """URI or name of the model."""
    model_fingerprint: str
    """Of an export: of what it was trained with. Else a hash of the model's files or name."""
    template: str
    """Hash of the chat template."""
    prompt: str
    """What the benchmark adds to each question, or empty."""
    decoding: str
    """How answers were generated."""
    rules: dict[str, str]
    """Name and version of the rules of each measure."""
    conditions: tuple[str, ...]
    """What the model was given; the first is the question as it is, the others are controls."""
    groups: tuple[GroupScores, ...]
    """Everything that is measured, by group of questions."""
    failures: dict[str, int]
    """Answers under the first condition by how they fail."""
    overlaps: dict[str, dict[str, int]] | None
    """Of each training set, how many samples it has and how many share an `image`, a `question`, a
    `pair` or a `text` with the questions. None where a training set is unknown."""
    samples: tuple[dict[str, str], ...]
    """A few questions with the answer under every condition."""
    datasets: dict[str, str]
    """Fingerprints of the prepared datasets it used, by name."""
    fingerprint: str
    """Of all that decides the scores."""
    report: str
    """URI of the page for people."""

    @property
    def scores(self) -> dict[str, dict[str, float | None]]:
        """Return means by condition and `part_measure`, such as `closed_strict`."""
        found: dict[str, dict[str, float | None]] = {name: {} for name in self.conditions}
        for group in self.groups:
            if group.by == "all" and group.part != "all":
                for condition, values in group.scores.items():
                    found[condition] |= {
                        f"{group.part}_{name}": estimate.value for name, estimate in values.items()
                    }
        return found
