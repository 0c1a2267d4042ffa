"""The rules with which MedEvalKit scores, for comparison with tables made by it.

Source: MedEvalKit, `utils/utils.py`, rewritten from what it computes. Known faults, kept on
purpose: "yes" and "no" are looked for as substrings, and an answer that names no option is given to
the option whose text is most like it, so that noise is right by chance.
"""

from collections.abc import Mapping
from difflib import SequenceMatcher

from llavamed.evaluate.scorers.item import Item

NAME = "medevalkit/1"


def score(item: Item) -> float:
    """Score one item by its option, its yes or no, or equality with the reference."""
    said, wanted = item.prediction.strip().lower(), item.reference.strip().lower()
    if isinstance(item.options, Mapping):
        return float(_option(said, item.options).lower() == wanted)
    if wanted in {"yes", "no"}:
        return float(("yes" in said) != ("no" in said) and wanted in said)
    return float(said == wanted)


def _option(said: str, options: Mapping[str, str]) -> str:
    """Return the letter that an answer equals, else the option whose text is most like it."""
    letter = said.strip(" .():")
    for each in options:
        if letter == each.lower():
            return each
    alike = {
        each: SequenceMatcher(None, said, text.lower()).ratio() for each, text in options.items()
    }
    return max(alike, key=lambda each: alike[each])
