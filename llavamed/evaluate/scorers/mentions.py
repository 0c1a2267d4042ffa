"""Find where an answer names lettered options, by letter or text, and which of them it rejects."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from llavamed.evaluate.scorers.letter_patterns import (
    BRACKETED,
    BUT,
    JOINED,
    NAME_GOES_ON,
    NAMED,
    NOR,
    NOT_A_LETTER,
    REACH,
    REJECTED_AFTER,
    REJECTED_BEFORE,
    REJECTED_LIST,
    SEEMING,
    STANDALONE,
)
from llavamed.evaluate.scorers.quantities import NUMBERED
from llavamed.evaluate.scorers.vocabulary import FUNCTION_WORDS
from llavamed.evaluate.scorers.words import CHINESE, canonical

_NO_NOUN = re.compile(
    r"\s*(?:$|[.,;:)\]!?/&\"']|(?:is|and|or|nor|not|but|rather|instead|over|then|because|since|as"
    r"|was|seems|looks|would|must|should)\b)"
)
"""What follows a letter that is no article."""
_PRONOUN_GOES_ON = re.compile(r"\s+(?:was|and|would|must|should)\b")


@dataclass(frozen=True, slots=True)
class Mention:
    """An option that an answer names, and where."""

    letter: str
    start: int
    end: int
    rejected: bool


def without_articles(text: str) -> list[str]:
    """Return the canonical words without articles, but with names: "hepatitis A", "type A"."""
    words = canonical(text)
    befores = ["", *words]
    return [
        word
        for word, before in zip(words[:-1], befores, strict=False)
        if word not in {"a", "an", "the"} or (word == "a" and before in NUMBERED)
    ] + words[-1:]


def blank(text: str, mentions: Iterable[Mention]) -> str:
    """Blank out mentions of options, because "cannot be determined" may be an option."""
    signs = list(text)
    for mention in mentions:
        signs[mention.start : mention.end] = " " * (mention.end - mention.start)
    return "".join(signs)


def find_mentions(text: str, options: Mapping[str, str]) -> list[Mention]:
    """Find all mentions of options, by letter or by text, in order."""
    spans = _text_spans(text, options)
    spans |= _letter_spans(text, options, spans)
    listed = {
        place
        for found in REJECTED_LIST.finditer(text)
        for place in range(found.start() + 1, found.end())
    }
    mentions = [
        Mention(letter, start, end, start in listed or _is_rejected(text, start, end))
        for (start, end), letter in sorted(spans.items())
    ]
    return _reject_together(text, mentions)


def _text_spans(text: str, options: Mapping[str, str]) -> dict[tuple[int, int], str]:
    """Find the texts of options in an answer, longest first, so that none counts inside another."""
    found: dict[tuple[int, int], str] = {}
    is_taken = bytearray(len(text))
    for letter, words in sorted(options.items(), key=lambda option: -len(option[1])):
        for start, end in _occurrences(text, words):
            if not any(is_taken[start:end]):
                is_taken[start:end] = bytes([True]) * (end - start)
                found[start, end] = letter
    return found


def _occurrences(text: str, words: str) -> list[tuple[int, int]]:
    """Return where the text of an option occurs, on word bounds, in any known spelling."""
    wanted = without_articles(words)
    if not wanted:
        return []
    if CHINESE.search(words):
        return [found.span() for found in re.finditer(re.escape(words.strip()), text)]
    direct = r"[\s/_,-]+".join(
        re.escape(each) for each in re.split(r"[\s/_,-]+", words.strip()) if each
    )
    places = [
        m.span()
        for m in re.finditer(rf"(?<!\w)(?<!\bnon[\s-]){direct}(?:s|es)?(?!\w)", text, re.IGNORECASE)
    ]
    if places:
        return places
    whole, joined = without_articles(text), "".join(wanted)
    if joined not in "".join(whole) and not {*wanted} <= {*whole}:
        return []
    bounds = [(m.start(), m.end()) for m in re.finditer(r"\S+", text)]
    for first in range(len(bounds)):
        for last in range(first, min(len(bounds), first + len(wanted) + 5)):
            piece = text[bounds[first][0] : bounds[last][1]]
            said = without_articles(piece)
            if first == last and piece.isupper() and set(wanted) <= set(said):
                said = wanted  # "CXR" is an X-ray
            if "".join(said) == joined and canonical(piece)[0] not in FUNCTION_WORDS:
                return [(bounds[first][0], bounds[last][1])]
    return []


def _letter_spans(
    text: str, options: Mapping[str, str], texts: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], str]:
    """Find the letters that stand for options, and not for an article, a pronoun or a name."""
    found: dict[tuple[int, int], str] = {}
    inside = {place for span in texts for place in range(*span)}

    def add(letter: str, start: int) -> None:
        if letter in options and start not in inside:
            found.setdefault((start, start + 1), letter)

    for match in NAMED.finditer(text):
        group = 1 if match[1] else 2
        letter, start = match[group], match.start(group)
        if not _is_article(text, letter.upper(), start):
            add(letter.upper(), start)
    for match in BRACKETED.finditer(text):
        add(match[1].upper(), match.start(1))
    for match in STANDALONE.finditer(text):
        start = match.start()
        if _stands_before(NOT_A_LETTER, text, start) or NAME_GOES_ON.match(text, match.end()):
            continue
        if _is_article(text, match[1], start):
            continue
        add(match[1], start)
    return found


def _reject_together(text: str, mentions: list[Mention]) -> list[Mention]:
    """Reject what is named with a rejected option: "no A, B or C", "A and C are wrong"."""
    together = list(mentions)
    gaps = ["", *(text[before.end : after.start] for before, after in pairwise(together))]
    goes_on = _go_on(gaps)
    for place in range(1, len(together)):
        before, mention = together[place - 1], together[place]
        same = before.letter == mention.letter and not re.search(r"[\w,;]", gaps[place])
        if before.rejected and (same or goes_on[place]):
            together[place] = replace(mention, rejected=True)
    rejects = False  # whether what follows the mention rejects it, and all that are joined to it
    for place in reversed(range(1, len(together))):
        before, mention = together[place - 1], together[place]
        rejects = rejects or bool(REJECTED_AFTER.match(text, mention.end))
        rejects = rejects and bool(JOINED.fullmatch(gaps[place]))
        if rejects:
            together[place - 1] = replace(before, rejected=True)
    return together


def _go_on(gaps: list[str]) -> list[bool]:
    """Tell for each gap between options whether commas join them from there up to an "or"."""
    found, is_joined = [], False
    for gap in reversed(gaps):
        if gap.strip() != ",":
            is_joined = bool(NOR.fullmatch(gap))
        found.append(is_joined)
    return found[::-1]


def _is_article(text: str, letter: str, start: int) -> bool:
    """Tell the article "A" and the pronoun "I" from the options of that name."""
    if letter not in {"A", "I"}:
        return False
    if _NO_NOUN.match(text, start + 1):
        return letter == "I" and bool(_PRONOUN_GOES_ON.match(text, start + 1))
    return True


def _is_rejected(text: str, start: int, end: int) -> bool:
    """Tell whether the words around a mention reject it."""
    return (
        _stands_before(REJECTED_BEFORE, text, start)
        or (_stands_before(SEEMING, text, start) and bool(BUT.match(text, end)))
        or bool(REJECTED_AFTER.match(text, end))
    )


def _stands_before(pattern: re.Pattern[str], text: str, place: int) -> bool:
    """Tell whether a pattern that ends where a text ends fits what precedes a place."""
    return bool(pattern.search(text, max(0, place - REACH), place))
