"""The `evaluation` section of a stage: how the model it trained is scored."""

from typing import Annotated

from pydantic import Field

from llavamed.config.section import Section


class Evaluation(Section):
    """Answering test questions with the stage's model and by two controls that must do worse."""

    data: str
    """The dataset of questions."""
    majority_from: str | None = None
    """The dataset whose most frequent closed answer is the majority control; none: `data`."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens an answer, greedily."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Questions answered at once."""
    num_cards: Annotated[int, Field(ge=0)] = 60
    """Samples shown on the HTML page."""

    @property
    def majority(self) -> str:
        """The dataset whose most frequent closed answer is the majority control."""
        return self.majority_from or self.data

    @property
    def datasets(self) -> tuple[str, str]:
        """All it reads."""
        return self.data, self.majority
