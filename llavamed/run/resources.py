"""Check whether a cluster has what the workers of a run ask for, and say what it lacks."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from llavamed.config.run import Scaling
from llavamed.errors import ConfigError

SECONDS_BETWEEN_WARNINGS = 30.0

logger = logging.getLogger(__name__)


def resources_of_a_worker(scaling: Scaling) -> dict[str, float]:
    """Return what one worker reserves, by Ray's names."""
    wanted = {"CPU": 1.0} | scaling.resources_per_worker
    if scaling.use_gpu:
        wanted.setdefault("GPU", 1.0)
    if scaling.accelerator_type is not None:
        wanted[f"accelerator_type:{scaling.accelerator_type}"] = 0.001
    return {name: amount for name, amount in wanted.items() if amount}


def num_workers_that_fit(nodes: list[dict[str, float]], wanted: dict[str, float]) -> int:
    """Return how many workers fit on some nodes; one worker cannot span two of them.

    Args:
        nodes: What each node has, by Ray's names.
        wanted: What one worker reserves.
    """
    return sum(
        min(int((node.get(name, 0.0) + 1e-9) / amount) for name, amount in wanted.items())
        for node in nodes
    )


def check_local_resources(scaling: Scaling) -> None:
    """Refuse workers that do not fit on this machine alone. Raises: ConfigError."""
    missing = _missing(scaling)
    if missing is not None:
        raise ConfigError(
            f"scaling.num_workers={scaling.least_workers}: {missing}; lower what scaling asks for, "
            "or set RAY_ADDRESS to a cluster that has it"
        )


@contextmanager
def log_what_is_missing(scaling: Scaling, has_started: threading.Event) -> Iterator[None]:
    """Log every half minute what the cluster lacks, until workers have started."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(SECONDS_BETWEEN_WARNINGS) and not has_started.is_set():
            missing = _missing(scaling)
            level = logging.WARNING if missing else logging.INFO
            text = missing or _in_use(scaling)
            number = scaling.least_workers
            workers = "worker" if number == 1 else "workers"
            logger.log(level, "waiting for %d %s: %s", number, workers, text)

    watching = threading.Thread(target=watch, name="resources", daemon=True)
    watching.start()
    try:
        yield
    finally:
        is_over.set()


def _in_use(scaling: Scaling) -> str:
    """Return what is free when there is room for all workers."""
    free = ray.available_resources()
    names = resources_of_a_worker(scaling)
    there = ", ".join(f"{name} {free.get(name, 0):g}" for name in names)
    return f"starting, or waiting for other work to end, which leaves {there} free"


def _missing(scaling: Scaling) -> str | None:
    """Return what the nodes lack for the least number of workers, or None."""
    wanted = resources_of_a_worker(scaling)
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    room = num_workers_that_fit([node["Resources"] for node in nodes], wanted)
    if room >= scaling.least_workers:
        return None
    total = ray.cluster_resources()
    each = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
    there = ", ".join(f"{name} {total.get(name, 0):g}" for name in wanted)
    machines = "machine" if len(nodes) == 1 else "machines"
    return (
        f"each reserves {each}, and {len(nodes)} {machines} with {there} in all have room for "
        f"{room} of {scaling.least_workers}"
    )
