"""Run Ray Data pipelines in order, quietly, and with errors of ours."""

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.data
from ray.data.exceptions import SystemException
from ray.exceptions import RayError

from llavamed.errors import LlavaMedError
from llavamed.parallel.failures import explain_failure, iter_causes
from llavamed.parallel.logs import hear_workers, queue_of_driver, send_logs


class CarriedError(Exception):
    """A pickled error of a worker. Ray adds advice of its own to the text of any other error."""

    def unpack(self) -> Exception:
        """Return the error as the worker raised it."""
        error: Exception = pickle.loads(self.args[0])
        return error


@contextmanager
def carry_errors() -> Iterator[None]:
    """Carry errors of a worker's code to the driver unchanged, and warnings to its log.

    Raises:
        CarriedError: For any error.
    """
    try:
        with send_logs(queue_of_driver()):
            yield
    except Exception as error:
        try:
            packed = pickle.dumps(error)
            pickle.loads(packed)
        except Exception:  # an error of a library that cannot be pickled
            packed = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
        raise CarriedError(packed) from error


def iter_rows(
    pipeline: Any, *, memory_hint: str = "give the machines more memory"
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a pipeline, and log the warnings of its workers.

    Args:
        pipeline: A Ray Data dataset.
        memory_hint: Advice for a worker that was killed for its memory.

    Raises:
        LlavaMedError: A worker failed. An error of ours is raised unchanged; any other becomes a
            sentence of ours without Ray's text.
    """
    try:
        with hear_workers():
            yield from pipeline.iter_rows()
    except (RayError, SystemException) as error:
        raise _of_ours(error, memory_hint) from error


def _of_ours(error: BaseException, memory_hint: str) -> LlavaMedError:
    """Return the error of ours that explains an error of Ray's."""
    for each in iter_causes(error):
        if isinstance(each, CarriedError) and not isinstance(each, RayError):
            carried = each.unpack()
            if isinstance(carried, LlavaMedError):
                return carried
            fact = (str(carried).strip().splitlines() or [""])[0]
            return LlavaMedError(
                f"{type(carried).__name__}: {fact}: the program failed while it processed data, "
                "and no sample is to blame; see where with --debug, and report it"
            )
    return LlavaMedError(
        f"ray: {explain_failure(error, memory_hint)}; start the same command again to go on from "
        "what is finished"
    )


def configure_ray_data() -> None:
    """Preserve the order of rows, so that runs can be repeated, and hide Ray's progress bars."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    if not logging.getLogger("llavamed").isEnabledFor(logging.DEBUG):
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors reach the user as ours


def actor_restarts(max_failures: int) -> dict[str, int]:
    """Return the settings of an actor pool that bound restarts, which are endless by default."""
    return {"max_restarts": max_failures, "max_task_retries": max_failures}
