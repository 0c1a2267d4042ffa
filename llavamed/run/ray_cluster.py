"""The Ray that a command works on: the one it was submitted to, or one of its own."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from llavamed.config.run import RunConfig
from llavamed.errors import LlavaMedError


@contextmanager
def ray_cluster(config: RunConfig) -> Iterator[None]:
    """Join the cluster this process belongs to, or start one here for as long as needed.

    `RAY_ADDRESS`, which Ray sets for a submitted job, names the cluster. One started here has token
    authentication, which is Ray's default where RAY_AUTH_MODE is not set: then it makes the token.

    Raises:
        LlavaMedError: Ray does not answer or does not start.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    address = os.environ.get("RAY_ADDRESS", "local")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's own 30 s are too few where the disk is cold and the cores are busy.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
        wanted = config.scaling.most_workers * config.scaling.resources_per_worker.get("CPU", 1)
        settings["num_cpus"] = max(os.cpu_count() or 1, int(wanted))
        settings["include_dashboard"] = False
    try:
        check_port(address)
        ray.init(address=address, **settings)
    except Exception as error:  # Ray raises a bare Exception for a node that does not come up
        reason = str(error).strip().partition("\n")[0] or repr(error)
        raise LlavaMedError(
            f"RAY_ADDRESS={address}: Ray does not answer: {reason}; start the cluster, or unset "
            "RAY_ADDRESS to run on this machine alone"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # its plans and paths are for debugging
    try:
        yield
    finally:
        ray.shutdown()


def check_port(address: str) -> None:
    """Raise OSError where nobody listens, for which Ray itself would wait two minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
