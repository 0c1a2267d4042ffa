"""Which checkpoints are kept. Deciding it after each save gives what deciding it once would."""

from collections.abc import Sequence
from dataclasses import dataclass

from llavamed.config.run import Checkpoint

HOUR_SECONDS = 3600


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint, as its manifest tells of it."""

    name: str
    seconds: float
    """That the stage had trained by then."""
    loss: float
    """Mean over the steps before it."""


def names_to_keep(saved: Sequence[Saved], settings: Checkpoint) -> set[str]:
    """The newest, the best and one of every so many hours; the others may be deleted.

    Args:
        saved: Oldest first.
        settings: How many, best by what, how many hours.
    """
    kept = {one.name for one in saved[-settings.num_to_keep :]}
    if settings.keep_best == "loss" and saved:
        kept.add(min(saved, key=lambda one: one.loss).name)  # of equal ones the oldest
    if settings.keep_every_hours is not None:
        num_spans = 0
        for one in saved:
            now = int(one.seconds // (settings.keep_every_hours * HOUR_SECONDS))
            if now > num_spans:
                kept.add(one.name)
                num_spans = now
    return kept
