"""Tell whether a clause states in its own words what a question asks, or something else."""

import re
from collections.abc import Collection, Iterable, Set

from llavamed.evaluate.scorers.terms import ADJECTIVES, CLASSES, FINDINGS, ORGANS, SIDES
from llavamed.evaluate.scorers.vocabulary import (
    ANAPHORIC,
    DENIAL_BEFORE,
    EXISTS,
    FUNCTION_WORDS,
    UNASSERTED,
)
from llavamed.evaluate.scorers.words import canonical

_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|does|do|did|appears?|looks?|seems?)\b", re.I)
_NO_NAME = re.compile(r"\?|\([-+]\)|-free\b")
_REGIONS = frozenset(["chest", "abdomen", "abdominal", "brain", "head", "neck", "pelvis", "spine"])
_SEEMS = frozenset(["appear", "look", "seem"])
_QUALIFIERS = (
    frozenset(
        ["left", "right", "bilateral", "upper", "lower", "middle", "apical", "basal", "small"]
    )
    | frozenset(["large", "mild", "moderate", "severe", "acute", "chronic", "displaced"])
    | frozenset(["extensive", "focal", "diffuse", "multiple"])
    | ORGANS
)
"""Words that a name may have besides those of the question."""
_ASKED_IN_ORDER = re.compile(
    r"\b(?:than|to|above|below|behind|between|from|before|after|over|under)\b", re.IGNORECASE
)
_IS_OF_KIND = tuple(
    (
        kind,
        re.compile(
            r"(?:is|are|was|were) (?:it|(?:this|that|these|the)(?: \w+){0,4}) "
            rf"(?:(?:an?|on|in|the|of|from|taken) )*({'|'.join(sorted(kind))})"
            r"(?: (?:scan|image|picture|view|plane|patient|study|film|slice|section|mri|ct|xray))?"
            r"(?: (?:side|lobe|lung))?"
        ),
    )
    for kind in CLASSES
)
"""A question whether something is of a kind: "is this a CT scan", "is the lesion on the left"."""
_LEFT_OUT = frozenset(
    str.split(
        "patie you prese visib evide noted detec ident conta inclu appea look seem child infan"
    )
)
"""Stems of a question that an answer may leave out."""
OF_THE = re.compile(r"\s*(?:is|are|was|were)\s+the\b", re.IGNORECASE)
"""The beginning of a question about something that is there."""
_OF_SEVERAL = re.compile(r"\s*are\s+(?:the|both)\b", re.IGNORECASE)
_ONE_SIDE = re.compile(r"\b(?:left|right)\b(?!\s+and\b)", re.IGNORECASE)
_SHOWN = re.compile(
    r"\s*do(?:es)?\s+(?:the|this|these)\s+([\w -]+?)\s+"
    r"(?:show|demonstrate|reveal|depict|contain|include)\b",
    re.IGNORECASE,
)
"""A question about what a picture shows, whose name an answer may leave out."""
_OF_SOMETHING = re.compile(
    r"\s*(?:(?:is|are|was|were|has|have)\s+(?!there\b)|do(?:es)?\s.*\b(?:look|appear|seem)\b)",
    re.IGNORECASE,
)
_DEGREES = frozenset(
    ["slightly", "mildly", "moderately", "markedly", "severely", "clearly", "very"]
)
CUES = (frozenset(DENIAL_BEFORE) | {"no", "none", "nothing", "nil", "absence", "0"}) - {
    "pas",
    "sin",
}


def restates(clause: str, question: str, asked: Collection[str], *, is_whole: bool = False) -> bool:
    """Tell whether a clause states what was asked in its words: "the heart is enlarged"."""
    if not asked or UNASSERTED.search(clause):
        return False
    words = canonical(question)
    if is_whole and OF_THE.match(question):
        said = [
            word[:5]
            for word in canonical(clause)
            if word not in _DEGREES | {"they", "he", "she", "it", "is", "are"}
        ]
        if said == [words[-1][:5]]:
            return True  # "slightly enlarged", "they are normal"
    if "or" in words or CUES & set(words):
        return False
    wanted = [_organ(word) for word in words if word[:5] in asked and word[:5] not in _LEFT_OUT]
    said = [_organ(word) for word in canonical(clause)]
    if shown := _SHOWN.match(question):
        wanted = wanted[len(stems(canonical(shown[1]))) :]
    if _OF_SEVERAL.match(question) and _ONE_SIDE.search(clause) and not _ONE_SIDE.search(question):
        return False
    if not wanted or not set(wanted) <= set(said):
        return False
    if _ASKED_IN_ORDER.search(question):
        places = [said.index(word) for word in wanted]
        if places != sorted(places):
            return False
    has_verb = is_whole or bool(_VERB.search(clause))
    is_told = len(set(wanted)) > 1 and has_verb and _OF_SOMETHING.match(question)
    return bool(is_told or EXISTS.search(clause))


def names_bare(text: str, question: str) -> bool:
    """Tell whether an answer is just the name of what a question asks for: "right pneumothorax".

    A name that repeats the question and adds nothing is no answer.
    """
    said, words = canonical(text), canonical(question)
    if _NO_NAME.search(text) or UNASSERTED.search(text) or {*CUES, "or"} & {*said, *words}:
        return False
    wanted = stems(words) - _LEFT_OUT
    added = [word for word in said if word[:5] not in wanted]
    is_name = bool(added) and {*added} <= _QUALIFIERS and not _VERB.search(text)
    return bool(wanted) and is_name and wanted <= {word[:5] for word in said}


def is_foreign_to(said: Set[str], asked: Set[str]) -> bool:
    """Tell whether a clause is about something that was not asked."""
    named = said - ANAPHORIC - _LEFT_OUT - {"posit"}
    return bool(asked and named) and not named & asked


def is_elsewhere(said: Iterable[str], asked: Iterable[str]) -> bool:
    """Tell whether words name another side or organ than a question does, and not that one."""
    named, wanted = ({ADJECTIVES.get(word, word) for word in words} for words in (said, asked))
    return any(
        named & kind and wanted & kind and not named & wanted & kind for kind in (SIDES, ORGANS)
    )


def by_kind(text: str, question: str) -> bool | None:
    """Read an answer that only names one of a kind, where a question asks for one: "it is an MRI".

    None if the question asks for anything else, or the answer says more.
    """
    asked, said = " ".join(canonical(question)), canonical(text)
    if CUES & {*asked.split(), *said} or "or" in asked.split() or UNASSERTED.search(text):
        return None
    if _ASKED_IN_ORDER.search(question):
        return None
    for kind, pattern in _IS_OF_KIND:
        found = pattern.fullmatch(asked)
        named = kind & {*said}
        others = {*said} - kind - {*asked.split()} - FUNCTION_WORDS - _REGIONS - _SEEMS
        if found and len(named) == 1 and not others:
            return named == {found[1]}
    return None


def denies_other_finding(text: str, question: str) -> bool:
    """Tell whether a denial names findings, and none that the question is about."""
    said, asked = set(canonical(text)), set(canonical(question))
    named = [about for names, about in FINDINGS if names & said]
    return bool(named) and not said & _content(asked) and not any(about & asked for about in named)


def _content(tokens: Iterable[str]) -> set[str]:
    return {token for token in tokens if token not in FUNCTION_WORDS and token not in CUES}


def _organ(word: str) -> str:
    """Return the stem of a word, or of the organ that it is the adjective of."""
    return ADJECTIVES.get(word, word)[:5]


def stems(tokens: Iterable[str]) -> set[str]:
    """Return the stems of the content words."""
    return {token[:5] for token in _content(tokens)}
