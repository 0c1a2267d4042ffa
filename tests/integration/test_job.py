"""The real job path: `ray start --head`, `ray job submit`, logs, exit codes, `ray job stop`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import SMALL

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(
    job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A head started by command; gives the environment in which `ray job` finds it."""
    dashboard = free_port()
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as output:
        head = subprocess.Popen(
            [
                *(
                    RAY,
                    "start",
                    "--head",
                    "--block",
                    "--num-cpus=4",
                    "--object-store-memory=150000000",
                ),
                *(f"--port={free_port()}", f"--dashboard-port={dashboard}"),
                f"--dashboard-agent-listen-port={free_port()}",
                f"--temp-dir={tmp_path_factory.mktemp('ray')}",
            ],
            env=job_environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    environment = job_environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    deadline = time.monotonic() + 120
    while subprocess.run([RAY, "job", "list"], env=environment, capture_output=True).returncode:
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1)
    yield environment
    os.killpg(head.pid, signal.SIGTERM)  # --block stops its own processes, and no other cluster's
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)


def submit(environment: dict[str, str], *arguments: str, options: tuple[str, ...] = ()) -> tuple:
    command = [
        *(RAY, "job", "submit", "--working-dir", ".", *options),
        *("--", sys.executable, "ray_jobs/train.py", *arguments),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    return done.returncode, done.stdout + done.stderr


def test_a_job_runs_to_the_end(cluster: dict[str, str], tmp_path: Path) -> None:
    code, log = submit(
        cluster,
        *("--config", "ray_jobs/configs/demo.yaml", f"storage={tmp_path}", *SMALL),
    )
    assert code == 0, log
    for sentence in ("prepare captions  40/40", "train vqa  4/4", "Scores on", "mlflow server"):
        assert sentence in log
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert len(summary["stages"]) == 3


def test_a_config_error_ends_a_job_with_a_sentence(cluster: dict[str, str]) -> None:
    started = time.monotonic()
    code, log = submit(cluster, "stages.align.optimiser.lr=1")
    assert code == 1
    assert "demo.yaml" in log, "without --config the job says that it takes the demo"
    assert "stages.align.optimiser: unknown key; did you mean 'optimizer'?" in log
    assert "Traceback" not in log.split("unknown key")[0]
    assert time.monotonic() - started < 60


def test_a_job_is_stopped(cluster: dict[str, str], tmp_path: Path) -> None:
    arguments = (f"storage={tmp_path}", *SMALL, "stages.align.max_steps=3000")
    code, log = submit(cluster, *arguments, options=("--no-wait", "--submission-id", "to-stop"))
    assert code == 0, log
    checkpoints = tmp_path / "demo" / "stages" / "align" / "checkpoints"
    deadline = time.monotonic() + 200
    while not list(checkpoints.glob("*/manifest.json")):
        assert time.monotonic() < deadline, "the job has not trained"
        time.sleep(0.5)
    stopped = subprocess.run(
        [RAY, "job", "stop", "to-stop"], env=cluster, capture_output=True, text=True, timeout=120
    )
    assert stopped.returncode == 0, stopped.stdout
    status = subprocess.run(
        [RAY, "job", "status", "to-stop"], env=cluster, capture_output=True, text=True
    )
    assert "Job 'to-stop' was stopped" in status.stdout + status.stderr
