"""Define the turns of a dialogue, whose texts hold a placeholder for each image."""

from dataclasses import dataclass
from typing import Literal

IGNORE_INDEX = -100
"""Label of a token that is not trained."""

IMAGE_PLACEHOLDER = "<image>"
"""Stands for an image in a turn's text; one for each image, in order."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance. The `text` of a user turn may hold image placeholders."""

    role: Role
    text: str
    trained: bool = True
    """Whether the tokens of an answer, its end included, are trained; ignored for other roles."""
