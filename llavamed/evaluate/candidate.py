"""The models that can be evaluated: anything that answers questions about images.

A `Candidate` says which model is meant and is sent to the workers; loading it there gives an
`Answerer`. Each kind of model is one file: `own_model`, `transformers_model`, `endpoint_model`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llavamed.evaluate.answers import Outcome
from llavamed.evaluate.questions import Question


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a model to one question."""

    text: str
    tokens: int
    outcome: Outcome
    seconds: float
    """The question's share of the time of its batch."""


class Answerer(Protocol):
    """A loaded model."""

    def answer(self, questions: Sequence[Question], max_new_tokens: int) -> list[Reply | None]:
        """Answer questions greedily, in their order; None for those without an answer.

        Raises:
            DataError: A question is longer than the model can read.
            EndpointError: The endpoint refuses every request, or is down.
        """

    def close(self) -> None:
        """Free the memory of the model."""


class Candidate(Protocol):
    """A model to evaluate, not loaded yet, so that it can be sent to workers."""

    @property
    def name(self) -> str:
        """Return the URI or name of the model."""

    @property
    def kind(self) -> Literal["export", "transformers", "endpoint"]:
        """Return the kind of model."""

    @property
    def fingerprint(self) -> str:
        """Return a hash that differs for a model that may answer differently."""

    @property
    def template(self) -> str:
        """Return the hash of its chat template."""

    @property
    def template_name(self) -> str | None:
        """Return the name of its chat template if it is one of ours."""

    def load(self) -> Answerer:
        """Load the model."""


def shares(seconds: float, tokens: Sequence[int]) -> list[float]:
    """Split the time of a batch in proportion to the tokens of each answer."""
    total = sum(tokens) or 1
    return [seconds * number / total for number in tokens]
