"""Compare predictions of several models on the same questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llavamed.errors import DataError
from llavamed.evaluate.answers import count_ids
from llavamed.evaluate.scorers import strict
from llavamed.evaluate.scorers.item import Item, Rule, score_best
from llavamed.evaluate.statistics import (
    Estimate,
    Floats,
    difference_intervals,
    holm,
    mcnemar_test,
    mean_intervals,
    sign_flip_test,
)
from llavamed.evaluate.summary import GroupKey, QuestionGroup, group_items

_ASKED = (
    *("question", "reference", "other_references", "answer_type", "options"),
    *("image", "question_type", "organ", "modality", "domain"),
)
"""Fields of the question, which must be the same in every file that states them."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher a file scores than the first one on the same questions."""

    estimate: Estimate
    p_value: float
    """p-value of the sign-flip test by cluster, adjusted by Holm."""
    mcnemar: float | None
    """p-value of the exact McNemar test, not adjusted; None if a score is neither 0 nor 1."""


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """Scores of all files on one group of questions."""

    group: QuestionGroup
    scores: list[Estimate]
    """One score per file."""
    differences: list[Difference]
    """Differences to the first file, one for each of the others."""


def align(files: Mapping[str, Sequence[Item]]) -> dict[str, list[Item]]:
    """Put the items of each file in the order of the first, and check that the questions agree.

    A file may leave out what another one states of a question, such as its image; it is filled in.

    Raises:
        DataError: A file lacks questions or has others, or two files state a question differently.
    """
    (first, asked), *others = files.items()
    by_id = {name: {item.id: item for item in items} for name, items in files.items()}
    for name, _ in others:
        lacking = [item.id for item in asked if item.id not in by_id[name]]
        foreign = [id_ for id_ in by_id[name] if id_ not in by_id[first]]
        if lacking or foreign:
            raise DataError(
                f"{name}: of the {len(asked)} questions of {first} it lacks {count_ids(lacking)}, "
                f"and it has {count_ids(foreign)} besides; compare files that answer the same "
                "questions"
            )
    facts: dict[str, dict[str, Any]] = {}
    conflicts: dict[str, str] = {}
    for item in asked:
        facts[item.id] = {}
        for key in _ASKED:
            stated = {name: getattr(by_id[name][item.id], key) for name in files}
            facts[item.id][key] = next(filter(None, stated.values()), stated[first])
            told = {name: value for name, value in stated.items() if value}
            if any(value != facts[item.id][key] for value in told.values()):
                conflicts[item.id] = ", ".join(
                    f"{key}={value!r} in {name}" for name, value in told.items()
                )
    if conflicts:
        id_, details = next(iter(conflicts.items()))
        raise DataError(
            f"id={id_!r}: has {details}; such questions are {count_ids(list(conflicts))} of "
            f"{len(asked)}; compare files that answer the same questions"
        )
    return {
        name: [replace(by_id[name][item.id], **facts[item.id]) for item in asked] for name in files
    }


def compare(
    files: Sequence[Sequence[Item]], rule: Rule, by: GroupKey = "answer_type"
) -> list[GroupComparison]:
    """Score files and compare each with the first, by group of questions and overall.

    The differences over all questions are one family of tests, those of the groups another; Holm's
    adjustment is for each family.

    Args:
        files: Items of the same questions in the same order, from `align`.
        rule: A scorer.
        by: What groups the questions.

    Raises:
        DataError: No item has a value for the field to group by.
    """
    scores = np.array([[score_best(rule, item) for item in items] for items in files])
    *groups, everything = [
        _compare(group, scores[:, group.positions]) for group in group_items(files[0], by)
    ]
    return [*_adjusted(groups), *_adjusted([everything])]


def _compare(group: QuestionGroup, scores: Floats) -> GroupComparison:
    first, others = scores[0], scores[1:]
    return GroupComparison(
        group,
        mean_intervals(scores, group.clusters),
        [
            Difference(
                estimate, sign_flip_test(other - first, group.clusters), mcnemar_test(first, other)
            )
            for other, estimate in zip(
                others, difference_intervals(first, others, group.clusters), strict=True
            )
        ],
    )


def _adjusted(family: Sequence[GroupComparison]) -> list[GroupComparison]:
    adjusted = iter(holm([each.p_value for found in family for each in found.differences]))
    return [
        replace(
            found, differences=[replace(each, p_value=next(adjusted)) for each in found.differences]
        )
        for found in family
    ]


def no_answer_shares(files: Sequence[Sequence[Item]]) -> list[Estimate]:
    """Estimate for each file the share of closed questions whose answer makes no choice.

    Empty where there is no closed question. The strict rules decide what a choice is.
    """
    closed = next((each for each in group_items(files[0]) if each.name == "closed"), None)
    if closed is None:
        return []
    none = [[not strict.is_answered(items[place]) for place in closed.positions] for items in files]
    return mean_intervals(np.array(none, dtype=float), closed.clusters)
