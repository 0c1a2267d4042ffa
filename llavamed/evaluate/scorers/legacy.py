"""The rules of LLaVA-Med's two scoring scripts, faults included, for comparison with its tables.

Source: LLaVA-Med v1.0.0, `llava/eval/run_eval.py` and `run_eval_batch.py`; rewritten from what they
compute. Known faults, kept on purpose: a closed answer counts when it occurs as a substring of the
normalized text, so "no" is right wherever "normal" stands, and a reference that normalizes to
nothing, such as the letter "A", always; precision and recall count a word as often as the
prediction repeats it; "exact match" is a precision; BLEU of short references has no smoothing.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llavamed.evaluate.scorers.item import Item

NAME = "legacy/2"

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32
"""The scripts pass `re.UNICODE`, which is 32, as the number of replacements."""
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        str.split("zero one two three four five six seven eight nine ten")
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_NEGATED = (
    "ai are ca could did does do had has have is might must need ought sha should was were wo would"
)
_FORMS = (
    *(f"{verb}n't" for verb in _NEGATED.split()),
    *(
        f"{word}'ve"
        for word in str.split("could might must not should they we what where who would you")
    ),
    *(f"{word}'d" for word in str.split("he how it someone something there they where who you")),
    *(
        f"{word}'ll"
        for word in str.split("how it somebody someone something they what who why you")
    ),
    *(
        f"{word}'s"
        for word in str.split("he how somebody someone that there what when where who why")
    ),
    *(f"{word}'re" for word in str.split("there they what why you")),
    *(f"{verb}n't've" for verb in str.split("could had might should would")),
    *(
        f"{word}'d've"
        for word in str.split("he it she somebody someone something there they we who you")
    ),
    *("ma'am", "o'clock", "y'all", "y'all'll", "y'all'd've", "'twas", "'ow's'at"),
)
_CONTRACTIONS = {
    form[:at] + form[at + 1 :]: form
    for form in _FORMS
    for at, sign in enumerate(form)
    if sign == "'"
} | {"somebody'd": "somebodyd"}
"""Contractions by their spelling without one of the apostrophes, and one the wrong way round."""


def normalize(text: str) -> str:
    """Normalize a text as the scripts do before they compare words."""
    words = (_NUMBERS.get(word, word) for word in strip_punctuation(text.lower()).split())
    kept = (_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
    return " ".join(kept).replace(",", "")


def strip_punctuation(text: str) -> str:
    """Delete punctuation next to a space, and put a space in the place of any other.

    Source: the official evaluation of VQA (Agrawal et al., 2015), from which it was copied into
    many kits together with its faults.
    """
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or _DIGIT_COMMA.search(text) else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


@dataclass(frozen=True, slots=True)
class LegacyScores:
    """Measures of one item. All but the last two are for open questions."""

    exact_match: float
    f1: float
    precision: float
    recall: float
    bleu: tuple[float, float, float, float]
    """BLEU-4 without smoothing, then of 1-, 2- and 3-grams alone."""
    closed_substring: int
    """Rule of `run_eval_batch.py`, which made the paper's tables."""
    closed_run_eval: int
    """Rule of `run_eval.py`, which also wants a "yes" or "no" somewhere in the prediction."""


def measure(item: Item) -> LegacyScores:
    """Compute all measures of one item."""
    reference, prediction = normalize(item.reference), normalize(item.prediction)
    # The scripts compare words of texts that they have normalized twice.
    wanted, said = (Counter(normalize(text).split()) for text in (reference, prediction))
    found = sum(1 for word in wanted if word in said)
    hits = sum(count for word, count in said.items() if word in wanted)
    missed = sum(count for word, count in wanted.items() if word not in said)
    total = said.total()
    precision = hits / total if hits else 0.0
    recall = hits / (hits + missed) if hits else 0.0
    substring = int(reference in prediction)
    has_yes_or_no = "yes" in prediction or "no" in prediction
    return LegacyScores(
        exact_match=found / total if total else 0.0,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        precision=precision,
        recall=recall,
        bleu=_bleu(reference.split(), prediction.split()),
        closed_substring=substring,
        closed_run_eval=int(substring and has_yes_or_no),
    )


def score(item: Item) -> float:
    """Score one item as the paper's tables do: recall of open, substring of closed questions."""
    scores = measure(item)
    return scores.recall if item.answer_type == "OPEN" else float(scores.closed_substring)


def nearest_candidate(prediction: str, candidates: Mapping[str, frozenset[str]]) -> str:
    """Return the training answer of whose words a prediction has most, the first of equals.

    Args:
        prediction: What was answered.
        candidates: The normalized training answers, each with its words.
    """
    said = frozenset(normalize(normalize(prediction)).split())

    def share(candidate: str) -> float:
        words = candidates[candidate]
        return len(said & words) / max(1, len(words))

    return max(candidates, key=share, default="")


def _bleu(reference: Sequence[str], prediction: Sequence[str]) -> tuple[float, float, float, float]:
    """Sentence BLEU without smoothing: of 4-grams, then of 1-, 2- and 3-grams alone.

    Source: Papineni et al., "BLEU" (2002). An n-gram that does not occur counts as the smallest
    float, as the library that the scripts call has it.
    """
    precisions = [_clipped_precision(reference, prediction, size) for size in (1, 2, 3, 4)]
    if not precisions[0]:
        return (0.0, 0.0, 0.0, 0.0)
    ratio = len(reference) / len(prediction)
    brevity = 1.0 if ratio < 1 else math.exp(1 - ratio)
    logs = [math.log(precision or sys.float_info.min) for precision in precisions]
    single = (brevity * math.exp(each) for each in logs[:3])
    return (brevity * math.exp(sum(logs) / 4), *single)  # type: ignore[return-value]


def _clipped_precision(reference: Sequence[str], prediction: Sequence[str], size: int) -> float:
    """Return the clipped n-gram precision of a prediction."""
    there, said = (
        Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))
        for words in (reference, prediction)
    )
    return (there & said).total() / max(1, said.total())


def aggregate(items: Iterable[Item], candidates: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Average over items as each of the two scripts does, in percent.

    Args:
        items: The answered questions.
        candidates: The open answers of the training set. `run_eval.py` compares the one that is
            most like the prediction with the reference; without candidates that average is absent.
    """
    measured = [(item, measure(item)) for item in items]
    open_ = [(item, scores) for item, scores in measured if item.answer_type == "OPEN"]
    closed = [scores for item, scores in measured if item.answer_type == "CLOSED"]
    shared = {
        "exact match score": _percent(scores.exact_match for _, scores in open_),
        "f1 score": _percent(scores.f1 for _, scores in open_),
        "precision": _percent(scores.precision for _, scores in open_),
        "recall": _percent(scores.recall for _, scores in open_),
        "bleu_score": _percent(scores.bleu[0] for _, scores in open_),
        **{
            f"bleu_score_{size}": _percent(scores.bleu[size] for _, scores in open_)
            for size in (1, 2, 3)
        },
    }
    normalized = map(normalize, candidates)
    words = {candidate: frozenset(candidate.split()) for candidate in normalized}
    nearest = (
        nearest_candidate(item.prediction, words) == normalize(normalize(item.reference))
        for item, _ in open_
    )
    open_accuracy = {"open accuracy": _percent(map(float, nearest))} if candidates else {}
    return {
        "run_eval": shared
        | open_accuracy
        | {
            "yes/no accuracy": _percent(float(scores.closed_run_eval) for scores in closed),
        },
        "run_eval_batch": shared
        | {
            "open accuracy": _percent(float(scores.closed_substring) for _, scores in open_),
            "yes/no accuracy": _percent(float(scores.closed_substring) for scores in closed),
            "recall_closed": _percent(scores.recall for scores in closed),
        },
    }


def _percent(values: Iterable[float]) -> float:
    given = list(values)
    return 100 * sum(given) / len(given) if given else 0.0
