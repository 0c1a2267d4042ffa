"""Count the training samples that an evaluation set has too, beside every score of a stage."""

import logging
from collections.abc import Sequence
from typing import get_args

from llavamed.config.run import RunConfig
from llavamed.data.prepared.decontaminate import Criterion, find_contamination
from llavamed.errors import DataError
from llavamed.evaluate.answers import Overlap

logger = logging.getLogger(__name__)


def find_overlaps(config: RunConfig, names: Sequence[str], against: str) -> tuple[Overlap, ...]:
    """Compare training sets with an evaluation set; sets that are gone are named in a warning.

    Args:
        config: The run's.
        names: The training sets; the evaluation set itself may be among them.
        against: The evaluation set.
    """
    overlaps = []
    for name in dict.fromkeys(names):
        if name == against:
            logger.warning("%s: is trained on and evaluated on", name)
            continue
        try:
            found = find_contamination(config, name, [against], by=get_args(Criterion))
        except DataError as error:
            logger.warning("%s: not compared with %s: %s", name, against, error)
            continue
        shared = {criterion: found.count([criterion]) for criterion in get_args(Criterion)}
        overlaps.append(Overlap(dataset=name, num_samples=found.dataset.num_samples, shared=shared))
    return tuple(overlaps)
