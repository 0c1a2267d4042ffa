"""Connect a command to Ray: to the cluster it was submitted to, or to one of its own."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from llavamed.config.run import RunConfig, Scaling
from llavamed.errors import LlavaMedError
from llavamed.run.job_storage import check_storage
from llavamed.run.resources import check_local_resources

logger = logging.getLogger(__name__)


@contextmanager
def ray_cluster(config: RunConfig) -> Iterator[None]:
    """Join or start a Ray for a run, as `ray_for` does.

    Raises:
        LlavaMedError: Ray does not answer or does not start.
        ConfigError: This machine lacks what the workers reserve, or the storage is a folder of one
            machine and the cluster has several.
    """
    is_ours = not ray.is_initialized()
    with ray_for(config.scaling):
        if is_ours:
            check_storage(config, sum(node["Alive"] for node in ray.nodes()))
        yield


@contextmanager
def ray_for(scaling: Scaling) -> Iterator[None]:
    """Join the cluster of this process, or start one on this machine until the context ends.

    `RAY_ADDRESS`, which Ray sets for a submitted job, names the cluster. A cluster started here has
    token authentication: that is Ray's default if RAY_AUTH_MODE is not set, and Ray makes the
    token.

    Raises:
        LlavaMedError: Ray does not answer or does not start.
        ConfigError: This machine lacks what the workers reserve.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    address = os.environ.get("RAY_ADDRESS", "local")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": _quiet_ray()}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's own 30 s are too short if the disk is cold and the cores are busy.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
        wanted = scaling.most_workers * scaling.resources_per_worker.get("CPU", 1)
        settings["num_cpus"] = max(os.cpu_count() or 1, int(wanted))
        settings["include_dashboard"] = False
        logger.info("starting Ray on this machine")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        check_port(address)
        with _silent_stderr():
            ray.init(address=address, **settings)
    except Exception as error:  # Ray raises a bare Exception for a node that does not come up
        reason = str(error).strip().partition("\n")[0] or repr(error)
        raise LlavaMedError(
            f"RAY_ADDRESS={address}: Ray does not answer: {reason}; start the cluster, or unset "
            "RAY_ADDRESS to run on this machine alone"
        ) from error
    if callable(on_sigterm):
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints a C++ stack
    try:
        if address == "local":
            check_local_resources(scaling)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide what C++ writes to stderr while Ray starts, except with `--verbose`."""
    if logger.isEnabledFor(logging.DEBUG):
        yield
        return
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _quiet_ray() -> int:
    """Hide what Ray logs, except with `--verbose`, and return the level for its loggers."""
    if logger.isEnabledFor(logging.DEBUG):
        return logging.INFO
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # otherwise C++ writes to stderr
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return logging.CRITICAL


def check_port(address: str) -> None:
    """Raise OSError if nothing listens there; Ray itself would wait for two minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
