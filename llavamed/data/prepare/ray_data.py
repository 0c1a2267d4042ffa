"""Ray Data's pipelines, run as the driver wants them: in order, quiet, with errors of ours."""

from collections.abc import Iterator
from typing import Any

import ray.data
from ray.exceptions import RayTaskError

from llavamed.errors import LlavaMedError


def iter_rows(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The rows of a pipeline.

    Raises:
        LlavaMedError: What one of ours raised in a worker, as itself and not as Ray wraps it.
    """
    try:
        yield from pipeline.iter_rows()
    except RayTaskError as error:
        cause: BaseException | None = error
        while cause is not None:
            found = getattr(cause, "cause", None) or cause.__cause__
            if isinstance(found, LlavaMedError) and not isinstance(found, RayTaskError):
                raise found from None
            cause = found
        raise


def configure_ray_data() -> None:
    """Keep inputs in order, so that the same gives the same, and leave progress to ours."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
