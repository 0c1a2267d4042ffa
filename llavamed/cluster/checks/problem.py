"""The findings of checks, and the objects that checks iterate over."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llavamed.cluster.kinds import Object, name_of
from llavamed.cluster.pods import PodGroup, groups_of
from llavamed.cluster.snapshot import Snapshot


@dataclass(frozen=True)
class Problem:
    """Something that is wrong or may go wrong."""

    level: Literal["warning", "failure"]
    text: str


def failure(text: str) -> Problem:
    """Return a problem that stops runs."""
    return Problem("failure", text)


def warning(text: str) -> Problem:
    """Return a problem that may stop or slow down runs."""
    return Problem("warning", text)


def title(thing: Object) -> str:
    """Return kind and name of an object."""
    return f"{thing['kind']} {name_of(thing)}"


def each_group(snapshot: Snapshot) -> Iterator[tuple[Object, PodGroup]]:
    """Yield every group of pods with the RayCluster or RayJob that it belongs to."""
    for thing in snapshot.ray:
        for group in groups_of(thing):
            yield thing, group


def minor_version(text: str) -> tuple[int, int] | None:
    """Return major and minor of a version such as `v1.7.0`, or None for any other text."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None
