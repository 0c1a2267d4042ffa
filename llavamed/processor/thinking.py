"""Make a chat template say what happens to the thinking part of an answer: `<think>...</think>`.

The Jinja text itself says it, in a comment, so that datasets, exports and the hash of the template
know it without another setting. What transformers renders from that text is what we train.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from llavamed.config.model import Thinking
from llavamed.errors import ConfigError
from llavamed.processor.turns import Turn

OPENING = "<think>"
PART = re.compile(r"<think>.*?</think>\n*", re.DOTALL)
"""A thinking part and the line breaks after it."""
_SAYS = re.compile(r"\{#- thinking: (mask|leave_out) -#\}")
_EMPTY = ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n", "<think>\n")
"""What templates write where an answer has no thinking part, and where a prompt begins one."""


def with_thinking(source: str, thinking: Thinking) -> str:
    """Return a chat template that says what happens to thinking parts.

    Args:
        source: The Jinja text of a chat template.
        thinking: `train` for no change; `mask` to train answers without their thinking parts, which
            stay in the text; `leave_out` for a text and prompts without them.

    Raises:
        ConfigError: It already says something else, as the template of an export may.
    """
    said = thinking_of(source)
    if said == thinking:
        return source
    if said != "train":
        raise ConfigError(
            f"model.thinking={thinking}: the chat template comes from a model that was trained "
            f"with {said}, and says so; set it to {said}"
        )
    comment = f"{{#- thinking: {thinking} -#}}"
    if thinking == "mask":
        return comment + source
    written = (part.replace("\n", "\\n") for part in _EMPTY)
    filters = "|".join(f"replace('{part}', '')" for part in written)
    return f"{comment}{{% filter {filters} +%}}{source}{{% endfilter %}}"


def thinking_of(source: str) -> Thinking:
    """Return what a chat template says of thinking parts."""
    match _SAYS.match(source):
        case re.Match() as said if said[1] == "mask":
            return "mask"
        case re.Match():
            return "leave_out"
        case _:
            return "train"


def without_thinking(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns with answers that have no thinking part."""
    return [
        replace(turn, text=PART.sub("", turn.text)) if turn.role == "assistant" else turn
        for turn in turns
    ]


def mask_thinking(text: str, trained: list[bool], start: int, stop: int) -> None:
    """Mark the thinking parts of an answer as not trained.

    Args:
        text: The rendered dialogue.
        trained: Of each character, whether it is trained; changed in place.
        start: Where the trained answer begins. The prompt before it may have opened the part.
        stop: Where the answer ends.
    """
    before = text[:start].rstrip()
    first = len(before) - len(OPENING) if before.endswith(OPENING) else start
    for part in PART.finditer(text, first, stop):
        for place in range(max(start, part.start()), part.end()):
            trained[place] = False
