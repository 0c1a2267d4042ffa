"""Choose which checkpoints to keep; choosing after each save keeps the same as choosing once."""

from collections.abc import Sequence
from dataclasses import dataclass

from llavamed.config.run import Checkpoint

HOUR_SECONDS = 3600


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint, as described by its manifest."""

    name: str
    seconds: float
    """Seconds that the stage had trained when it was saved."""
    loss: float
    """Mean loss over the steps since the checkpoint before."""


def names_to_keep(saved: Sequence[Saved], settings: Checkpoint) -> set[str]:
    """Return the newest, the best and one checkpoint for each span of hours; others may be deleted.

    Args:
        saved: Complete checkpoints, oldest first.
        settings: How many of the newest to keep, what makes one best, and the span in hours.
    """
    kept = {one.name for one in saved[-settings.num_to_keep :]}
    if settings.keep_best == "loss" and saved:
        kept.add(min(saved, key=lambda one: one.loss).name)  # the oldest of equal ones
    if settings.keep_every_hours is not None:
        num_spans = 0
        for one in saved:
            now = int(one.seconds // (settings.keep_every_hours * HOUR_SECONDS))
            if now > num_spans:
                kept.add(one.name)
                num_spans = now
    return kept
