"""Ray Data's pipelines, run as the driver wants them: in order, quiet, with errors of ours."""

from collections.abc import Iterator
from typing import Any

import ray.data
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from llavamed.errors import LlavaMedError


def iter_rows(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The rows of a pipeline.

    Raises:
        LlavaMedError: What one of ours raised in a worker, as itself; or a sentence of ours about
            what went wrong there. None holds words of Ray's.
    """
    try:
        yield from pipeline.iter_rows()
    except (RayError, ray.data.exceptions.RayDataUserCodeException) as error:
        raise _of_ours(error) from error


def _of_ours(error: BaseException) -> LlavaMedError:
    """The error of ours that one of Ray's stands for."""
    chain = list(_chain(error))
    for each in chain:
        if isinstance(each, LlavaMedError) and not isinstance(each, RayTaskError):
            return each
    if any(isinstance(each, OutOfMemoryError) for each in chain):
        return LlavaMedError(
            "data.rows_per_shard: a process that prepares data was ended because its machine had "
            "no memory left; lower data.rows_per_shard, or give the machine more memory"
        )
    own = [each for each in chain if not isinstance(each, RayError)]
    if own:
        fact = f"{type(own[-1]).__name__}: {str(own[-1]).strip().partition(chr(10))[0]}"
        return LlavaMedError(
            f"{fact}: the program failed while it worked on data, and no sample is to blame; see "
            "where with --debug, and report it"
        )
    return LlavaMedError(
        f"{type(error).__name__}: a process that works on data was lost; start the command again, "
        "and see more with --debug"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it, the cause last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def configure_ray_data() -> None:
    """Keep inputs in order, so that the same gives the same, and leave progress to ours."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
