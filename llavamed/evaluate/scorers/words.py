"""Split a text into the words that the strict rules compare, with their denials."""

import re
import unicodedata
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from llavamed.evaluate.scorers.quantities import NUMBER_WORDS, NUMBERED, ROMAN, ROMAN_AFTER
from llavamed.evaluate.scorers.terms import ADJECTIVES, ENDING_IN_SES, PHRASES, PLURALS
from llavamed.evaluate.scorers.vocabulary import (
    DENIAL_AFTER,
    DENIAL_BEFORE,
    FUNCTION_WORDS,
)

_CLAUSE = re.compile(
    r"[.;!?\n](?!\d)|,(?!\d)|(?<!\w)-(?!\w)|[—–:()]|\b(?:but|however|although|though|while|whereas|"
    r"yet|except|because|since)\b|。|、",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"(?:minus)?\d+(?:\.\d+)?|[^\W\d_]+\d*[^\W\d_]*|\d+\w+|%", re.UNICODE)
_PHRASES = tuple((re.compile(rf"(?<!\w)(?:{pattern})(?!\w)"), word) for pattern, word in PHRASES)
_INSTEAD = re.compile(
    r"\b(?:rather\s+than|instead\s+of|as\s+opposed\s+to|unlike|and\s+not|but\s+not|not)\b",
    re.IGNORECASE,
)
_ADJECTIVE_OF = {noun: adjective for adjective, noun in ADJECTIVES.items()}
_ACRONYM = re.compile(r"\b[A-Z]{2,6}\b")
_MODALITIES = frozenset({"CT", "MR", "US", "PA", "AP", "XR"})
_SIDED = re.compile(r"\b(?:left|right|bilateral|both|L|R)\b(?!/O)")
_BOTH_SIDES = re.compile(r"\bB/L\b|\b(?:L\s*[/&+]\s*R|R\s*[/&+]\s*L)\b")
_SIDE = re.compile(r"(?<!/)\b(?:(?P<left>L)|R)\b(?!/)")
_LEVELS = re.compile(r"\b([ltcs])(\d+)\s*[-/–]\s*(\d+)\b")
"""Neighbouring vertebrae: "l4/5"."""
_TENS = re.compile(
    r"\b(twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)\s"
    r"(one|two|three|four|five|six|seven|eight|nine)\b"
)
CHINESE = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Word:
    """A word in canonical form, and whether the text denies it."""

    text: str
    denied: bool


def words_of(text: str) -> list[Word]:
    """Split a text into canonical words, and mark those that are denied.

    Spelling, plurals, number words, Roman numerals and names of the same thing become one form. A
    word is denied when the nearest word of its clause before it, function words aside, denies it
    ("not on the left", "without contrast", "rather than the right"), or when its clause ends in a
    denial ("a pneumothorax is not seen").
    """
    words: list[Word] = []
    for clause in clauses(text):
        tokens = canonical(clause)
        denied_after = _denied_after(clause)
        open_denial = False
        for position, token in enumerate(tokens):
            if token in _DENIERS or (token.endswith("nt") and token in DENIAL_BEFORE):
                open_denial = True
                continue
            if token in FUNCTION_WORDS or token in {"than", "instead", "rather", "opposed"}:
                continue
            denied = open_denial or denied_after > position
            words.append(Word(token, denied))
            open_denial = open_denial and _continues(tokens, position)
    return words


def join_compounds(words: Sequence[Word], known: Container[str]) -> list[Word]:
    """Join two words that are written as one among the known words: "gall stone", "gallstone"."""
    joined: list[Word] = []
    for word in words:
        before = joined[-1] if joined else None
        if before and before.text not in known and before.text + word.text in known:
            joined[-1] = Word(before.text + word.text, before.denied or word.denied)
        else:
            joined.append(word)
    return joined


def as_worded(said: Sequence[Word], wanted: Container[str], head: str = "") -> list[Word]:
    """Exchange adjectives of organs and their nouns, where the wanted words have the other one.

    Args:
        said: The words of an answer.
        wanted: The words of the reference.
        head: Head noun of the reference, which no adjective stands for: an aortic arch is no aorta.
    """
    worded = []
    for word in said:
        noun, adjective = ADJECTIVES.get(word.text, ""), _ADJECTIVE_OF.get(word.text, "")
        other = noun if noun != head and noun in wanted else adjective
        use_other = word.text not in wanted and other in wanted
        worded.append(replace(word, text=other) if use_other else word)
    return worded


def spell_out(text: str, known: str) -> str:
    """Replace acronyms by the words of the known text that have these initials, in order."""
    words = re.findall(r"[A-Za-z]+", known)
    initials = "".join(word[0] for word in words).upper()

    def full(found: re.Match[str]) -> str:
        is_short = len(found[0]) == 2
        if is_short and (found[0] in _MODALITIES or found[0] != initials):
            return found[0]
        start = initials.find(found[0])
        return " ".join(words[start : start + len(found[0])]) if start >= 0 else found[0]

    return _ACRONYM.sub(full, text)


def spell_sides(text: str, reference: str) -> str:
    """Replace L, R and B/L by sides, where a reference names one."""
    if not _SIDED.search(reference) and not _SIDED.search(reference.lower()):
        return text
    if re.fullmatch(r"\W*[lr]\W*", text):
        text = text.upper()
    text = _BOTH_SIDES.sub("bilateral", text)
    return _SIDE.sub(lambda found: "left" if found["left"] else "right", text)


def clauses(text: str) -> Iterator[str]:
    """Split a text into clauses, beyond which a denial does not reach."""
    text = _INSTEAD.sub(" not ", text)
    for part in _CLAUSE.split(text):
        if part and part.strip():
            yield part


def canonical(text: str) -> list[str]:
    """Return the canonical words of a text in order, with function words and denials."""
    return list(_canonical(text))


@lru_cache(maxsize=4096)
def _canonical(text: str) -> tuple[str, ...]:
    text = re.sub(r"\bUS\b", "ultrasound", unicodedata.normalize("NFKC", text)).lower()
    text = re.sub(r"['\u2019\u02bc]", "", text)
    text = re.sub(r"(?<!\S)(?:[-\u2212]|minus\s)(?=\d)", "minus", text)
    text = re.sub(r">\s*(?=\d)", " more than ", re.sub(r"<\s*(?=\d)", " less than ", text))
    text = _LEVELS.sub(r"\1\2 \1\3", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)[,·](?=\d)", ".", text).replace("°", " degree ")
    text = re.sub(r"(?<=\d)(?=(?:mm|cm|ml|cc|kg|mg|hu)\b)", " ", text)
    text = re.sub(r"(?<=\d)\s*(?:x|×)\s*(?=\d)", " x ", text)
    text = re.sub(r"\bnon(?!etheless)(?=[a-z]{5})", "non ", text)
    text = " ".join(re.sub(r"[-/_]", " ", text).split())
    for pattern, word in _PHRASES:
        text = pattern.sub(word, text)
    text = _TENS.sub(lambda found: str(_number(found[1]) + _number(found[2])), text)
    tokens = _TOKEN.findall(text)
    befores = ["", *tokens]
    return tuple(_form(token, before) for token, before in zip(tokens, befores, strict=False))


def _number(word: str) -> int:
    return int(NUMBER_WORDS[word])


def _form(token: str, before: str) -> str:
    if token in NUMBER_WORDS:
        return NUMBER_WORDS[token]
    if token in ROMAN:
        return ROMAN[token]
    if token in ROMAN_AFTER and before in NUMBERED:
        return ROMAN_AFTER[token]
    if re.fullmatch(r"\d+\.0+", token):
        return token.split(".")[0]
    if token in FUNCTION_WORDS or token in DENIAL_BEFORE:
        return token
    return spelling(singular(token))


def spelling(token: str) -> str:
    """Fold British into American spelling, and adverbs into adjectives: tumour, focally."""
    if len(token) > 3:
        token = token.replace("ae", "e").replace("oe", "e")
        token = re.sub(r"(?<=\w\w)our(?=s?$|ed$|ing$|less$)", "or", token)
        token = re.sub(r"(?<=\w)is(?=(?:e|ed|ing|ation)s?$)", "iz", token)
        token = re.sub(r"(?<=(?:nt|ib|it|et))re(?=s?$)", "er", token)
        token = re.sub(r"(?:(?<=ous)|(?<=\w\w[ao][lr]))ly$", "", token)
        token = "gray" if token == "grey" else token
    return token


def singular(token: str) -> str:
    """Return the singular of a word."""
    if token in PLURALS:
        return PLURALS[token]
    if len(token) > 7 and ENDING_IN_SES.search(token):
        return token[:-3] + "sis"
    if token.endswith(("sses", "xes", "ches", "shes")):
        return token[:-2]
    if len(token) > 3 and token.endswith("s") and not token.endswith(("ss", "us", "is")):
        return token[:-3] + "y" if token.endswith("ies") and len(token) > 4 else token[:-1]
    return token


_DENIERS = frozenset(DENIAL_BEFORE)


def _denied_after(clause: str) -> int:
    """Return the number of words before a phrase that denies what precedes it."""
    found = list(DENIAL_AFTER.finditer(clause))
    return len(canonical(clause[: found[-1].start()])) if found else 0


def _continues(tokens: Sequence[str], position: int) -> bool:
    """Return whether a denial continues after a word, to the end of a noun phrase or list."""
    after = tokens[position + 1] if position + 1 < len(tokens) else ""
    return bool(after) and after not in {"is", "are", "was", "were", "than"}
