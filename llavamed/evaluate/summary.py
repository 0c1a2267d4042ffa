"""Scores of groups of questions, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llavamed.errors import DataError
from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.statistics import (
    Estimate,
    Floats,
    Indices,
    cluster_indices,
    cluster_key,
    mean_intervals,
)

GroupKey = Literal["answer_type", "question_type", "organ", "modality", "domain"]
"""Fields that questions can be grouped by."""


@dataclass(frozen=True, slots=True)
class QuestionGroup:
    """A group of questions with one score."""

    name: str
    positions: Indices
    """Positions of its questions among all, shape (questions,)."""
    clusters: Indices
    """Cluster number of each of its questions, shape (questions,)."""

    @property
    def num_clusters(self) -> int:
        """Number of clusters of its questions."""
        return len(np.unique(self.clusters))


def group_items(items: Sequence[Item], by: GroupKey = "answer_type") -> list[QuestionGroup]:
    """Sort items into groups, in alphabetical order, with a last group `all`. Raises: DataError.

    Items of one image are a cluster; an item without an image is a cluster of its own.
    """
    labels: list[str] = [getattr(item, by) for item in items]
    if not any(labels):
        raise DataError(f"by={by}: no {by} in any of {len(items)} items; add it, or leave --by out")
    if by == "answer_type":
        labels = [label.lower() for label in labels]
    clusters = cluster_indices([cluster_key(item.image, item.id) for item in items])
    everything = np.arange(len(items))
    groups = []
    for label in sorted(set(labels)):
        positions = everything[[other == label for other in labels]]
        groups.append(QuestionGroup(label or f"without {by}", positions, clusters[positions]))
    return [*groups, QuestionGroup("all", everything, clusters)]


def summarize(
    groups: Sequence[QuestionGroup], scores: Mapping[str, Floats]
) -> dict[str, list[Estimate]]:
    """Estimate the mean score of each group, for each scorer.

    Args:
        groups: Result of `group_items`.
        scores: Scores between 0 and 1 of all items by scorer, shape (items,).
    """
    table = np.stack(list(scores.values()))
    columns = [mean_intervals(table[:, group.positions], group.clusters) for group in groups]
    return dict(zip(scores, map(list, zip(*columns, strict=True)), strict=True))


def describe_clusters(items: Sequence[Item]) -> str:
    """Describe in a sentence what the intervals treat as independent."""
    num_images = len({item.image for item in items if item.image})
    plural = "s" if num_images > 1 else ""
    without = sum(not item.image for item in items)
    if without == len(items):
        return (
            "95 % intervals by item, because no item names its image; where questions share images "
            "they are too narrow"
        )
    alone = f" and {without:,} items without one, each for itself" if without else ""
    return f"95 % intervals, clustered by image: {num_images:,} image{plural}{alone}"
