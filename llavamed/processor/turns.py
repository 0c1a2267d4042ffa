"""What a dialogue is made of: turns, with a placeholder in their text where an image goes."""

from dataclasses import dataclass
from typing import Literal

IGNORE_INDEX = -100
"""Label of a token that is not trained."""

IMAGE_PLACEHOLDER = "<image>"
"""Stands in a turn's text where an image goes; one for each image, in order."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance. `text` of a user turn may hold image placeholders."""

    role: Role
    text: str
    trained: bool = True
    """Whether the tokens of an answer are trained, its end included; ignored for other roles."""
