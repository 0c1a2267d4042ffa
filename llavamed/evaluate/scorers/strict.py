"""The strict rules: what a careful reader accepts, as far as rules can tell.

An answer is taken out of its packaging, a conclusion beats what stands before it, and words are
compared as words: "no" is not in "normal". What no rule decides counts as no answer: the score
may be too low, but it never rests on a guess.
"""

from collections.abc import Mapping

from llavamed.evaluate.scorers.absence import says_yes
from llavamed.evaluate.scorers.chinese import fold
from llavamed.evaluate.scorers.choice import is_chosen
from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.scorers.lettered import (
    chosen_letter,
    has_letter,
    reference_letter,
    without_repetitions,
)
from llavamed.evaluate.scorers.open_answer import open_score
from llavamed.evaluate.scorers.unpack import unpack
from llavamed.evaluate.scorers.words import spell_out, spell_sides
from llavamed.evaluate.scorers.yes_no import polarity

NAME = "strict/5"
"""Name and version, reported with every score."""


def score(item: Item) -> float:
    """Score one item: 1 or 0 for a closed question, between 0 and 1 for an open one.

    Which rule applies is decided by the options and the reference, not by the answer type: a
    question with lettered options asks for a letter, and one whose reference is yes or no, as a
    word, asks for that.
    """
    return verdict(item) or 0.0


def is_answered(item: Item) -> bool:
    """Return whether a prediction makes a choice; an answer to an open question always does."""
    return verdict(item) is not None


def verdict(item: Item) -> float | None:
    """Score one item; None if the answer makes no choice."""
    answer = unpack(item.prediction, item.question)
    if isinstance(item.options, Mapping):
        distinct, letters = without_repetitions(item.options)
        letter = letters.get(reference_letter(item.reference, item.options) or "") or (
            reference_letter(item.reference, distinct)
        )
        if letter is not None:
            chosen = _chosen(answer, item.question, item.options)
            if chosen is None and len(distinct) < len(item.options):
                chosen = _chosen(answer, item.question, distinct)
            return None if chosen is None else float(letters[chosen] == letter)
    answer, reference = fold(answer), fold(item.reference)
    wanted = polarity(reference)
    if wanted is not None:
        said = says_yes(answer, item.question, reference)
        return None if said is None else float(said is wanted)
    answer, reference = (spell_sides(each, reference) for each in (answer, reference))
    answer, reference = spell_out(answer, reference), spell_out(reference, answer)
    if item.answer_type == "OPEN":
        return open_score(answer, reference, item.question)
    candidates = item.options if isinstance(item.options, tuple) else ()
    is_right = is_chosen(answer, reference, candidates, item.question)
    return None if is_right is None else float(is_right)


def _chosen(answer: str, question: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer chooses, also by saying yes or no where options do."""
    options = {each: spell_out(text, answer) for each, text in options.items()}
    if not {"L", "R"} & options.keys():
        sides = " ".join(options.values())
        answer = spell_sides(answer, sides)
        options = {each: spell_sides(text, sides) for each, text in options.items()}
    for text in options.values():
        answer = spell_out(answer, text)
    chosen = chosen_letter(answer, options)
    by_polarity = {polarity(text): letter for letter, text in options.items() if text.isalpha()}
    yes, no = by_polarity.get(True), by_polarity.get(False)
    if yes is None or no is None or chosen not in {None, yes, no} or has_letter(answer, options):
        return chosen
    said = says_yes(answer, question, "")
    return None if said is None else yes if said else no
