"""Count the training samples that also occur in an evaluation set."""

import logging
from collections.abc import Sequence
from typing import get_args

from llavamed.config.gate import Criterion
from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import open_prepared
from llavamed.data.prepared.decontaminate import find_contamination
from llavamed.errors import DataError
from llavamed.evaluate.answers import Overlap
from llavamed.storage.location import locate

logger = logging.getLogger(__name__)


def find_overlaps(
    config: RunConfig, names: Sequence[str], against: str
) -> tuple[Overlap, ...] | None:
    """Compare training sets with an evaluation set.

    Args:
        names: The training sets; the evaluation set itself may be among them, and shares all.
        against: The evaluation set.

    Returns:
        The overlap of each training set. None, with a warning, if one is gone.
    """
    overlaps = []
    for name in dict.fromkeys(names):
        try:
            if name == against:
                logger.warning(
                    "%s: is trained on and evaluated on, so its scores say nothing about other "
                    "questions; evaluate another dataset, too",
                    name,
                )
                number = open_prepared(locate(config.datasets_directory) / name).num_samples
                shared = dict.fromkeys(get_args(Criterion), number)
            else:
                found = find_contamination(config, name, [against], by=get_args(Criterion))
                number = found.dataset.num_samples
                shared = {criterion: found.count([criterion]) for criterion in get_args(Criterion)}
        except DataError as error:
            logger.warning("%s: not compared with %s: %s", name, against, error)
            return None
        overlaps.append(Overlap(dataset=name, num_samples=number, shared=shared))
    return tuple(overlaps)
