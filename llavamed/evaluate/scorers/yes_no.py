"""Score closed questions whose reference is yes or no."""

import re
from collections.abc import Collection, Iterable, Sequence

from llavamed.evaluate.scorers.unpack import conclusions
from llavamed.evaluate.scorers.vocabulary import (
    AFFIRMING,
    AGREEMENT,
    ANAPHORIC,
    CHINESE_NO,
    CHINESE_YES,
    DENIAL_AFTER,
    DENIAL_BEFORE,
    EMPHASIS,
    FUNCTION_WORDS,
    LEADING_ONLY,
    LEANING,
    NO,
    NO_ALONE,
    OF_ANSWERING,
    OTHER_DENIALS,
    STATED,
    UNDECIDED,
    WEAKENING,
    YES,
    YES_ALONE,
)
from llavamed.evaluate.scorers.words import CHINESE, canonical, clauses

_BOTH = re.compile(
    r"\[\s*yes\s*,\s*no\s*\]|\[\s*no\s*,\s*yes\s*\]|\byes\s*(?:/|\\|\||or|and|und|ou|y)\s*no\b|\bno\s*(?:/|or|and)\s*yes\b|是否|有无|是与否"
)
_FILLERS = re.compile(
    r"\A\W*(?:(?:well|hmm+|uh|um|okay|ok|oh|answer|so|clear|very|most|probably|likely|almost"
    r"|definitely|clearly|certainly|it|a|an|the|i\s+(?:would\s+)?(?:think|believe|say|guess)"
    r"|(?:it|this|that|the\s+answer)\s+(?:is|would\s+be)|based\s+on\s+(?:the|this)\s+[\w ]+,"
    r"|(?:in|from|on)\s+(?:the|this)\s+(?:image|picture|scan|slice|view|film|figure|radiograph"
    r"|x-ray)s?|looking\s+at\s+(?:the|this)\s+\w+)\b[\s,:]*)*\W*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+", re.UNICODE)
_ALONE = re.compile(
    r"(?:^|[.;!?,\n]|\band\b|\bor\b|\bbut\b|\botherwise\b)\s*(yes|no|yeah|nope)\s*(?=[.;!?,\n]|$)",
    re.IGNORECASE,
)
_NOT_ALONE = re.compile(r"\W*(?:\w+ly\s+)?not\W*", re.IGNORECASE)
_LABELLED = re.compile(r"([^.;,:\n]{1,80}?)\s*(?::|\s-|–|=)\s*(yes|no)\b", re.IGNORECASE)
"""One of several labelled answers: "effusion: no; mass: yes"."""
_TURNED = re.compile(r"(?:\bnot|n't)\s+(?:be\s+|say\s+)?(yes|no)\s*(?:[.,;!]|$)", re.IGNORECASE)
"""A denied yes or no."""
_GREETING = re.compile(
    r"\A\W*(?:sure|certainly|of\s+course|absolutely|(?:great|good)\s+question)\s*[!.,:]\s*(?=\S)",
    re.IGNORECASE,
)
"""A polite opening before a yes or no."""
_AFFIRMED = re.compile(
    r"\b(?:is|are|was|were)\s+(?:\w+ly\s+)?present\b"
    r"|\b(?:present|positive)\s*(?:[.!,;]|$)|\bpositive\s+for\b"
    r"|\bpresence\s+of\s+.*\b(?:is|are|was)\s+(?:confirmed|seen|noted|evident|identified|established)\b"
    r"|\b(?:shows?|confirms?|demonstrates?|indicates?|suggests?|reveals?)\s+the\s+presence\b",
    re.IGNORECASE,
)


def polarity(reference: str) -> bool | None:
    """Return whether a reference is a yes; None if it is neither yes nor no.

    "No, it is normal" is a no; "none" is a number and "non-contrast" a modality.
    """
    text = reference.strip().lower()
    if CHINESE.search(text):
        stripped = re.sub(r"\W", "", text)
        if stripped in CHINESE_NO:
            return False
        return True if stripped in CHINESE_YES else None
    words = _WORD.findall(text)
    if not words or (len(words) > 1 and words[0] not in {"yes", "no"}):
        return None
    if words[0] == "no" and len(words) > 1 and not re.match(r"no\s*[,.;:]", text):
        return None
    if words[0] in {"none", "present", "absent", "positive", "negative", "never", "sure", "not"}:
        return None
    return True if words[0] in YES else False if words[0] in NO else None


def says(answer: str, question: str = "", reference: str = "") -> bool | None:
    """Return what an unpacked answer says: yes, no, or None for neither.

    Args:
        answer: The answer's words, from `unpack`.
        question: The question; decides which denial is relevant.
        reference: The reference; decides which Chinese words mean yes and no.
    """
    for part, is_final in conclusions(answer):
        verdict = _verdict(part, question, reference)
        if verdict is not _ABSENT:
            if verdict is None and not is_final:
                continue
            return bool(verdict) if verdict is not None else None
    return None


_ABSENT = object()
"""The text neither answers yes or no nor leaves the question open."""


def _verdict(text: str, question: str, reference: str) -> object:
    """Return True, False, None for an undecided text, or `_ABSENT`."""
    if CHINESE.search(text):
        return _chinese(text, reference)
    text = _straight(text)
    if (greeting := _GREETING.match(text)) and _lead(text[greeting.end() :])[0] is not None:
        text = text[greeting.end() :]
    lead, rest = _lead(text)
    if both := list(_BOTH.finditer(text.lower())):
        chosen, _ = _lead(text.lower()[both[-1].end() :])
        return _lead(_BOTH.sub(" ", text.lower()))[0] if chosen is None else chosen
    labelled = _labelled(text, question)
    if labelled is not None:
        return labelled
    if lead is not None:
        alone = {word.lower() in {"yes", "yeah"} for word in _ALONE.findall(rest)}
        return None if (not lead) in alone or (lead and _NOT_ALONE.fullmatch(rest)) else lead
    standing = list(_ALONE.finditer(text))
    if len({found[1].lower() in YES for found in standing}) == 1:
        is_open = UNDECIDED.search(text[: standing[0].start()])
        is_despite = standing[0][0].lower().startswith("but")
        return None if is_open and not is_despite else standing[0][1].lower() in YES
    if UNDECIDED.search(text):
        return None
    if YES_ALONE.fullmatch(text) or NO_ALONE.fullmatch(text):
        return bool(YES_ALONE.fullmatch(text))
    if AGREEMENT.search(text):
        return True
    if turned := _TURNED.search(text):
        return turned[1].lower() == "no"
    if called := STATED.search(text):
        return called.lastgroup == "yes"
    return _by_denial(AFFIRMING.sub(" yes ", text), question)


def _labelled(text: str, question: str) -> bool | None:
    """Return the labelled answer whose label matches the question, if there are several."""
    labelled = _LABELLED.findall(text)
    asked = _content(canonical(question))
    about = {said.lower() for label, said in labelled if _content(canonical(label)) & asked}
    return about.pop() == "yes" if len(labelled) > 1 and len(about) == 1 else None


def _straight(text: str) -> str:
    return text.replace("’", "'").replace("\u02bc", "'")


def _lead(text: str) -> tuple[bool | None, str]:
    """Return the yes or no that a text begins with, and the rest."""
    text = LEANING.sub(" ", text)
    if affirmed := re.match(
        r"\W*(?:(?:there|that)\s+(?:is|'s)\s+)?(?:no|without(?:\s+an?y?)?)\s+(?:doubt|question)\b",
        text,
        re.I,
    ):
        return True, text[affirmed.end() :]
    start = _FILLERS.match(text)
    body = text[start.end() :] if start else text
    found = _WORD.match(body)
    if not found:
        return None, text
    word, rest = found[0].lower(), body[found.end() :]
    if (
        word in LEADING_ONLY
        and re.match(r"\s*\w", rest)
        and word not in {"correct", "true", "false"}
    ):
        return None, text
    if word in {
        "not",
        "never",
        "none",
        "positive",
        "negative",
        "present",
        "absent",
        "kein",
        "keine",
        "keiner",
    }:
        return None, text  # the rules of denial read them
    is_of_answering = bool(re.match(r"\s+\w", rest)) and _is_of_answering(canonical(rest), ())
    if word in {"no", "n"} and (UNDECIDED.match(body) or is_of_answering):
        return None, text
    if word in YES and re.match(r"\s+not\b", rest, re.I):
        return False, rest
    if word in EMPHASIS and re.match(r"\W+(?:no|none)\b", rest, re.I):
        return False, rest
    if word in YES:
        return True, rest
    if word in NO:
        return False, rest
    return None, text


def _by_denial(text: str, question: str) -> object:
    """Read a sentence without a leading yes or no by its denials."""
    asked = _content(canonical(question))
    denied: set[str] = set()
    stated: set[str] = set()
    num_denials, is_affirmed, is_open = 0, False, False
    for clause in clauses(text):
        tokens = canonical(clause)
        cues = [place for place, token in enumerate(tokens) if token in _CUES]
        after = DENIAL_AFTER.search(clause)
        if re.search(r"(?:\bnot?|n't)\s+(?:absent|negative|without|excluded)\b", clause, re.I):
            return None
        if cues and _is_of_answering(tokens[cues[0] + 1 :], asked):
            is_open = True
        elif after and not re.search(
            r"\b(?:negative|absence|lack)\b", clause[: after.start()], re.I
        ):
            num_denials += 1
            denied |= _content(tokens)
        elif cues:
            num_denials += 1
            denied |= _content(tokens[cues[0] :])
            stated |= _content(tokens[: cues[0]])
        else:
            stated |= _content(tokens)
            is_affirmed = is_affirmed or bool(_AFFIRMED.search(clause)) or "yes" in tokens
    if not num_denials:
        return True if is_affirmed else None if is_open else _ABSENT
    is_english = not OTHER_DENIALS & set(canonical(text))
    is_foreign = is_english and bool(denied - ANAPHORIC) and bool(asked) and not asked & denied
    if is_affirmed:
        return True if is_foreign else None
    if denied and asked and not asked & denied and asked & stated:
        return _ABSENT  # the denial is about something else
    return None if is_foreign else False


def _is_of_answering(denied: Sequence[str], asked: Collection[str]) -> bool:
    """Return whether a denial is about answering, as in "no conclusion can be drawn"."""
    heads = (word for word in denied if word not in FUNCTION_WORDS and word not in WEAKENING)
    head = next(heads, "")
    return head in OF_ANSWERING and head[:5] not in asked


_CUES = (frozenset(DENIAL_BEFORE) | {"no", "none", "nothing", "absence"}) - {"pas", "sin"}


def _content(tokens: Iterable[str]) -> set[str]:
    """Return the stems of the content words."""
    return {token[:5] for token in tokens if token not in FUNCTION_WORDS and token not in _CUES}


def _chinese(text: str, reference: str) -> object:
    if UNDECIDED.search(text):
        return None
    wanted = re.sub(r"\W", "", reference)
    core = wanted.lstrip("不没未非") if CHINESE.search(wanted) else ""
    if len(core) > 1 and core in CHINESE_YES:
        found = re.findall(rf"(不|没有?|未|非)?{core}", text)
        if found and len({bool(each) for each in found}) == 1:
            return not found[0]
    if _BOTH.search(text):
        return None
    pattern = "|".join(sorted([*CHINESE_NO, *CHINESE_YES], key=len, reverse=True))
    found = list(re.finditer(pattern, text))
    if not found:
        return _verdict_of_latin(text)
    says_yes = [match[0] in CHINESE_YES for match in found]
    if len(set(says_yes)) == 1 or (
        found[0].start() == 0 and re.match(r"\W|$", text[found[0].end() :])
    ):
        return says_yes[0]
    strong = [match[0] in CHINESE_YES for match in found if len(match[0]) > 1]
    return strong[0] if len(set(strong)) == 1 else None


def _verdict_of_latin(text: str) -> object:
    lead, _ = _lead(text)
    return _ABSENT if lead is None else lead
