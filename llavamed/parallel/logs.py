"""Send warnings of workers to the log of the driver, which shows them."""

import logging
import logging.handlers
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_POLL_SECONDS = 0.5


def queue_beside_driver(**options: Any) -> Queue:
    """Return a queue that any worker can write to, on the machine of this process.

    On another machine it could be lost with that machine, and every retry would miss it.

    Args:
        options: Options of its actor.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here} | options)


@contextmanager
def send_logs(queue: Queue | None) -> Iterator[None]:
    """Send the warnings of this process to a queue; without one, do nothing."""
    if queue is None:
        yield
        return
    ours = logging.getLogger("llavamed")
    handler = logging.handlers.QueueHandler(queue)
    handler.setLevel(logging.WARNING)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)


@contextmanager
def hear_workers() -> Iterator[None]:
    """Log what the workers of this Ray job send, until the context ends."""
    queue = queue_beside_driver(name=_name(), get_if_exists=True)
    is_over = threading.Event()
    listening = threading.Thread(target=_listen, args=(queue, is_over), name="logs", daemon=True)
    listening.start()
    try:
        yield
    finally:
        is_over.set()
        listening.join()


def queue_of_driver() -> Queue | None:
    """Return the queue that the driver of this Ray job reads, or None if it reads none."""
    try:
        ray.get_actor(_name())
    except ValueError:
        return None
    return Queue(actor_options={"name": _name(), "get_if_exists": True})


def log_record(record: logging.LogRecord) -> None:
    """Log a record of another process as if it came from here."""
    logging.getLogger(record.name).handle(record)


def _name() -> str:
    return f"llavamed-logs-{ray.get_runtime_context().get_job_id()}"


def _listen(queue: Queue, is_over: threading.Event) -> None:
    # An exception may keep the context open beyond Ray's end, and a call would start another Ray.
    while ray.is_initialized():
        try:
            log_record(queue.get(timeout=_POLL_SECONDS))
        except Empty:
            if is_over.is_set():
                return
        except RayError:  # the queue is gone with the cluster
            return
