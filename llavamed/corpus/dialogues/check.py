"""The second model: how well a dialogue is supported by the notes it was written from."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from llavamed.corpus.dialogues.prompt import SpokenTurn
from llavamed.llm.request import Message, Request

MAX_TOKENS = 200
"""The scores take a tenth of this."""

_SYSTEM = """\
You check training material for a medical assistant that looks at images.
You are given notes on one image and a dialogue about it, which another model wrote from the notes.
The reader of the dialogue sees the image and not the notes. Give two scores from 1 to 5.

grounded: 5 if everything that the answers state follows from the notes or is common knowledge of
this kind of image; 3 if one detail goes beyond them; 1 if an answer contradicts them or invents a
finding.
visible: 5 if every answer could be given by an expert who only looks at the image; 3 if one answer
needs something else, such as the history of the patient; 1 if most do."""


class DialogueScores(BaseModel):
    """Two scores from 1 to 5."""

    grounded: Annotated[int, Field(ge=1, le=5)]
    visible: Annotated[int, Field(ge=1, le=5)]


def check_request(turns: Sequence[SpokenTurn], notes: str) -> Request:
    """Return the request for the scores of a dialogue."""
    spoken = "\n".join(f"{turn.speaker}: {turn.text}" for turn in turns)
    asked = f"{notes}\n\nThe dialogue:\n{spoken}"
    return Request(
        (Message("system", (_SYSTEM,)), Message("user", (asked,))),
        max_tokens=MAX_TOKENS,
        schema=DialogueScores,
    )
