"""The input of a scorer, and its type."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

Options = Mapping[str, str] | tuple[str, ...] | None
"""Options by letter, the candidate answers of a closed question, or None."""


@dataclass(frozen=True, slots=True)
class Item:
    """One answered question."""

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
    organ: str = ""
    modality: str = ""
    other_references: tuple[str, ...] = ()
    """Further right answers; an item is scored by the best match."""
    given_id: str | int | float = field(default="", compare=False)
    """The id as a file of predictions writes it, where that may be a number."""


Rule = Callable[[Item], float]
"""Score one item between 0 and 1 by its `reference`."""


def score_best(rule: Rule, item: Item) -> float:
    """Return the highest score of an item over all its references."""
    references = (item.reference, *item.other_references)
    return max(rule(replace(item, reference=reference)) for reference in references)
