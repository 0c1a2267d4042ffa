"""A local Ray for the whole session, and the demo cut down to seconds."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tenacity import retry, stop_after_attempt

from llavamed.config.load import load_config
from llavamed.config.run import RunConfig

DEMO = Path(__file__).parents[2] / "ray_jobs" / "configs" / "demo.yaml"

SMALL = (
    "data.rows_per_shard=16",
    "data.row_group_size=8",
    "data.datasets.captions.read.num_images=40",
    "data.datasets.dialogues.read.num_images=40",
    "data.datasets.questions.read.num_images=10",
    "data.datasets.test-questions.read.num_images=4",
    "stages.align.max_steps=4",
    "stages.instruct.max_steps=6",
    "stages.vqa.max_steps=4",
    "checkpoint.every_steps=2",
    "tracking.log_every_steps=1",
)
"""Overrides of demo.yaml: the same path in seconds, with too few steps to learn anything."""


@pytest.fixture(scope="session")
def local_ray(s3_uri: str) -> Iterator[str]:
    """Ray on this machine, oversubscribed so that two workers and an actor always find room.

    Gives the address at which Prometheus would fetch its metrics.

    Its processes inherit the environment that `s3_uri` has set, and so find that server.
    """
    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_worker_niceness": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_metrics_report_interval_ms": "500",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        port = _start_ray()
        yield f"http://127.0.0.1:{port}/metrics"
        import ray

        ray.shutdown()


@retry(stop=stop_after_attempt(2))
def _start_ray() -> int:
    """Start Ray and give the port of its metrics; again where another process took that port."""
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=150 << 20,
        _metrics_export_port=port,
    )
    return port


@pytest.fixture
def small(tmp_path: Path) -> RunConfig:
    """The demo, cut down, in a storage of its own."""
    return load_config(DEMO, [*SMALL, f"storage={tmp_path}"])


@pytest.fixture(scope="session")
def small_datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the datasets of SMALL, prepared in this process: `data.directory` of a run."""
    from tests.support.training_setup import prepared

    folder = tmp_path_factory.mktemp("small-datasets")
    config = load_config(DEMO, [*SMALL, f"storage={folder}", f"data.directory={folder}"])
    for name in config.data.datasets:
        prepared(config, name)
    return folder


@pytest.fixture
def small_prepared(tmp_path: Path, small_datasets: Path) -> RunConfig:
    """The demo, cut down, in a storage of its own, with datasets that are prepared already."""
    return load_config(DEMO, [*SMALL, f"storage={tmp_path}", f"data.directory={small_datasets}"])


@pytest.fixture(scope="session")
def job_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a cluster started by command: a home, token authentication."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "HOME": str(tmp_path_factory.mktemp("home")),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 32,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_raylet_start_wait_time_s": "120",
        "OMP_NUM_THREADS": "1",
    }
