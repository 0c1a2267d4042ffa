"""Closed questions whose reference is neither yes, no nor a letter: a side, a plane, a modality."""

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from llavamed.evaluate.scorers.chinese import name_pattern
from llavamed.evaluate.scorers.quantities import COUNTS, UNITS
from llavamed.evaluate.scorers.terms import CLASSES, COMPLEMENTS, POSITIONS
from llavamed.evaluate.scorers.unpack import conclusions, weighed
from llavamed.evaluate.scorers.vocabulary import (
    AGREEMENT,
    BOUND,
    FUNCTION_WORDS,
    UNDECIDED,
)
from llavamed.evaluate.scorers.words import CHINESE, Word, as_worded, canonical, words_of

_OF_PATIENT = re.compile(r"\bpatient['’]?s\s+(left|right)\b")
_OF_IMAGE = re.compile(
    r"\b(?:left|right)\s+(?:side\s+)?of\s+the\s+(?:image|picture|film|screen)", re.I
)
"""Sides of the picture, which are those of the patient mirrored."""
_SPARED = re.compile(
    r"(?:(?<![^.;,\n])[^.;,\n]*)?\b(?:(?:is|are|appears?|looks?)\s+"
    r"(?:normal|clear|spared|unaffected|intact|healthy|uninvolved)|(?:left|right)\s+\w+\s+clear)\b"
    r"|\bsparing\s+(?:of\s+)?the\s+\w+",
    re.IGNORECASE,
)
"""A clause about a place where nothing is."""
_OFFERED = re.compile(
    r"[,:]\s*(?P<list>[^,?:]+(?:,[^,?:]+)*?,?\s*\bor\s+[^,?:]+?)\s*\?*\s*\Z", re.I
)
"""The answers that a question offers at its end: "Which is bigger, liver or kidney?"."""
_BETWEEN = re.compile(r",|\bor\b", re.IGNORECASE)
_COMPARED = re.compile(
    r"\b(?P<how>\w+er|(?:more|less)\s+\w+)\s+(?:in\s+size\s+)?than\s+(?P<other>[^.,;()\n]+)", re.I
)
"""What an answer compares with: "the liver is bigger than the kidney"."""
_SIZES = dict.fromkeys(["bigger", "larger", "greater", "biggest", "largest"], 1)
_SIZES |= dict.fromkeys(["smaller", "smallest", "lesser"], -1)
_AMOUNTS = frozenset({"single", "multiple"})
_PLACES = frozenset().union(*POSITIONS)
_DENIERS = frozenset({"no", "none", "neither", "nor"})
_CHINESE_SIDES = (
    (re.compile("([左右])[侧边面]"), r"\1"),
    (re.compile("[两双]侧|两边|双边"), "双侧"),
)
_CHINESE_CLASSES = (
    ("左", "右", "双侧"),
    ("上", "下", "中"),
    ("横断面", "冠状面", "矢状面"),
    tuple("肝脾肾肺心脑胃胰"),
)
_CHINESE_SPARED = re.compile(
    f"(?:不是|并非|而非|不在|没有|非|大于|小于|比)在?(?:{'|'.join(itertools.chain(*_CHINESE_CLASSES))})"
)
"""A place that is denied, or with which another is only compared."""


def is_chosen(
    answer: str, reference: str, candidates: Sequence[str] = (), question: str = ""
) -> bool | None:
    """Tell whether an unpacked answer gives the reference and no other answer of its kind.

    None means no choice: no answer of the kind, or a hedge.

    Args:
        answer: The answer's words, from `unpack`.
        reference: The right answer.
        candidates: The answers that the question offers, where they are known.
        question: The question. Answers that it offers exclude each other, and an answer need not
            repeat its words.
    """
    if canonical(answer) == canonical(reference) != []:
        return True
    offered: list[list[str]] = []
    asked = canonical(question)
    if offers := _OFFERED.search(question):
        offered = [content(each) for each in _BETWEEN.split(offers["list"]) if each.strip()]
        asked = canonical(question[: offers.start()])
    for part, is_final in conclusions(answer):
        text = _compared(part, question)
        found = _choice(text, reference, candidates, offered, asked)
        is_hedge = not found and bool(UNDECIDED.search(part))
        if found is not None or (is_final and is_hedge):
            return None if is_hedge else found
    return None


def _compared(text: str, question: str) -> str:
    """Return a text that compares without the loser: "the liver is bigger" of "than the kidney"."""
    found = _COMPARED.search(text)
    if found is None:
        return text
    asked = re.findall(r"\w+", question.lower())
    said, how = found["how"].lower(), next((each for each in asked if each in _SIZES), "")
    if how and said in _SIZES and _SIZES[how] != _SIZES[said]:
        return found["other"]
    is_asked = (how and said in _SIZES) or said.split()[-1] in asked
    return text[: found.start("other")] + text[found.end() :] if is_asked else text


def _choice(
    text: str,
    reference: str,
    candidates: Sequence[str],
    offered: Sequence[Sequence[str]],
    asked: Collection[str],
) -> bool | None:
    """Return whether a text gives the reference; None if it names no answer of its kind."""
    if CHINESE.search(reference):
        return _chinese(text, reference)
    text = weighed(text)
    wanted = content(reference)
    if not wanted:
        return text.strip() == reference.strip()
    if any(kind & set(wanted) for kind in POSITIONS):
        sides = set(_OF_PATIENT.findall(text.lower()))
        text = sides.pop() if len(sides) == 1 and _OF_IMAGE.search(text) else _SPARED.sub(" ", text)
    words = words_of(AGREEMENT.sub(" ", text))
    words = as_worded(words, wanted) if len(words) == 1 else words  # "pulmonary"
    if wanted == ["none"] or _is_number(wanted):
        wanted = [COUNTS.get(word, word) for word in wanted]
        words = [replace(word, text=COUNTS.get(word.text, word.text)) for word in words]
        if [word.text for word in words][:1] == ["bilateral"] and not any(
            _is_number([word.text]) for word in words
        ):
            words = [Word("2", False), *words[1:]]
        if BOUND.search(text) and not BOUND.search(reference):
            return False
        counts = any(_is_number([word.text]) for word in words)
        is_denied = words[0].denied if words else bool(_DENIERS & set(canonical(text)))
        if wanted == ["0"] and is_denied and not counts:
            return True
    elif set(wanted) <= _AMOUNTS:
        words = [replace(word, text=_amount(word.text)) for word in words]
    elif set(wanted) & COMPLEMENTS.keys():
        words = [
            replace(word, text="abnormal") if word.text == "abnormality" else word for word in words
        ]
        words = [
            Word(COMPLEMENTS[word.text], False)
            if word.denied and word.text in COMPLEMENTS
            else word
            for word in words
        ]
    stated = [word.text for word in words if not word.denied]
    others = {word for word in _rivals(wanted, candidates) if word not in wanted}
    named = [word for word in words if word.text in others or word.text in wanted]
    if not named:
        return None
    if UNDECIDED.search(text):
        return False
    if any(word in others for word in _without_measures(stated)):
        return False
    others_offered = (each for each in offered if not contains(wanted, each))
    if any(each and contains(stated, each) for each in others_offered):
        return False
    parts = [content(each) for each in reference.split(",")] if "," in reference else [wanted]
    return all(
        _states(words, [each for each in part if each not in asked] or part) for part in parts
    )


def _states(words: Sequence[Word], wanted: Sequence[str]) -> bool:
    """Tell whether words state what is wanted, where "right upper" is "upper right"."""
    stated = [word.text for word in words if not word.denied]
    if {*wanted} <= _PLACES:
        return {*wanted} <= {*stated}
    return contains(stated, wanted) and not _is_denied(words, wanted)


def _amount(word: str) -> str:
    """Return a number as "single" or "multiple", and any other word as it is."""
    if not _is_number([word]) or float(word) < 1:
        return word
    return "single" if float(word) == 1 else "multiple"


def content(text: str) -> list[str]:
    """Return the canonical words of a text without function words."""
    words = canonical(text)
    return [word for word in words if word not in FUNCTION_WORDS] or words


def contains(words: Sequence[str], wanted: Sequence[str]) -> bool:
    """Tell whether the wanted words stand side by side and in order."""
    width = len(wanted)
    return any(list(words[at : at + width]) == list(wanted) for at in range(len(words) - width + 1))


def _rivals(wanted: Sequence[str], candidates: Sequence[str]) -> set[str]:
    """Return the words that would be another answer than the reference."""
    rivals: set[str] = set()
    for kind in CLASSES:
        if kind & set(wanted):
            rivals |= kind
    for candidate in candidates:
        rivals |= {word for word in content(candidate) if word not in FUNCTION_WORDS}
    if _is_number(wanted):
        rivals |= {str(number) for number in range(1000)}
    return rivals


def _is_number(words: Sequence[str]) -> bool:
    return len(words) == 1 and bool(re.fullmatch(r"\d+(\.\d+)?", words[0]))


def _without_measures(words: Sequence[str]) -> list[str]:
    """Drop numbers followed by a unit, because they are not counts."""
    return [
        word
        for at, word in enumerate(words)
        if not (
            re.fullmatch(r"\d+(\.\d+)?", word) and words[at + 1 : at + 2] and words[at + 1] in UNITS
        )
    ]


def _is_denied(words: Sequence[Word], wanted: Sequence[str]) -> bool:
    """Tell whether every mention of the wanted words is denied."""
    mentions = [word.denied for word in words if word.text == wanted[0]]
    return bool(mentions) and all(mentions)


def _chinese(text: str, reference: str) -> bool | None:
    if not CHINESE.search(text):
        return None
    wanted, text = (
        re.sub(r"[\W脏部]", "", reference),
        re.sub(r"[\s脏部]|(?<=[图像片其])中", "", text),
    )
    for pattern, side in _CHINESE_SIDES:
        wanted, text = pattern.sub(side, wanted), pattern.sub(side, text)
    text = _CHINESE_SPARED.sub("", text)
    for kind in _CHINESE_CLASSES:
        for rival in kind:
            if rival in text and rival not in wanted and any(each in wanted for each in kind):
                return False
    found = re.search(name_pattern(wanted), text)
    if found is None:
        return None
    return not re.search(r"(?:不是|并非|没有|不在|非|不)\s*$", text[: found.start()])
