"""Unpack an answer: strip reasoning, tags, code, JSON, Markdown and a repeated question."""

import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

_THOUGHT = re.compile(
    r"<(think|thinking|thought|reasoning|reflection|scratchpad|analysis)\b[^>]*>.*?(</\1\s*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_END_OF_THOUGHT = re.compile(
    r"\A.*</(?:think|thinking|thought|reasoning|reflection|scratchpad|analysis)\s*>",
    re.DOTALL | re.IGNORECASE,
)
_MARKS = (
    (
        re.compile(
            r"◁think▷|\[THINK\]|<unused94>(?:thought)?|<\|(?:begin_of|START)_(?:thought|THINKING)\|>"
        ),
        "<think>",
    ),
    (
        re.compile(r"◁/think▷|\[/THINK\]|<unused95>|<\|(?:end_of|END)_(?:thought|THINKING)\|>"),
        "</think>",
    ),
    (re.compile(r"~~.+?~~"), " "),
    (re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]|<\\|START_(?:TEXT|RESPONSE)\\|>"), ""),
    (re.compile(r"\A.*<\|channel\|>\s*final\s*<\|message\|>", re.DOTALL), ""),
    (re.compile(r"<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.DOTALL), r"\\boxed{\1}"),
)
"""What some models write for marks that all know: of thought, of what is struck out, of a box.
Signs without a width vanish."""
_FENCE = re.compile(r"```(?:[a-z]*\s*\n)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_ANSWER_TAG = re.compile(
    r"<(answer|final_answer|response|output|result)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE
)
_SPACES = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n\s*\n\s*")
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_QUOTED = re.compile(r"[\"“”']([^\"“”]*[^\"“”'])[\"“”'][.]?")
_NEXT_TURN = re.compile(
    r"###(?!\s*(?:final|answer|conclusion|reasoning|finding|impression|summary|analysis|step|thought)"
    r")|<\|[a-z_]+\|>|</s>|(?:^|\n)\s*(?:human|user|question)\s*:",
    re.IGNORECASE,
)
_SPEAKER = re.compile(r"\A\s*(?:assistant|ai|model|gpt|bot|response|output)\s*:\s*", re.IGNORECASE)
_MARKDOWN = re.compile(r"[*`]+|(?<!\w)_+|_+(?!\w)|(?:^|\n)\s*(?:#+|>(?!\s*\d)|-)\s+")
_KEYS = ("final_answer", "answer", "prediction", "response", "output", "result", "choice", "label")

_MARKER = re.compile(
    r"""(?P<strong>
        \bfinal\s+(?:answer|decision|verdict)\b\s*(?:is|:|-|=)*
      | \b(?:(?:the|my)\s+(?:\w+\s+)?)?(?:answer|response|choice)
        (?:\s+(?:is|would\s+be|should\s+be)\b|\s*[:=])
      | \bthe\s+(?:correct|right|best|true)\s+(?:one|option|letter|alternative)
        (?:\s+(?:is|would\s+be|should\s+be)\b|\s*[:=])
      | \b(?:my\s+)?best\s+(?:guess|bet)(?:\s+(?:is|would\s+be)\b|\s*[:=])
      | \bi(?:['’]m|\s+am)?\s+lean(?:ing)?\s+to(?:wards?)?\b
      | \bi(?:\s+would|['’]d|\s+will|\s+now)?\s+(?:choose|pick|select|go\s+with|opt\s+for|favou?r)\b
      | \b(?:answer|ans|conclusion|verdict|result|response)\s*[:=]
      | 最终答案(?:是|为|:)? | 答案(?:是|为|:) | 结论(?:是|为|:)? | 回答:
      | \bantwort\s*: | \bréponse\s*: | \brespuesta\s*:
    )
    | (?P<correction>
        \bwait\b | \bhold\s+on\b | \bcorrection\b\s*:?
      | \bsorry\b(?=\s*,?\s*(?:no|yes|i\s+mean|it|the|that|left|right|\(?[A-Z]\b))
      | \b(?:but\s+on|on\s+(?:a\s+)?(?:second|closer|further))
        \s+(?:thoughts?|look|inspection|review)\b
      | \blooking\s+again\b
      | \blet\s+me\s+(?:correct|rephrase|reconsider|revise|rethink)\b
      | \b(?:i\s+now|now\s+i)\s+(?:think|believe|see|say)\b | \bi\s+change[ds]?\s+my\s+mind\b
      | \bi\s+mean\b | \bscratch\s+that\b | \bi\s+meant\b
      | \bi\s+take\s+that\s+back\b | \bi\s+stand\s+corrected\b
      | (?:[?,]\s*no[,.]?|[.;]\s*no,)\s+(?=(?:the\s+)?(?:left|right|upper|middle|lower)\b
        |\(?[A-Z]\)?\W*\Z)
      | \bi\s+was\s+(?:wrong|mistaken)\b | \bmy\s+(?:mistake|bad|error)\b
      | (?:^|[.;!?,\n—-]\s*)actually\b | \bno,\s+actually\b | 更正 | 不对, | 应该是
    )
    | (?P<weak>
        (?:^|[.;!?\n]\s*)(?:so|therefore|thus|hence|overall|consequently|ultimately
        |in\s+(?:conclusion|summary|short)|to\s+(?:conclude|summari[sz]e|sum\s+up))\b
      | [,;.]\s*(?:but\s+)?(?:most\s+likely|most\s+probably|probably|more\s+likely)
        (?=\s+\(?(?:[A-Z]|left|right)\b(?!\s+(?:and|or)\b))
      | ,\s*so\s+(?:it\s+is\s+|it['’]s\s+|the\s+)*(?=\(?(?:[A-Z]|left|right|yes|no)\)?\W*\Z)
      | \b(?:it\s+is|it['’]s|leaving|leaves)\s+(?=\(?[A-Z]\)?\W*\Z)
      | 所以 | 因此 | 综上 | 总之
    )""",
    re.VERBOSE | re.IGNORECASE,
)


_EXPLANATION = re.compile(
    r"(?:^|[.;\n])\s*(?:long(?:er)?\s+answer|explanation|reason(?:ing)?|rationale|justification|evidence)\s*:",
    re.IGNORECASE,
)


_CONCESSION = re.compile(
    r"[,;.]?\s*\b(?:(?:al|even\s+)?though|while)\s+[^.;\n]{0,120}?"
    r"\b(?:possib(?:le|ility)|conceivable|in\s+the\s+differential"
    r"|(?:cannot|can['’]t|could\s+not)\s+be\s+(?:ruled\s+out|excluded))\b",
    re.IGNORECASE,
)
"""A concession beside an answer: "left, although the right is possible"."""
_PREFERRED = re.compile(
    r"(?:\b(?:or|vs|versus)\b|/).{1,60}?[,;.(—-]\s*(?:but\s+|and\s+|with\s+)?"
    r"(?:(?:(?:most|more)\s+)?(?:likely|probably)\s+(?P<after>\w[^.,;()\n]*)"
    r"|(?P<before>\w[^.,;()\n]{0,80}?)\s+(?:(?:is|being|seems)\s+)?"
    r"(?:(?:most|more)\s+(?:likely|probable)|favou?red|preferred)\b)",
    re.IGNORECASE | re.DOTALL,
)
"""The alternative that a speaker prefers: "MRI or CT, probably MRI"."""
_LESSER = re.compile(
    r"[,;(]\s*(?:but\s+|and\s+|or\s+)?(?:less\s+likely|possibly)\s+\w[^.,;()\n]*\)?"
    r"|[,;(]\s*(?:but\s+)?\w[^.,;()\n]*?\s+(?:is\s+|being\s+)?less\s+likely\b\)?"
    r"|\b(?:is\s+)?more\s+(?:likely|probable)\s+than\s+\w[^.,;()\n]*",
    re.IGNORECASE,
)
"""An alternative to which another is preferred: "MRI (less likely CT)"."""
_MOST = 8
"""Number of marked conclusions that are read, so that a long answer takes time in proportion."""
_SCRIPTS = re.compile(r"(?<=[\u3400-\u9fff])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[\u3400-\u9fff])")
"""Boundary between Chinese and Latin characters, where a word ends."""


def unpack(prediction: str, question: str = "") -> str:
    """Return the words of an answer without what surrounds them.

    Removed are thought between tags, all but the last answer tag or box, code fences, JSON around
    an answer, Markdown, a speaker's name, a repeated question, a labelled explanation or a
    concession after the answer, and whatever a model writes in the name of the next speaker.
    """
    text = unicodedata.normalize("NFKC", prediction)
    for mark, known in _MARKS:
        text = mark.sub(known, text)
    # Rules that skip spaces would take the square of a long run of them.
    text = _EMPTY_LINES.sub("\n\n", _SPACES.sub(" ", text))
    text = _THOUGHT.sub(" ", text)
    text = _END_OF_THOUGHT.sub("", text).strip()
    if fence := _FENCE.search(text):
        text = fence[1].strip() or text.replace("```", "")
    text = _from_json(text)
    boxed = list(_BOXED.finditer(text))
    if boxed and not _concludes(text[boxed[-1].end() :]):
        text = boxed[-1][1]
    text = _LATEX_TEXT.sub(r"\1", text)
    if answers := [found[1] for found in _ANSWER_TAG.findall(text) if found[1].strip()]:
        text = answers[-1]
    text = _without_question(text, question)
    text = _first_turn(text)
    without_tags = _TAG.sub(" ", text)
    text = without_tags if re.search(r"\w", without_tags) else text  # "<yes>" is an answer
    text = _without_explanation(_SPACES.sub(" ", _MARKDOWN.sub(" ", text)))
    conceded = _CONCESSION.search(text)
    if conceded and text[: conceded.start()].strip():
        text = _CONCESSION.sub(" ", text)
    text = _SCRIPTS.sub(" ", text)
    text = _SPEAKER.sub("", text).strip()
    quoted = _QUOTED.fullmatch(text)
    return quoted[1].strip() if quoted else text


def conclusions(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of an answer, the most decisive first: the last conclusions, then the whole.

    A marked conclusion ("final answer:") or a correction ("no, wait") beats the words before it.

    Yields:
        A part of the text, and whether an open verdict there is final: a model that ends with "the
        answer cannot be determined" has not answered, whatever stands before.
    """
    for marker in islice(reversed(list(_MARKER.finditer(text))), _MOST):
        after = text[marker.end() :].lstrip(" :,.-—=")
        if after.strip():
            yield after, marker.lastgroup != "weak"
    yield text, True


def weighed(text: str) -> str:
    """Return what is left of a text when the alternatives that it finds less likely are gone."""
    if preferred := _PREFERRED.search(text):
        return preferred["after"] or preferred["before"]
    return _LESSER.sub(" ", text)


def _concludes(text: str) -> bool:
    """Tell whether a text states an answer after a mark such as "answer:"."""
    marks = (found for found in _MARKER.finditer(text) if found["strong"])
    return any(re.search(r"\w", text[mark.end() :]) for mark in marks)


def _from_json(text: str) -> str:
    """Return the answer that a JSON object carries, or the text where there is none."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return text
    try:
        found = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return text
    return _of_object(found, text)


def _of_object(found: object, text: str) -> str:
    if not isinstance(found, dict):
        return text
    folded = {str(key).lower().replace(" ", "_"): value for key, value in found.items()}
    value = next((folded[key] for key in _KEYS if key in folded), None)
    if value is None and len(folded) == 1:
        value = next(iter(folded.values()))
    match value:
        case bool():
            return "yes" if value else "no"
        case str() | int() | float():
            return str(value)
        case list() if value and all(isinstance(each, str) for each in value):
            return ", ".join(value)
        case dict():
            return _of_object(value, json.dumps(value))
    return text


def _without_question(text: str, question: str) -> str:
    """Drop a repetition of the question at the start of an answer."""
    asked = unicodedata.normalize("NFKC", question).strip()
    if asked:
        words = r"\s+".join(re.escape(word) for word in asked.split())
        repeated = re.compile(rf"\A\W*(?:q(?:uestion)?\s*:)?\s*{words}\s*", re.IGNORECASE)
        found = repeated.match(text)
        if found and text[found.end() :].strip():
            return text[found.end() :]
    return text


def _without_explanation(text: str) -> str:
    """Cut where an explanation begins, unless the answer follows it or nothing precedes it."""
    for found in _EXPLANATION.finditer(text):
        concludes = any(marker["strong"] for marker in _MARKER.finditer(text, found.end()))
        if text[: found.start()].strip() and not concludes:
            return text[: found.start()]
    return text


def _first_turn(text: str) -> str:
    """Cut where the next speaker begins, unless nothing precedes it."""
    for found in _NEXT_TURN.finditer(text):
        if text[: found.start()].strip():
            return text[: found.start()]
    return text
