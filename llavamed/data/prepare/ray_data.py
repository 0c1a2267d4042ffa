"""Ray Data's pipelines, run as the driver wants them: in order, quiet, with errors of ours."""

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.data
from ray.data.exceptions import SystemException
from ray.exceptions import OutOfMemoryError, RayError

from llavamed.errors import LlavaMedError


class CarriedError(Exception):
    """An error of a worker, pickled: Ray writes advice of its own into the text of any other."""

    def unpack(self) -> Exception:
        """The error as it was raised."""
        error: Exception = pickle.loads(self.args[0])
        return error


@contextmanager
def carry_errors() -> Iterator[None]:
    """Let errors of a worker's code reach the driver as they are.

    Raises:
        CarriedError: For any error.
    """
    try:
        yield
    except Exception as error:
        try:
            packed = pickle.dumps(error)
            pickle.loads(packed)
        except Exception:  # an error of a library that cannot be pickled
            packed = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
        raise CarriedError(packed) from error


def iter_rows(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The rows of a pipeline.

    Raises:
        LlavaMedError: What one of ours raised in a worker, as itself; or a sentence of ours about
            what went wrong there. None holds words of Ray's.
    """
    try:
        yield from pipeline.iter_rows()
    except (RayError, SystemException) as error:
        raise _of_ours(error) from error


def _of_ours(error: BaseException) -> LlavaMedError:
    """The error of ours that one of Ray's stands for."""
    for each in _chain(error):
        if isinstance(each, OutOfMemoryError):
            return LlavaMedError(
                "data.rows_per_shard: a process that works on data was ended because its machine "
                "had no memory left; lower it, or give the machine more memory"
            )
        if isinstance(each, CarriedError) and not isinstance(each, RayError):
            carried = each.unpack()
            if isinstance(carried, LlavaMedError):
                return carried
            fact = (str(carried).strip().splitlines() or [""])[0]
            return LlavaMedError(
                f"{type(carried).__name__}: {fact}: the program failed while it worked on data, "
                "and no sample is to blame; see where with --debug, and report it"
            )
    return LlavaMedError(
        f"{type(error).__name__}: processes that work on data were lost again and again; give the "
        "machines more memory, and see more with --debug"
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
    if not logging.getLogger("llavamed").isEnabledFor(logging.DEBUG):
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors reach the user as ours
