"""Score open answers by how much of the reference they give, or 0 if they contradict it."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from llavamed.evaluate.scorers.chinese import name_pattern, without_particles
from llavamed.evaluate.scorers.choice import contains, content, is_chosen
from llavamed.evaluate.scorers.quantities import NUMBERED, UNITS
from llavamed.evaluate.scorers.terms import ADJECTIVES, OPPOSITES, ORGANS, SIDES
from llavamed.evaluate.scorers.unpack import conclusions, weighed
from llavamed.evaluate.scorers.vocabulary import (
    BOUND,
    FUNCTION_WORDS,
    UNDECIDED,
)
from llavamed.evaluate.scorers.words import (
    CHINESE,
    Word,
    as_worded,
    canonical,
    join_compounds,
    words_of,
)

_LINKS = frozenset(["with", "without", "left", "right"])
_STOP = FUNCTION_WORDS - _LINKS
_PARTS = re.compile(
    r"\s*(?:,(?!\d)|;|/(?!\d)|\band\b|\bas well as\b|\bplus\b|&|、|和|及)\s*", re.IGNORECASE
)
_ALTERNATIVES = re.compile(r",(?!\d)|\bor\b|\bvs\b|\bversus\b|\band\b|/|;", re.IGNORECASE)
_OR = re.compile(r"\b(?:or|vs|versus)\b", re.IGNORECASE)
_NOTHING = re.compile(
    r"\W*(?:none|nothing(?:\s+abnormal)?|nil|no\s+(?:significant\s+|acute\s+|obvious\s+)?"
    r"(?:abnormalit(?:y|ies)|abnormal\s+findings?|findings?))"
    r"(?:\s+(?:(?:is|are)\s+)?(?:seen|present|found|identified|noted))?\W*",
    re.IGNORECASE,
)
_STAIN = re.compile(r"\bH\s*&\s*E\b", re.IGNORECASE)
_LEVEL = re.compile(r"[ltcs]\d+")
"""A vertebra."""
_CHINESE_LIST = re.compile("[,\uff0c、;\uff1b和及]")
_CHINESE_SIDE = re.compile("[左右双上下中前后]")
_PREPOSITION = re.compile(r"\b(?:of|in|on|at|within|along|from|to|near)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(minus)?(\d+(?:\.\d+)?)")
_TOLERANCE = 0.05
_SHORT = 3
"""Maximum number of words of an alternative in a list without "or"."""
_MANY = 3
"""An answer with this many alternatives more than the reference has parts is a list."""


def open_score(answer: str, reference: str, question: str) -> float:
    """Return how much of a reference an unpacked answer gives, between 0 and 1.

    Each part of the reference ("effusion and atelectasis" has two) counts alike. A part counts by
    the share of its words that the answer states, and only if its head noun is among them. An
    answer scores 0 where it names another side, level or property than the reference, denies what
    the reference states or states what it denies, gives another measure, lists many alternatives,
    or leaves the question open.
    """
    answer = weighed(next((part for part, is_final in conclusions(answer) if is_final), answer))
    if UNDECIDED.search(answer) and not UNDECIDED.search(reference):
        return 0.0
    if CHINESE.search(reference):
        return _chinese(answer, reference)
    if _NOTHING.fullmatch(reference) and _NOTHING.fullmatch(answer):
        return 1.0
    if re.fullmatch(r"\d+", " ".join(content(reference))):
        return float(bool(is_chosen(answer, reference)))
    said, reference = words_of(answer), _STAIN.sub("hematoxylin and eosin", reference)
    parts = [part for part in _PARTS.split(reference) if canonical(part)]
    wanted = [word for part in parts for word in words_of(part)]
    if not wanted:
        return float(_says_as_much(answer, reference, question))
    if measures(wanted) and bool(BOUND.search(answer)) != bool(BOUND.search(reference)):
        return 0.0
    said = join_compounds(said, {word.text for word in wanted})
    said = as_worded(said, {word.text for word in wanted}, _head(parts[-1]))
    if any(_is_of_other_side(said, words_of(part), wanted) for part in parts):
        return 0.0
    if _content(said) == _content(wanted):
        return 1.0
    if _is_list(answer, len(parts)) or _offers(answer, reference):
        return 0.0
    levels = {word.text for word in wanted if _LEVEL.fullmatch(word.text)}
    if levels and levels != {word.text for word in said if _LEVEL.fullmatch(word.text)}:
        return 0.0
    if opposes(said, wanted) or _denials_differ(said, wanted):
        return 0.0
    if len(parts) == 1 and _is_of_another_organ(said, wanted):
        return 0.0
    measured = measures_agree(said, wanted)
    if measured is not None:
        return float(measured)
    return sum(_part_score(said, part) for part in parts) / len(parts)


def _says_as_much(answer: str, reference: str, question: str) -> bool:
    """Tell whether an answer has the denial of a reference without content, "not seen here".

    Besides it may deny what was asked for: "the kidneys are not seen". Without a denial the answer
    must have all words of the reference.
    """
    words = set(canonical(reference))
    needed = words - FUNCTION_WORDS or words
    asked = {*canonical(question), "they"}
    if not needed:
        return answer.strip() == reference.strip()
    is_added = any(word.text not in asked or not word.denied for word in words_of(answer))
    return needed <= set(canonical(answer)) and not is_added


def _is_of_other_side(said: Sequence[Word], part: Sequence[Word], wanted: Sequence[Word]) -> bool:
    """Tell whether an answer has a place on the other side only: "right lung, left".

    A reference that names both sides of it, "left lung and right lung", has no other side.
    """
    place = [word.text for word in part]
    if len(place) < 2 or place[0] not in SIDES:
        return False
    stated = [word.text for word in said if not word.denied]
    mirrored = [*(SIDES - {place[0]}), *place[1:]]
    is_wanted = contains([word.text for word in wanted], mirrored)
    return contains(stated, mirrored) and not contains(stated, place) and not is_wanted


def _content(words: Sequence[Word]) -> list[tuple[str, bool]]:
    return sorted((word.text, word.denied) for word in words)


def _part_score(said: Sequence[Word], part: str) -> float:
    wanted = [word.text for word in words_of(part) if word.text not in _STOP]
    if not wanted:
        wanted = [word.text for word in words_of(part)]
    # "IIB" is enough for "stage IIB"
    wanted = [word for word in wanted if word not in NUMBERED] or wanted
    stated = Counter(word.text for word in said)
    found = sum((Counter(wanted) & stated).values())
    if found == len(wanted):
        return 1.0
    return found / len(wanted) if _head(part) in stated else 0.0


def _head(part: str) -> str:
    """Return the head noun: the last word before the first preposition."""
    phrase = _PREPOSITION.split(part.strip())[0] or part
    words = [word.text for word in words_of(phrase)] or [word.text for word in words_of(part)]
    return words[-1] if words else ""


def opposes(said: Sequence[Word], wanted: Sequence[Word]) -> bool:
    """Tell whether the answer names another side, level or property than the reference does."""
    stated = {word.text for word in said if not word.denied}
    for kind in OPPOSITES:
        there = {word.text for word in wanted} & kind
        if there and (stated & kind) - there:
            return True
    return False


def _denials_differ(said: Sequence[Word], wanted: Sequence[Word]) -> bool:
    """Tell whether a word of the reference is denied on one side only."""
    for word in wanted:
        mentions = [other.denied for other in said if other.text == word.text]
        if mentions and word.denied not in mentions:
            return True
    return False


def measures(words: Sequence[Word]) -> list[tuple[str, float]]:
    """Read numbers with units: each dimension with its value in the dimension's first unit."""
    found: list[tuple[str, float]] = []
    numbers: list[float] = []  # those that the next unit is of: "3 x 2 cm"
    for word in words:
        if number := _NUMBER.fullmatch(word.text):
            numbers.append(-float(number[2]) if number[1] else float(number[2]))
        elif word.text in UNITS:
            dimension, factor = UNITS[word.text]
            found += [(dimension, number * factor) for number in numbers]
            numbers = []
        elif word.text not in {"x", "×"}:
            numbers = []
    return found


def measures_agree(said: Sequence[Word], wanted: Sequence[Word]) -> bool | None:
    """Return whether the measures agree; None if the reference is more than a measure."""
    there = measures(wanted)
    if not there or 2 * len(there) < len([word for word in wanted if word.text not in _STOP]):
        return None
    given = measures(said)
    return all(
        any(
            dimension == other and abs(value - measured) <= _TOLERANCE * abs(value)
            for other, measured in given
        )
        for dimension, value in there
    )


def _is_of_another_organ(said: Sequence[Word], wanted: Sequence[Word]) -> bool:
    """Tell whether both name organs, and none in common: "renal cyst" for "liver cyst"."""
    organs = [
        {ADJECTIVES.get(word.text, word.text) for word in words if not word.denied} & ORGANS
        for words in (said, wanted)
    ]
    return all(organs) and not organs[0] & organs[1]


def _is_list(answer: str, num_parts: int) -> bool:
    """Tell whether an answer offers many alternatives."""
    pieces = [piece for piece in _ALTERNATIVES.split(answer) if canonical(piece)]
    offers = bool(_OR.search(answer))
    are_short = all(len(piece.split()) <= _SHORT for piece in pieces)
    return (offers and len(pieces) > num_parts + _MANY - 1) or (
        are_short and len(pieces) > num_parts + _MANY
    )


def _offers(answer: str, reference: str) -> bool:
    """Tell whether an answer offers something else for a word of the reference: "edema or clot"."""
    wanted = {word.text for word in words_of(reference)}
    for before, after in pairwise(_OR.split(answer)):
        pair = words_of(before)[-1:] + words_of(after)[:1]
        if sum(word.text in wanted for word in pair) == 1 and len(pair) == 2:
            return not _OR.search(reference)
    return False


def _chinese(answer: str, reference: str) -> float:
    """Score a Chinese answer by its characters, and by the items of a list where it is one."""
    items = [each for each in _CHINESE_LIST.split(reference) if re.search(r"\w", each)]
    if len(items) > 1 and not _CHINESE_SIDE.search(reference):
        return sum(_chinese(answer, each) for each in items) / len(items)
    wanted, said = without_particles(reference), without_particles(answer)
    for kind in ("左右双", "上下中", "前后", "黑白灰红", "横冠矢"):
        there = set(wanted) & set(kind)
        if there and (set(said) & set(kind)) - there:
            return 0.0
    denies = re.compile(r"不|没|无|未")
    if bool(denies.search(wanted)) != bool(denies.search(said)):
        return 0.0
    if len(items) > 1:
        return sum(without_particles(each) in said for each in items) / len(items)
    is_most = bool(said) and said in wanted and len(said) * 2 > len(wanted)
    if wanted and (re.search(name_pattern(wanted), said) or is_most):
        return 1.0
    if len(wanted) < 2 or wanted[-1] not in said:  # the last character carries the meaning
        return 0.0
    return sum((Counter(wanted) & Counter(said)).values()) / len(wanted)
