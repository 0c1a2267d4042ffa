"""What an evaluation says of itself."""

from collections.abc import Sequence
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
    """Scores of one group of questions."""

    by: str
    """Field that the questions are grouped by, such as `question_type`, or `all`."""
    name: str
    """Value of that field in this group."""
    part: Literal["all", "closed", "open", "pairs"]
    """All questions of the group, those of one answer type, or probing pairs."""
    num_questions: int
    """Number of questions, or of pairs."""
    num_images: int
    """Number of clusters, which the intervals are based on."""
    scores: dict[str, dict[str, EstimateFacts]]
    """Means by condition and measure."""
    gains: dict[str, dict[str, EstimateFacts]]
    """Paired difference between the trained model and each control, by measure. The difference
    to `blank_image` is called grounding."""


def row_name(condition: str, conditions: Sequence[str]) -> str:
    """Return the name that tables give to a condition.

    `trained` means something beside `untrained` only; of other models it is not known.
    """
    return "model" if condition == "trained" and "untrained" not in conditions else condition


class ScoresManifest(Manifest):
    """Scores of an evaluation, and everything that they depend on."""

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
    """Number of images, or items without one, which the intervals are based on."""
    model: str
    """URI or name of the model."""
    model_fingerprint: str
    """Training fingerprint of an export; otherwise a hash of the model's files or name."""
    template: str
    """Hash of the chat template."""
    prompt: str
    """What the benchmark appends to each question, or empty."""
    decoding: str
    """How answers were generated."""
    rules: dict[str, str]
    """Name and version of the rules of each measure."""
    conditions: tuple[str, ...]
    """Conditions; the first is the unchanged question, the others are controls."""
    groups: tuple[GroupScores, ...]
    """Scores by group of questions."""
    failures: dict[str, int]
    """Number of answers under the first condition by category of failure."""
    overlaps: dict[str, dict[str, int]] | None
    """For each training set its number of samples, and how many share an `image`, `question`,
    `pair` or `text` with the questions. None if a training set is unknown."""
    samples: tuple[dict[str, str], ...]
    """A few questions with the answer under every condition."""
    datasets: dict[str, str]
    """Fingerprints of the prepared datasets by name."""
    template_name: str | None = None
    """Name of the chat template. None if it is none of ours."""
    fingerprint: str
    """Hash of everything that decides the scores."""
    report: str
    """URI of the HTML report."""

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
