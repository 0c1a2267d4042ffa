"""The rules with which MedEvalKit scores, for comparison with tables made by it.

Source: MedEvalKit, `utils/utils.py`, rewritten from what it computes. Known faults, kept on
purpose: "yes" and "no" are looked for as substrings; a letter in brackets is not understood; an
answer that names no option is given to the option whose text is most like it, so that noise is
right by chance.
"""

import re
from collections.abc import Mapping
from difflib import SequenceMatcher

from llavamed.evaluate.scorers.item import Item

NAME = "medevalkit/2"

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_MARKS = (
    *("**answer**:", "**answer**", "*answer*:", "**answer:**"),
    *("answer is", "answer:", "答案:", "final answer", "final answer is"),
)
"""An answer begins after the last of each, in this order."""


def score(item: Item) -> float:
    """Score one item by its option, its yes or no, or equality with the reference."""
    said, wanted = item.prediction.lower(), item.reference.strip().lower()
    if isinstance(item.options, Mapping):
        return float(_chooses(said, wanted, item.options))
    said = _unpack(_content(said).strip())
    if wanted in {"yes", "no"}:
        said = said.replace("\n", "").replace(".", "")
        return float(("yes" in said) != ("no" in said) and wanted in said)
    return float(said == wanted)


def _chooses(said: str, wanted: str, options: Mapping[str, str]) -> bool:
    """Tell whether an answer equals a letter or its text, or else is most like its text."""
    letters = {letter.lower(): text.lower() for letter, text in options.items()}
    first, *_ = paragraphs = said.split("\n\n")
    last = paragraphs[-1].split(".")[0]
    said = first if first in letters else last if last in letters else said
    said = _unpack(said).strip().replace("\n", "")
    head = said.split(".")[0].split(":")[-1]
    if head in letters:
        return head == wanted
    if head in letters.values():
        return head == letters.get(wanted)
    likeness = {each: SequenceMatcher(None, letters[each], said).ratio() for each in letters}
    return max(likeness, key=likeness.__getitem__) == wanted


def _unpack(said: str) -> str:
    """Return the content of a box or tags, after the last mark of an answer."""
    said = _content(said)
    for mark in _MARKS:
        said = said.split(mark)[-1]
    return said


def _content(said: str) -> str:
    """Return the content of a box or tags, or the text where there is none."""
    if "boxed" in said:
        return _boxed(said)
    return " ".join(_TAGGED.findall(said)).strip() or said


def _boxed(said: str) -> str:
    """Return the content of the last box, or `None` as a text where none is closed."""
    _, is_there, content = said.rpartition("\\boxed{")
    depth = 0
    for at, sign in enumerate(content if is_there else ""):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0:
            return content[:at].strip()
    return "None"
