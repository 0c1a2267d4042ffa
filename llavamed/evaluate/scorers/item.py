"""What a scorer reads, and what a scorer is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

Options = Mapping[str, str] | tuple[str, ...] | None
"""Lettered options by their letter, the candidate answers of a closed question, or none."""


@dataclass(frozen=True, slots=True)
class Item:
    """One answered question, as every scorer reads it."""

    id: str
    question: str
    prediction: str
    reference: str
    answer_type: str
    """`OPEN` or `CLOSED`."""
    options: Options = None
    image: str = ""
    """Name or hash of the image; items of one image form a cluster. Empty where unknown."""
    question_type: str = ""
    domain: str = ""
    other_references: tuple[str, ...] = ()
    """Further answers that are right; an item scores by the best of all."""


Rule = Callable[[Item], float]
"""Score one item between 0 and 1 by its `reference`."""


def score_best(rule: Rule, item: Item) -> float:
    """Score one item by that of its references which gives most."""
    references = (item.reference, *item.other_references)
    return max(rule(replace(item, reference=reference)) for reference in references)
