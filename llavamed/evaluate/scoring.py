"""Score answers under every condition, in groups, with intervals and gains over the controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llavamed.evaluate.answers import Answer
from llavamed.evaluate.measures import LEGACY, MEASURES, STRICT, Part, measure
from llavamed.evaluate.statistics import (
    Estimate,
    Floats,
    Indices,
    cluster_indices,
    cluster_key,
    difference_intervals,
    mean_intervals,
)
from llavamed.storage.manifest import EstimateFacts, GroupScores

Flags: TypeAlias = NDArray[np.bool_]
Facts: TypeAlias = dict[str, dict[str, EstimateFacts]]

BLANK = "blank_image"
"""The control whose difference to the trained model is the grounding."""
GROUPS: tuple[Literal["question_type", "organ", "modality", "domain", "language"], ...] = (
    "question_type",
    "organ",
    "modality",
    "domain",
    "language",
)
"""Properties that questions are grouped by."""
_PARTS: tuple[Part, ...] = ("all", "closed", "open")


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of all answers."""

    groups: tuple[GroupScores, ...]
    values: Mapping[str, Mapping[str, Floats]]
    """Values of all items by condition and measure, shape (items,)."""


def find_group(groups: Sequence[GroupScores], part: str = "all") -> GroupScores | None:
    """Return the group of all questions of a part, or None if there is none."""
    return next((each for each in groups if (each.part, each.by) == (part, "all")), None)


def score_answers(answers: Mapping[str, Sequence[Answer]]) -> Scored:
    """Score the answers of every condition.

    Items that share an image are a cluster in every interval; an item without an image is one of
    its own.

    Args:
        answers: By condition, of the same items in the same order, as `read_answers` returns them.
            The first condition is under test.
    """
    items = next(iter(answers.values()))
    values = {condition: measure(given) for condition, given in answers.items()}
    clusters = cluster_indices([cluster_key(each.image, each.id) for each in items])
    groups = []
    for by, name, members in _memberships(items):
        for part in _PARTS:
            chosen = members & _is_of(part, items)
            if chosen.any() and (part != "all" or by == "all"):
                groups.append(
                    _score_items(by, name, part, np.flatnonzero(chosen), values, clusters)
                )
    if pairs := _pairs(items):
        groups.append(_score_pairs(pairs, values, clusters))
    return Scored(tuple(groups), values)


def _memberships(items: Sequence[Answer]) -> list[tuple[str, str, Flags]]:
    """Return the property, the name and the items of each group."""
    found: list[tuple[str, str, Flags]] = [("all", "all", np.ones(len(items), dtype=bool))]
    for by in GROUPS:
        labels = [getattr(each, by) for each in items]
        names = sorted(set(labels))
        if len(names) > 1:
            found += [(by, name, np.array([each == name for each in labels])) for name in names]
    return found


def _is_of(part: Part, items: Sequence[Answer]) -> Flags:
    return np.array([part in ("all", each.answer_type.lower()) for each in items], dtype=bool)


def _score_items(
    by: str,
    name: str,
    part: Part,
    positions: Indices,
    values: Mapping[str, Mapping[str, Floats]],
    clusters: Indices,
) -> GroupScores:
    names = [each.name for each in MEASURES if each.part in ("all", part)]
    tables = {
        condition: np.stack([given[each][positions] for each in names])
        for condition, given in values.items()
    }
    scores, gains = _estimate(names, tables, clusters[positions])
    return GroupScores(
        by=by,
        name=name,
        part=part,
        num_questions=len(positions),
        num_images=len(np.unique(clusters[positions])),
        scores=scores,
        gains=gains,
    )


def _pairs(items: Sequence[Answer]) -> list[list[int]]:
    """Return the positions of the items of each pair."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if item.pair:
            places.setdefault(item.pair, []).append(place)
    return list(places.values())


def _score_pairs(
    pairs: Sequence[Sequence[int]], values: Mapping[str, Mapping[str, Floats]], clusters: Indices
) -> GroupScores:
    """Score pairs of items by the lower score of each pair."""
    names = [STRICT, LEGACY]
    tables = {
        condition: np.array([[given[each][pair].min() for pair in pairs] for each in names])
        for condition, given in values.items()
    }
    those = clusters[[pair[0] for pair in pairs]]
    scores, gains = _estimate(names, tables, those)
    return GroupScores(
        by="all",
        name="all",
        part="pairs",
        num_questions=len(pairs),
        num_images=len(np.unique(those)),
        scores=scores,
        gains=gains,
    )


def _estimate(
    names: Sequence[str], tables: Mapping[str, Floats], clusters: Indices
) -> tuple[Facts, Facts]:
    """Estimate the means of every condition, and how much higher the first one is than each other.

    Args:
        names: Names of the measures, one per row of each table.
        tables: Values by condition, shape (measures, items).
        clusters: Number of each item's cluster, shape (items,).
    """
    conditions = list(tables)
    means = mean_intervals(np.concatenate(list(tables.values())), clusters)
    scores = _by_condition(conditions, names, means)
    if len(conditions) == 1:
        return scores, {}
    first, *controls = tables.values()
    differences = difference_intervals(
        np.concatenate(controls), np.tile(first, (len(controls), 1)), clusters
    )
    return scores, _by_condition(conditions[1:], names, differences)


def _by_condition(
    conditions: Sequence[str], names: Sequence[str], estimates: Sequence[Estimate]
) -> Facts:
    rows = iter(estimates)
    found: Facts = {}
    for condition in conditions:
        found[condition] = {}
        for name in names:
            row = next(rows)
            found[condition][name] = EstimateFacts(value=row.value, low=row.low, high=row.high)
    return found
