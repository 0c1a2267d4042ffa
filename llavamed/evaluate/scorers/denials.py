"""Read an answer that says neither yes nor no by what it denies, and what it states beside that."""

import re
from collections.abc import Collection, Sequence

from llavamed.evaluate.scorers.chinese import ABSENT
from llavamed.evaluate.scorers.restating import (
    CUES,
    OF_THE,
    is_elsewhere,
    is_foreign_to,
    restates,
    stems,
)
from llavamed.evaluate.scorers.vocabulary import (
    ANAPHORIC,
    DENIAL_AFTER,
    FUNCTION_WORDS,
    OF_ANSWERING,
    OTHER_DENIALS,
    WEAKENING,
)
from llavamed.evaluate.scorers.words import canonical, clauses

_NEXT_SUBJECT = re.compile(r"\band\s+(?=the\s+\w+\s+(?:is|are|was|were|has|have|does|do)\b)", re.I)
_UNSEEN = re.compile(
    r"\b(?:can(?:not|'t)|(?:do|does|could)\s*(?:not|n't)|unable\s+to)\s+(?:see|visuali[sz]e|find|identify)\b"
    r"(?!\s+(?:any|an?|evidence|signs?)\b)",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"(?<![^.:;!?\n])[^.:;!?\n]*\?")
_RELATIVE = re.compile(r",\s*(which|that)\b(?=\s+(?:has|have|is|are|was|were)\b)", re.IGNORECASE)
_PRESENCE = re.compile(r"\W*presence\s+of\b(?!.*\b(?:not|excluded|out)\b)", re.IGNORECASE)
_AFFIRMED = re.compile(
    r"\b(?:is|are|was|were)\s+(?:\w+ly\s+)?present\b"
    r"|\b(?:present|positive)\s*(?:[.!,;]|$)|\bpositive\s+for\b"
    r"|\bpresence\s+of\s+.{1,100}\b(?:is|are|was)\s+(?:confirmed|seen|noted|evident|identified|established)\b"
    r"|\b(?:shows?|confirms?|demonstrates?|indicates?|suggests?|reveals?)\s+the\s+presence\b",
    re.IGNORECASE,
)


def by_denial(text: str, question: str) -> object:
    """Return True for yes, False for no, None for an undecided text, or `ABSENT`.

    A denial is a no if it is of what the question asks. Beside denials of other things, a text that
    states what is asked is a yes.
    """
    asked = stems(canonical(question))
    denied: set[str] = set()
    not_there: list[str] = []
    stated: set[str] = set()
    num_denials, is_affirmed, is_open = 0, False, False
    if _UNSEEN.search(text) and OF_THE.match(question) and len(asked) > 1:
        return None
    text = _RELATIVE.sub(r" \1", text)
    text = _NEXT_SUBJECT.sub("; ", _QUESTION.sub(" ", text))
    said = list(clauses(text))
    is_whole = len(said) == 1
    for clause in said:
        tokens = canonical(clause)
        cues = [
            place
            for place, token in enumerate(tokens)
            if token in CUES and (token != "non" or stems(tokens[place + 1 : place + 2]) & asked)
        ]
        after = DENIAL_AFTER.search(clause)
        if re.search(r"(?:\bnot?|n't)\s+(?:absent|negative|without|excluded)\b", clause, re.I):
            return None
        if cues and is_of_answering(tokens[cues[0] + 1 :], asked):
            is_open = True
        elif after and not re.search(
            r"\b(?:negative|absence|lack)\b", clause[: after.start()], re.I
        ):
            num_denials += 1
            denied |= stems(tokens)
            not_there += tokens
        elif cues:
            num_denials += 1
            denied |= stems(tokens[cues[0] :])
            not_there += tokens
            stated |= stems(tokens[: cues[0]])
            cut = re.search(
                r"\b(?:no|not|without|never|neither|nor|absent|negative)\b", clause, re.I
            )
            before = clause[: cut.start()] if cut else ""
            is_affirmed = is_affirmed or restates(before, question, asked)
        else:
            stated |= stems(tokens)
            is_affirmed = (
                is_affirmed
                or (
                    bool(_AFFIRMED.search(clause) or (is_whole and _PRESENCE.match(clause)))
                    and not is_foreign_to(stems(tokens), asked)
                )
                or "yes" in tokens
                or restates(clause, question, asked, is_whole=is_whole)
            )
    if not num_denials:
        return True if is_affirmed else None if is_open else ABSENT
    is_english = not OTHER_DENIALS & set(canonical(text))
    is_foreign = is_english and bool(denied - ANAPHORIC) and bool(asked) and not asked & denied
    is_foreign = is_foreign or is_elsewhere(not_there, canonical(question))
    if is_affirmed:
        is_other = bool(asked - denied and denied - asked - ANAPHORIC)
        return True if is_foreign or is_other else None
    if denied and asked and not asked & denied and asked & stated:
        return ABSENT  # the denial is about something else
    return None if is_foreign else False


def is_of_answering(denied: Sequence[str], asked: Collection[str]) -> bool:
    """Return whether a denial is about answering, as in "no conclusion can be drawn"."""
    heads = (word for word in denied if word not in FUNCTION_WORDS and word not in WEAKENING)
    head = next(heads, "")
    return head in OF_ANSWERING and head[:5] not in asked
