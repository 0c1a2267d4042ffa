"""Read answers to questions that ask whether something is absent: "free of", "normal", "healthy".

Such a question and a sentence such as "no consolidation is seen" agree, though the sentence denies.
So a sentence about the finding is read as an answer to whether it is there, and turned round.
"""

import re

from llavamed.evaluate.scorers.restating import stems
from llavamed.evaluate.scorers.unpack import conclusions
from llavamed.evaluate.scorers.words import CHINESE, canonical
from llavamed.evaluate.scorers.yes_no import says

_ABSENCE = re.compile(
    r"\b(?:(?:free|clear|devoid|absence|lack)\s+(?:of|from)|negative\s+for"
    r"|without(?!\s+(?:\w+\s+)?contrast))\s+(?:any\s+|an?\s+)?(?P<of>[\w -]+)"
    r"|\b(?:is|are)\s+(?:the\s+|an?\s+)?(?P<before>[\w -]+?)\s+absent\b",
    re.IGNORECASE,
)
_HEALTH = re.compile(r"(?<!than )(?<!not )\b(?:normal|healthy|unremarkable|clear)\b", re.IGNORECASE)
"""What is asked of something without abnormality. "Larger than normal" is not."""
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
_RESTRICTION = re.compile(r"\b(?:but|however|except|although|though|other\s+than)\b", re.IGNORECASE)


def says_yes(answer: str, question: str, reference: str) -> bool | None:
    """Return what an unpacked answer says: yes, no, or None for neither. See `says`."""
    if _ABNORMALITY.search(question) and not _ABNORMALITY.search(answer):
        is_bare = stems(canonical(answer)) <= {"norma", "abnor"}
        question = "Is the image abnormal?" if is_bare else _ABNORMALITY.sub("abnormal", question)
    finding = _asked_to_be_absent(question)
    part, _ = next(conclusions(answer))
    if finding is None or _ANSWERED.search(part) or not _is_about(part, finding):
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
