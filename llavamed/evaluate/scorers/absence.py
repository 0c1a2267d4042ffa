"""Read answers by what is asked for: the absence of a finding, a finding, or the size of an organ.

"Are the lungs free of consolidation?" and "no consolidation is seen" agree, though the sentence
denies. So a sentence about the finding is read as an answer to whether it is there, and turned
round. "The heart is normal" denies what "Is the heart enlarged?" asks; "cardiomegaly" states it.
"""

import re

from llavamed.evaluate.scorers.restating import OF_THE, by_kind, names_bare, stems
from llavamed.evaluate.scorers.terms import ADJECTIVES, CHANGES, COMPLEMENTS, FINDINGS
from llavamed.evaluate.scorers.unpack import conclusions
from llavamed.evaluate.scorers.words import CHINESE, canonical, words_of
from llavamed.evaluate.scorers.yes_no import says

_ABSENCE = re.compile(
    r"\b(?:(?:free|clear|devoid|absence|lack)\s+(?:of|from)|negative\s+for|(?:is|are)\s+there\s+no"
    r"|without(?!\s+(?:\w+\s+)?contrast))\s+(?:any\s+|an?\s+)?(?P<of>[\w -]+)"
    r"|\b(?:is|are)\s+(?:the\s+|an?\s+)?(?P<before>[\w -]+?)\s+absent\b",
    re.IGNORECASE,
)
_HEALTH = re.compile(r"(?<!than )(?<!not )\b(?:normal|healthy|unremarkable|clear)\b", re.IGNORECASE)
"""A word that asks whether something has no abnormality; "larger than normal" does not."""
_ABNORMALITY = re.compile(
    r"\b(?:abnormalit(?:y|ies)|abnormal\s+findings?|patholog(?:y|ies)|anomal(?:y|ies))\b"
    r"|\bnothing\s+abnormal\b",
    re.IGNORECASE,
)
_SOME_ABNORMALITY = re.compile(
    r"\b(?:no|without|any)\s+(?!(?:an?|any|abnormal|abnormalit\w+|anomal\w+|patholog\w+|evidence|signs?"
    r"|other|significant|acute|obvious|visible|definite|apparent|gross|clear|major|overt)\b)\w+",
    re.IGNORECASE,
)
"""A denial of one kind of abnormality: "no bony abnormality"."""
_ANSWERED = re.compile(
    r"\b(?:yes|yeah|yep|correct|incorrect|true|false|wrong|affirmative|agree\w*)\b"
    r"|\A\W*right\s*[,.!]|\b(?:\w+ly|indeed|sure|of\s+course)\s*[,.!]|\bno\b(?!\s+\w)",
    re.IGNORECASE,
)
"""A word that answers the question itself."""
_ABSENT_NOT = re.compile(
    r"(?:\bnot?|n['’]t|\bnever)\s+(?:\w+ly\s+)?"
    r"(?:free|clear|devoid|absent|negative|without|an?\s+(?:absence|lack))\b",
    re.IGNORECASE,
)
_LARGE = (
    (re.compile(r"\bcardiomegaly\b", re.IGNORECASE), "heart"),
    (re.compile(r"\bhepatomegaly\b", re.IGNORECASE), "liver"),
    (re.compile(r"\bsplenomegaly\b", re.IGNORECASE), "spleen"),
)
_ASKED_LARGE = re.compile(
    r"\A\s*(?:is|are)\s+there\s+(?:(?:any|evidence|signs?|of|a)\s+)*(?P<name>\w+megaly)\b",
    re.IGNORECASE,
)
_ENLARGED = re.compile(r"\benlarge", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    r"\b(?:normal|healthy)\s+\w+\s+(?:is|are|was|were)\s+(?!normal|healthy|clear|unremarkable)",
    re.IGNORECASE,
)
"""Something that is normal, of which else is said: "the normal lung is compressed"."""
_OUTLINE = re.compile(r"\b(?:cardiac|heart)\s+(?:silhouette|shadow)\b", re.IGNORECASE)
_INCREASED = re.compile(
    r"\bsize\s+(?:is|appears)\s+(?:\w+ly\s+)?increased\b|\bincrease(?:d)?\s+in\s+size\b", re.I
)
_TO_EXCLUDE = re.compile(
    r"(?:\b\w+\s+){0,3}\b(?:needed|required|necessary|recommended|advised|suggested)\s+to\s+"
    r"(?:exclude|rule\s+out)\b[^.;,\n]*",
    re.IGNORECASE,
)
"""What is to be excluded, and is not yet."""
_NOT_NORMAL = re.compile(r"\bnot\s+(?:\w+ly\s+)?normal\b", re.IGNORECASE)
_CALLED = re.compile(r"\b(?P<ab>ab)?normal\b", re.IGNORECASE)
_ONE = re.compile(r"\b(?:only\s+|just\s+)?(?:one|1|solitary)\b", re.IGNORECASE)
_SEVERAL = re.compile(r"\b(?:two|three|four|five|[2-9]|many)\b", re.IGNORECASE)
_RIGHT = re.compile(r"\A\W*right\W*\Z", re.IGNORECASE)
_CONTRAST = frozenset({"withcontrast", "withoutcontrast"})
_THAN_NORMAL = re.compile(r"\bthan\s+normal\b", re.IGNORECASE)
_SOUND = frozenset({"normal", "intact"})
_ASPECTS = frozenset(canonical("size limit caliber contour shape thickness width appear look seem"))
"""Words of what is normal about an organ."""
_RESTRICTION = re.compile(r"\b(?:but|however|except|although|though|other\s+than)\b", re.IGNORECASE)


def says_yes(answer: str, question: str, reference: str) -> bool | None:
    """Return what an unpacked answer says: yes, no, or None for neither. See `says`."""
    if (large := _ASKED_LARGE.match(question)) and _ENLARGED.search(answer):
        organ = next((organ for name, organ in _LARGE if name.fullmatch(large["name"])), "")
        question = f"Is the {organ} enlarged?" if organ else question
    answer = _as_asked(answer, question)
    if _ABNORMALITY.search(question) and not _ABNORMALITY.search(answer):
        is_bare = stems(canonical(answer)) <= {"norma", "abnor"}
        question = "Is the image abnormal?" if is_bare else _ABNORMALITY.sub("abnormal", question)
    part, _ = next(conclusions(answer))
    if _ANSWERED.search(part):
        return says(answer, question, reference)
    contrast, given = (_CONTRAST & {*canonical(each)} for each in (question, part))
    if len(contrast) == len(given) == 1:
        return given == contrast
    finding = _asked_to_be_absent(question)
    if finding == "an abnormality":
        denied = CHANGES & {word.text for word in words_of(part) if word.denied}
        if denied == {"enlargement"} and "size" in canonical(question):
            return True
        if (denied and not _HEALTH.search(part)) or _ATTRIBUTE.search(part):
            return None  # another change is possible
    words = canonical(part)
    if len(words) == 1 and {*words} <= COMPLEMENTS.keys() & {*canonical(question)}:
        return True  # the property that was asked for, and nothing else
    if finding is None:
        if _is_called_normal(part, question):
            return False
        if names_bare(part, question):
            return True
    if finding is None or not _is_about(part, finding):
        return says(answer, question, reference)
    if _RESTRICTION.search(part):
        return None
    if _ABSENT_NOT.search(part):
        return False
    found = says(answer, f"Is there {finding}?", reference)
    return None if found is None else not found


def _asked_to_be_absent(question: str) -> str | None:
    """Return the finding whose absence a question asks for, or None."""
    if CHINESE.search(question) or re.search(r"\bor\b", question, re.IGNORECASE):
        return None
    if found := _ABSENCE.search(question):
        return (found["of"] or found["before"]).strip()
    return "an abnormality" if _HEALTH.search(question) else None


def _is_about(text: str, finding: str) -> bool:
    """Tell whether a text says that the finding is there, or is not."""
    if finding == "an abnormality":
        return bool(_ABNORMALITY.search(text)) and not _SOME_ABNORMALITY.search(text)
    return stems(canonical(finding)) <= stems(canonical(text))


def _as_asked(answer: str, question: str) -> str:
    """Rewrite an answer in the words of the question: "cardiomegaly" as "enlarged heart"."""
    if _RIGHT.match(answer) and by_kind("the right side", question) is not None:
        return "the right side"  # and no word of agreement
    asked = set(canonical(question))
    answer = _TO_EXCLUDE.sub(" ", answer)
    if not asked & {"normal", "abnormal"}:
        answer = _NOT_NORMAL.sub("abnormal", answer)  # and no denial of what was asked
    if "healthy" in asked and not _ABNORMALITY.search(answer):
        answer = _CALLED.sub(lambda found: "unhealthy" if found["ab"] else "healthy", answer)
    if asked & {"single", "multiple"}:
        answer = _SEVERAL.sub("multiple", _ONE.sub("single", answer))
    for name, organ in _LARGE:
        if {organ, "enlargement"} <= asked:
            answer = name.sub(f"enlarged {organ}", answer)
            answer = _INCREASED.sub("is enlarged", answer)
    return _OUTLINE.sub("heart", answer) if "heart" in asked else answer


def _is_called_normal(text: str, question: str) -> bool:
    """Tell whether a text only calls normal what the question is about, and so denies a finding.

    "The heart is normal in size" answers "Is the heart enlarged?", and "The liver is normal" does
    not answer it. Only a question about a finding, a change or a comparison can be answered so.
    """
    asked = set(canonical(question))
    rows = [names | about for names, about in FINDINGS if names & asked]
    is_compared = bool(_THAN_NORMAL.search(question))
    if not (rows or asked & CHANGES or is_compared) or _THAN_NORMAL.search(text):
        return False
    if _SOUND & asked and not is_compared:
        return False
    words = words_of(text)
    stated = {ADJECTIVES.get(word.text, word.text) for word in words if not word.denied}
    about = {ADJECTIVES.get(word, word) for word in asked.union(*rows)}
    named = stated - _SOUND
    is_of_it = bool(named) or bool(OF_THE.match(question))  # "normal" alone may be of anything
    return bool(stated & _SOUND) and is_of_it and named - _ASPECTS <= about
