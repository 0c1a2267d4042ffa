"""The `evaluation` section of a stage: how the model it trained is scored."""

from typing import Annotated, Literal

from pydantic import Field

from llavamed.config.section import Section

Control = Literal["blank_image", "noise", "shuffled", "question_only", "untrained", "majority"]


class Evaluation(Section):
    """Answers to test questions, by the stage's model and by controls that should do worse."""

    data: str
    """Dataset of questions."""
    majority_from: str | None = None
    """Dataset whose most frequent answer to each type of question is the majority control. By
    default `data`. Its questions need an answer type."""
    controls: tuple[Control, ...] = ("blank_image", "untrained", "majority")
    """Conditions to answer under, in addition to the unchanged question: pictures in one colour,
    with random pixels or of another item; no picture; the model before the curriculum; the most
    frequent answer."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2**16)] = 64
    """Maximum number of tokens per answer. Decoding is greedy."""
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 32
    """Number of questions answered at once."""
    num_cards: Annotated[int, Field(ge=0, le=10_000)] = 60
    """Number of samples shown on the HTML page."""

    @property
    def majority(self) -> str:
        """The dataset whose most frequent answers are the majority control."""
        return self.majority_from or self.data

    @property
    def datasets(self) -> tuple[str, str]:
        """All datasets that the evaluation reads."""
        return self.data, self.majority
