"""Score closed questions whose reference is yes or no."""

import re

from llavamed.evaluate.scorers.chinese import ABSENT, chinese_verdict
from llavamed.evaluate.scorers.denials import by_denial, is_of_answering
from llavamed.evaluate.scorers.restating import (
    CUES,
    by_kind,
    denies_other_finding,
    is_elsewhere,
    is_foreign_to,
    stems,
)
from llavamed.evaluate.scorers.terms import COMPLEMENTS
from llavamed.evaluate.scorers.unpack import conclusions
from llavamed.evaluate.scorers.vocabulary import (
    AFFIRMING,
    AGREEMENT,
    ANAPHORIC,
    CHINESE_NO,
    CHINESE_YES,
    EMPHASIS,
    LEADING_ONLY,
    NO,
    NO_ALONE,
    OTHER_SENTENCES,
    STATED,
    UNASSERTED,
    UNDECIDED,
    YES,
    YES_ALONE,
)
from llavamed.evaluate.scorers.words import CHINESE, canonical, words_of

_BOTH = re.compile(
    r"\[\s*yes\s*,\s*no\s*\]|\[\s*no\s*,\s*yes\s*\]|\byes\s*(?:/|\\|\||or|and|und|ou|y)\s*no\b|\bno\s*(?:/|or|and)\s*yes\b"
)
_FILLERS = re.compile(
    r"\A\W*(?:(?:well|hmm+|uh|um|okay|ok|oh|answer|so|clear|very|most|probably|likely|presumably|apparently|almost"
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
_LABELLED = re.compile(
    r"([^.;,:\n]{1,80}?)\s*(?:(?::|\s-|–|=)\s*(yes|no|present|absent|positive|negative)\b"
    r"|\s(present|absent|yes|no)(?=\s*(?:[.;,\n]|\Z)))",
    re.IGNORECASE,
)
"""One of several labelled answers: "effusion: no; mass: yes", "mass present, effusion absent"."""
_POSITIVE = frozenset({"yes", "present", "positive"})
_SIGN = re.compile(r"(?:[(\[]|\w\s*:)\s*([+-])\s*[)\]]?\W*\Z")
"""A sign after what was asked: "mass (-)"."""
_STRESSED = re.compile(
    r"\A\W*(?:definitely|certainly|clearly|obviously|absolutely|indeed|exactly|of\s+course|right)"
    r"\s*[.,;!]\s*(?P<rest>\w.*)\Z",
    re.IGNORECASE | re.DOTALL,
)
"""A word that affirms what was asked, before a sentence about something else."""
_DENIED_WHOLE = re.compile(
    r"\A\W*(?:it\s+(?:(?:is\s+not|isn't)\s+(?:true|correct|the\s+case)|(?:is|would\s+be)\s+(?:wrong|incorrect|false))"
    r"(?:\s+to\s+(?:say|claim|state))?\s+that\b"
    r"|i\s+(?:\w+ly\s+)?doubt(?:\s+that)?\b(?=\s+\w+\s+\w))",
    re.IGNORECASE,
)
_SEEMING = re.compile(
    r"\bit\s+(?:looks|seems|appears)\s+(?:like|that|as\s+(?:if|though))(?=\s+there\b)",
    re.IGNORECASE,
)
_NOT_DOUBTED = re.compile(r"\bi\s+(?:do\s+not|don't)\s+doubt\s+that\b", re.IGNORECASE)
_NO_ABSENCE = re.compile(r"\b(?:no|not|without)\s+(?:an?\s+)?(?:absence|lack)\b", re.IGNORECASE)
_SETTLED = re.compile(r"[:;,.]\s*(yes|no)\W*\Z", re.IGNORECASE)
_CLEAR = re.compile(r"\bclear\b", re.IGNORECASE)
_TURNED = re.compile(
    r"(?:\bnot|n't|\b(?:wrong|incorrect|mistake)\s+to)\s+(?:be\s+|say\s+|answer\s+)?(yes|no)\s*(?:[.,;!]|$)",
    re.IGNORECASE,
)
"""A denied yes or no."""
_WEIGHED = re.compile(
    r"\b(?:more|rather)\s+(?:likely\s+|probably\s+|of\s+a\s+)?(yes|no)\s+than\s+(?:a\s+)?(?:yes|no)\b"
    r"|(?:\b(?:have|inclined|tend|like|going)\s+to\s+|(?<!not\s)(?<!n't\s)(?<!to\s)\b)(?:say|answer(?:\s+(?:is|with))?|said|now|guess|vote|verdict\s+is)\s+(?:it\s+is\s+)?(?:a\s+)?(yes|no)"
    r"(?=\s*(?:[.,;!]|\Z|because\b|since\b))",
    re.IGNORECASE,
)
"""A yes or no that a speaker settles on, whatever is conceded: "I say no, but may be wrong"."""
_NON = re.compile(r"\bnon[ -]?(?=[a-z]{5})(?!etheless)", re.IGNORECASE)
_HOWEVER = re.compile(r"[.;!]\s*(?:however|but|nevertheless|that\s+said)\b", re.IGNORECASE)
"""The beginning of an answer after a sentence that refuses it."""
_ELLIPSIS = re.compile(
    r"\b(?:but|and|while|whereas|though|although)\s+the\s+(?P<subject>[\w ]{2,40}?)\s+"
    r"(?:is|are|was|were|does|do|has|have)(?P<denied>\s+not|n't)?\W*\Z",
    re.IGNORECASE,
)
"""A clause that leaves out what was said before: "the liver is not enlarged but the spleen is"."""
_GREETING = re.compile(
    r"\A\W*(?:sure|certainly|of\s+course|absolutely|(?:great|good)\s+question)\s*[!.,:]\s*(?=\S)",
    re.IGNORECASE,
)
"""A polite opening before a yes or no."""
_CALLED_ANSWER = re.compile(
    r"\s+(?:is|would\s+be|must\s+be)\s+(?:my|the)\s+(?:\w+\s+)?(?:answer|response)\b", re.IGNORECASE
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
    if _CLEAR.search(question):  # it is asked for, and no word of certainty
        answer, question = (_CLEAR.sub("translucent", each) for each in (answer, question))
    if _NON.search(question):  # it is asked for, and denies nothing: "is there a nonunion"
        answer, question = (_NON.sub("un", each) for each in (answer, question))
    for part, is_final in conclusions(answer):
        verdict = _verdict(part, question, reference)
        if verdict is not ABSENT:
            if verdict is None and not is_final:
                continue
            return bool(verdict) if verdict is not None else None
    return None


def _verdict(text: str, question: str, reference: str) -> object:
    """Return True, False, None for an undecided text, or `ABSENT`."""
    if CHINESE.search(text):
        verdict = chinese_verdict(text, question, reference)
        lead = _lead(text)[0] if verdict is ABSENT else None
        return verdict if lead is None else lead
    text = _SEEMING.sub(" ", _NOT_DOUBTED.sub(" ", _straight(text)))
    if whole := _DENIED_WHOLE.match(text):
        inner = _verdict(text[whole.end() :], question, reference)
        return not inner if isinstance(inner, bool) else None
    if _NO_ABSENCE.search(text):
        settled = _SETTLED.search(text)
        return settled and settled[1].lower() == "yes"
    if sign := _SIGN.search(text):
        return sign[1] == "+"
    if (stressed := _STRESSED.match(text)) and _is_elsewhere(stressed["rest"], question):
        return True
    if (greeting := _GREETING.match(text)) and _lead(text[greeting.end() :])[0] is not None:
        text = text[greeting.end() :]
    lead, rest = _lead(text)
    if both := list(_BOTH.finditer(text.lower())):
        chosen, _ = _lead(text.lower()[both[-1].end() :])
        return _lead(_BOTH.sub(" ", text.lower()))[0] if chosen is None else chosen
    labelled = _labelled(text, question)
    if labelled is not None:
        return labelled
    if lead is False and re.match(r"\s+\w", rest):
        said, asked = canonical(rest), canonical(question)
        if by_denial(text, question) is True:
            return True  # "no dislocation, but there is a fracture"
        if denies_other_finding(text, question) or is_elsewhere(said, asked):
            return None
        if UNDECIDED.search(rest) and is_foreign_to(stems(said), stems(asked)):
            return None  # "no biopsy was done, so it cannot be determined"
    if lead is not None:
        alone = {word.lower() in {"yes", "yeah"} for word in _ALONE.findall(rest)}
        return None if (not lead) in alone or (lead and _NOT_ALONE.fullmatch(rest)) else lead
    standing = list(_ALONE.finditer(text))
    if len({found[1].lower() in YES for found in standing}) == 1:
        is_open = UNDECIDED.search(text[: standing[0].start()])
        is_despite = standing[0][0].lower().startswith("but")
        return None if is_open and not is_despite else standing[0][1].lower() in YES
    if (weighed := {each.lower() for pair in _WEIGHED.findall(text) for each in pair if each}) and (
        not _TURNED.search(text)
    ):
        return weighed == {"yes"} if len(weighed) == 1 else None
    if (turned := _TURNED.search(text)) and not _ALONE.search(text[turned.end() - 1 :]):
        return turned[1].lower() == "no"
    if open_at := [found.end() for found in UNDECIDED.finditer(text)]:
        however = _HOWEVER.search(text, open_at[-1])
        return _verdict(text[however.end() :], question, reference) if however else None
    if (elided := _ELLIPSIS.search(text)) and stems(canonical(elided["subject"])) & stems(
        canonical(question)
    ):
        return elided["denied"] is None
    if YES_ALONE.fullmatch(text) or NO_ALONE.fullmatch(text):
        return bool(YES_ALONE.fullmatch(text))
    if AGREEMENT.search(text):
        return True
    if called := STATED.search(text):
        return called.lastgroup == "yes"
    if OTHER_SENTENCES.search(text):
        return False
    if (opposite := _by_complement(text, question)) is not None:
        return opposite
    if (of_kind := by_kind(text, question)) is not None:
        return of_kind
    return by_denial(AFFIRMING.sub(" yes ", text), question)


def _labelled(text: str, question: str) -> bool | None:
    """Return the labelled answer whose label matches the question, if there are several."""
    labelled = _LABELLED.findall(text)
    asked = stems(canonical(question))
    about = {
        (said or stated).lower() in _POSITIVE
        for label, said, stated in labelled
        if stems(canonical(label)) & asked
    }
    return about.pop() if len(labelled) > 1 and len(about) == 1 else None


def _by_complement(text: str, question: str) -> bool | None:
    """Read an answer that names the opposite of what was asked, and not that: "it is abnormal"."""
    words = words_of(text)
    said = set(canonical(text)) & {"withcontrast", "withoutcontrast"}
    if len(said) == 1 and {"contrast", "withcontrast"} & set(canonical(question)):
        return None if UNASSERTED.search(text) else said == {"withcontrast"}
    for asked in COMPLEMENTS.keys() & set(canonical(question)):
        kind = stems((asked, COMPLEMENTS[asked]))
        if is_foreign_to(stems(canonical(text)) - kind, stems(canonical(question)) - kind):
            return None
        if any(word.text == asked for word in words):
            return None
        named = {word.denied for word in words if word.text == COMPLEMENTS[asked]}
        if len(named) == 1 and not UNASSERTED.search(text):
            return named.pop()
    return None


def _is_elsewhere(text: str, question: str) -> bool:
    """Tell whether a text denies only what was not asked, or only seems to deny something."""
    asked = stems(canonical(question))
    if AFFIRMING.search(text):
        return True
    tokens = canonical(text)
    cues = [place for place, token in enumerate(tokens) if token in CUES]
    denied = stems(tokens[cues[0] :]) if cues else set()
    return bool(asked and denied - ANAPHORIC) and not asked & denied


def _straight(text: str) -> str:
    return text.replace("’", "'").replace("\u02bc", "'")


def _lead(text: str) -> tuple[bool | None, str]:
    """Return the yes or no that a text begins with, and the rest."""
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
        and re.match(r"[\s-]*\w", rest)
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
    if word in {"yes", "no"} and _CALLED_ANSWER.match(rest):
        return word == "yes", ""
    goes_on = re.match(r"\s+\w", rest) is not None
    if word in NO and (UNDECIDED.match(body) or (goes_on and is_of_answering(canonical(rest), ()))):
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
