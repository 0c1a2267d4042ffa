"""One action on some ranks, its outcome on all of them: nobody goes on alone, or waits for ever."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from llavamed.errors import LlavaMedError

T = TypeVar("T")


def together(
    action: Callable[[], T], is_mine: bool = True, *, group: dist.ProcessGroup | None = None
) -> list[T]:
    """Do something on this rank, or nothing; every rank must call it.

    Args:
        action: What to do; what it gives and raises must pickle.
        is_mine: Whether this rank does it.
        group: The ranks; none: all, by the group that training uses too.

    Returns:
        What the action gave on each rank that did it, in their order.

    Raises:
        LlavaMedError: What it raised on any rank, raised on all: none is left waiting.
    """
    mine: list[T] = []
    error: LlavaMedError | None = None
    if is_mine:
        try:
            mine = [action()]
        except LlavaMedError as found:
            error = found
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, (mine, error), group=group)
    for _, met in told:
        if met is not None:
            raise met
    return [result for results, _ in told for result in results]
