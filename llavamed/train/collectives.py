"""Run an action on some ranks and share its outcome with all, so that no rank waits forever."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from llavamed.errors import LlavaMedError

T = TypeVar("T")


def together(
    action: Callable[[], T], is_mine: bool = True, *, group: dist.ProcessGroup | None = None
) -> list[T]:
    """Run an action on some ranks, and return its results or raise its error on all of them.

    Every rank of the group must call it.

    Args:
        action: The action; its result and its error must be picklable.
        group: The process group, or None for the default group, which training uses too.

    Returns:
        The results of the ranks that ran the action, in the order of ranks.

    Raises:
        LlavaMedError: The error of the action on the first rank where it failed.
    """
    mine: list[T] = []
    error: LlavaMedError | None = None
    if is_mine:
        try:
            mine = [action()]
        except LlavaMedError as found:
            error = found
    outcomes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, (mine, error), group=group)
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [result for results, _ in outcomes for result in results]
