"""The policy that decides whether a model becomes the champion: a YAML file of its own."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from llavamed.config.section import Fraction, Section

Score: TypeAlias = str
"""A measure of a part of the questions, such as `closed_strict` or `open_token_f1`."""
Criterion = Literal["image", "question", "pair", "text"]
"""What a training sample must share with one evaluation sample: an image; a question; an image and
a question (`pair`); or a question and its answer (`text`)."""
Points = Annotated[float, Field(ge=-1, le=1)]


class GatePolicy(Section):
    """Rules that a model must meet to become the champion. A rule that is left out is not
    checked."""

    min_scores: Annotated[dict[Score, Fraction], Field(default_factory=dict)]
    """Minimum scores, which the lower bounds of their intervals must reach."""
    min_grounding: Annotated[dict[Score, Points], Field(default_factory=dict)]
    """Minimum gains over the blank image, which the lower bounds of their intervals must reach."""
    max_no_answer: Fraction | None = None
    """Maximum share of closed questions without an answer, at the upper bound of its interval."""
    max_overlap: Annotated[dict[Criterion, Fraction], Field(default_factory=dict)]
    """Maximum share of the samples of any training set that match a test question, by what they
    share. An unknown or missing training set breaks the rule."""
    export_verified: bool = True
    """The export must be complete, loaded back and compared when it was written."""
    licences: tuple[str, ...] | None = None
    """Licences that training samples may have. A sample without one has the licence `""`."""
    max_loss: Annotated[dict[Score, Fraction], Field(default_factory=dict)]
    """Maximum loss of a score against the champion's, at the lower bound of the interval of the
    paired difference. Without a champion the rule is met."""
