"""What can be evaluated: anything that answers questions about pictures.

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
    """What a model answers to one question."""

    text: str
    tokens: int
    outcome: Outcome
    seconds: float
    """The question's share of the time of all that were answered with it."""


class Answerer(Protocol):
    """A loaded model."""

    def answer(self, questions: Sequence[Question], max_new_tokens: int) -> list[Reply | None]:
        """Answer questions greedily, in their order; None where no answer came.

        Raises:
            DataError: A question is longer than the model can read.
            EndpointError: The endpoint refuses every request, or is down.
        """

    def close(self) -> None:
        """Free what the model holds."""


class Candidate(Protocol):
    """A model to be evaluated, as a small value."""

    @property
    def name(self) -> str:
        """Return the URI or name of the model."""

    @property
    def kind(self) -> Literal["export", "transformers", "endpoint"]:
        """Return what kind of model it is."""

    @property
    def fingerprint(self) -> str:
        """Return a hash that differs for a model that may answer differently."""

    @property
    def template(self) -> str:
        """Return the hash of the template that makes its prompts."""

    def load(self) -> Answerer:
        """Load the model."""


def shares(seconds: float, tokens: Sequence[int]) -> list[float]:
    """Share out the time of a batch by the tokens of its answers."""
    total = sum(tokens) or 1
    return [seconds * number / total for number in tokens]
