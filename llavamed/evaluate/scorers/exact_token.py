"""Token recall of open answers and equality of closed ones: the measure of LLaVA-Med's tables.

Words are compared as words, without articles and with number words as digits. Nothing is read out
of a sentence beyond that: use `strict` to judge, this rule to compare.
"""

from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.vqa import is_closed_correct, open_recall

NAME = "exact-token/1"


def score(item: Item) -> float:
    """Score one item: recall of the reference's words, or whether a closed answer is given."""
    if item.answer_type == "OPEN":
        return open_recall(item.prediction, item.reference)
    return float(is_closed_correct(item.prediction, item.reference))
