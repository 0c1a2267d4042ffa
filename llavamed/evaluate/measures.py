"""The measures of an answer: `strict`, `legacy`, and token overlap of open answers.

Every measure is a mean over items of a value between 0 and 1. An item with several references takes
the best of them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import sacrebleu
from sacrebleu.metrics import BLEU

from llavamed.evaluate.answers import Answer
from llavamed.evaluate.scorers import exact_token, legacy, strict
from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.scorers.words import CHINESE
from llavamed.evaluate.statistics import Floats

Part = Literal["all", "closed", "open"]
"""All questions, or those of one answer type."""

_ORDERS = (1, 2, 3, 4)
_BLEU = {
    tokenize: BLEU(lowercase=True, effective_order=True, tokenize=tokenize)
    for tokenize in ("13a", "zh")
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A mean over questions."""

    name: str
    """Its name in files and MLflow."""
    title: str
    """Its name in tables."""
    rules: str
    """Name and version of the rules; scores of different rules are not comparable."""
    part: Part
    """The questions that it applies to."""


STRICT, LEGACY, NO_ANSWER = "strict", "legacy", "no_answer"
_TOKENS = exact_token.NAME
_SACREBLEU = f"sacrebleu {sacrebleu.__version__}: sentences, case lc, effective order, smooth exp"

MEASURES = (
    Measure(STRICT, "Strict", strict.NAME, "all"),
    Measure(LEGACY, "Legacy", legacy.NAME, "all"),
    Measure(NO_ANSWER, "Without an answer", strict.NAME, "closed"),
    Measure("token_recall", "Token recall", _TOKENS, "open"),
    Measure("token_precision", "Token precision", _TOKENS, "open"),
    Measure("token_f1", "Token F1", _TOKENS, "open"),
    Measure("exact_match", "Exact match", _TOKENS, "open"),
    *(Measure(f"bleu_{order}", f"BLEU-{order}", _SACREBLEU, "open") for order in _ORDERS),
)
"""Every measure. Files, MLflow, tables and the report follow this list."""

RULES = {each.name: each.rules for each in MEASURES}
"""Name and version of the rules of each measure."""


def measure(answers: Iterable[Answer]) -> dict[str, Floats]:
    """Measure every answer.

    Returns:
        The values of each measure by its name, shape (answers,). A measure of open or closed
        questions only is NaN for the others.
    """
    rows = [_values(answer) for answer in answers]
    return {
        each.name: np.array([row.get(each.name, np.nan) for row in rows], dtype=float)
        for each in MEASURES
    }


def _values(answer: Answer) -> dict[str, float]:
    found = [_of_reference(item) for item in answer.items()]
    return {
        name: (min if name == NO_ANSWER else max)(values[name] for values in found)
        for name in found[0]
    }


def _of_reference(item: Item) -> dict[str, float]:
    verdict = strict.verdict(item)
    values = {STRICT: verdict or 0.0, LEGACY: legacy.score(item)}
    if item.answer_type == "CLOSED":
        return values | {NO_ANSWER: float(verdict is None)}
    return values | _overlap(item.prediction, item.reference)


@lru_cache(maxsize=1 << 15)
def _overlap(prediction: str, reference: str) -> dict[str, float]:
    """Measure how an open answer and its reference overlap, token by token.

    Source: F1 as in Rajpurkar et al., "SQuAD" (2016); BLEU by sacrebleu, of one sentence, where an
    order that the shorter text does not have is left out.
    """
    said, wanted = exact_token.tokens_of(prediction), exact_token.tokens_of(reference)
    both = (Counter(said) & Counter(wanted)).total()
    precision, recall = both / max(1, len(said)), exact_token.open_recall(prediction, reference)
    total = precision + recall
    values = {
        "token_recall": recall,
        "token_precision": precision,
        "token_f1": 2 * precision * recall / total if total else 0.0,
        "exact_match": float(said == wanted),
    }
    bleu = _BLEU["zh" if CHINESE.search(reference) else "13a"]
    counted = bleu.sentence_score(prediction, [reference])
    for order in _ORDERS:
        score = BLEU.compute_bleu(
            counted.counts[:order],
            counted.totals[:order],
            counted.sys_len,
            counted.ref_len,
            smooth_method="exp",
            effective_order=True,
            max_ngram_order=order,
        )
        values[f"bleu_{order}"] = min(1.0, score.score / 100)
    return values
