"""The real job path: `ray start --head`, `ray job submit`, logs, exit codes, `ray job stop`.

And what a machine's notice does to it: two more nodes, of which one gets SIGTERM.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from tests.cluster.conftest import SMALL
from tests.support.chart_release import hook_pods
from tests.support.container_process import ContainerProcess, mlflow_server

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
    dashboard, port = free_port(), free_port()
    log = tmp_path_factory.mktemp("head") / "log"
    folder = tempfile.mkdtemp(prefix="ray")  # short: a path of Ray's sockets has 107 characters
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
                *(f"--port={port}", f"--dashboard-port={dashboard}"),
                f"--dashboard-agent-listen-port={free_port()}",
                f"--temp-dir={folder}",
            ],
            env=job_environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    environment = job_environment | {
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "HEAD_ADDRESS": f"127.0.0.1:{port}",
    }
    deadline = time.monotonic() + 120
    while subprocess.run([RAY, "job", "list"], env=environment, capture_output=True).returncode:
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1)
    yield environment
    stop(head)
    shutil.rmtree(folder, ignore_errors=True)


def stop(node: subprocess.Popen[str]) -> None:
    """At once: asked to stop, a node first drains for half a minute."""
    if node.poll() is None:
        for process in (*psutil.Process(node.pid).children(recursive=True), node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait(timeout=30)


@pytest.fixture
def start_node(
    cluster: dict[str, str], tmp_path: Path
) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Adds a node with room for one worker to the cluster."""
    environment = cluster | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "25"}
    nodes: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [
            *(RAY, "start", f"--address={cluster['HEAD_ADDRESS']}", "--block", "--num-cpus=1"),
            *("--resources", '{"spot": 1}', "--object-store-memory=80000000"),
        ]
        with (tmp_path / f"node-{len(nodes)}.log").open("w") as log:
            node = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        nodes.append(node)
        time.sleep(5)  # nodes of one machine that come together take each other's ports
        return node

    yield start
    for node in nodes:
        stop(node)


def submit(environment: dict[str, str], *arguments: str, options: tuple[str, ...] = ()) -> tuple:
    command = [
        *(RAY, "job", "submit", "--working-dir", ".", *options),
        *("--", sys.executable, "ray_jobs/train.py", *arguments),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    return done.returncode, done.stdout + done.stderr


def test_a_job_runs_the_one_step_curriculum_of_helm_test_to_the_end(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """The command and the environment of the container, as an entrypoint."""
    container = hook_pods({})["llavamed-test-curriculum"]["containers"][0]
    with mlflow_server({}, tmp_path, {}, {}) as url:
        process = ContainerProcess(container, tmp_path / "test", given={"MLFLOW_TRACKING_URI": url})
        environment = json.dumps({"env_vars": process.environment})
        code, log = submit(
            cluster,
            *process.words()[2:],
            f"storage={tmp_path}",
            options=("--runtime-env-json", environment),
        )
        assert code == 0, log
        for sentence in ("prepare captions  20/20", "train vqa  1/1", "Scores on", url):
            assert sentence in log
        summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
        assert len(summary["stages"]) == 3
        client = MlflowClient(url)
        (experiment,) = [item for item in client.search_experiments() if item.name == "llavamed"]
        runs = client.search_runs([experiment.experiment_id])
        assert len(runs) == 5  # the curriculum and its parts


def test_a_config_error_ends_a_job_with_a_sentence(cluster: dict[str, str]) -> None:
    code, log = submit(cluster, "stages.align.optimiser.lr=1")
    assert code == 1
    assert "demo.yaml" in log, "without --config the job says that it takes the demo"
    assert "stages.align.optimiser: unknown key; did you mean 'optimizer'?" in log
    assert "Traceback" not in log.split("unknown key")[0]
    assert "prepare" not in log, "nothing has begun"


def test_a_job_is_stopped(cluster: dict[str, str], small_datasets: Path, tmp_path: Path) -> None:
    arguments = (
        *(f"storage={tmp_path}", *SMALL, f"data.directory={small_datasets}"),
        "stages.align.max_steps=3000",
    )
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


def test_jobs_go_on_from_one_another_wherever_they_were_submitted(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """The package changes by a byte, then comes from another folder: the datasets stay prepared."""
    text = (ROOT / "ray_jobs" / "configs" / "demo.yaml").read_text()
    overrides = (*SMALL, "storage=of-jobs")
    folders = [tmp_path / "one", tmp_path / "one", tmp_path / "other"]
    logs = []
    for number, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        (folder / "run.yaml").write_text(f"{text}# submitted {number} times before\n")
        entrypoint = [sys.executable, "-m", "llavamed", "prepare", "--config", "run.yaml"]
        command = [RAY, "job", "submit", "--working-dir", ".", "--", *entrypoint, *overrides]
        environment = cluster | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        logs.append(done.stdout)
    home = Path(cluster["HOME"]) / "llavamed" / "of-jobs"
    for log in logs:
        assert f"storage: {home} on {socket.gethostname()}" in log
    assert ["prepare captions" in log for log in logs] == [True, False, False]
    assert (home / "datasets" / "captions" / "manifest.json").exists()


def has_worker(node: subprocess.Popen[str]) -> bool:
    below = psutil.Process(node.pid).children(recursive=True)
    return any("RayTrainWorker" in "".join(process.cmdline()) for process in below)


def logs_of(cluster: dict[str, str], job: str) -> str:
    command = [RAY, "job", "logs", job]
    return subprocess.run(command, env=cluster, capture_output=True, text=True).stdout


on_spot = pytest.mark.skipif("LLAVAMED_KILLS" not in os.environ, reason="make test-kill runs it")


@on_spot
def test_a_node_that_is_taken_away_costs_no_step(
    cluster: dict[str, str], start_node: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    nodes = [start_node(), start_node()]
    arguments = (
        f"storage={tmp_path}",
        *SMALL,
        "name=spot",
        "max_failures=0",
        "scaling={num_workers: 1, resources_per_worker: {CPU: 1, spot: 1}}",
        "checkpoint.every_steps=100000",  # so that only the notice saves one
        "stages.align.max_steps=300",
    )
    options = ("--no-wait", "--submission-id", "on-spot")
    code, log = submit(cluster, *arguments, options=options)
    assert code == 0, log

    def logs() -> str:
        return logs_of(cluster, "on-spot")

    deadline = time.monotonic() + 240
    while "loss" not in logs():
        assert time.monotonic() < deadline, logs()
    node = next(node for node in nodes if has_worker(node))
    node.send_signal(signal.SIGTERM)
    noticed = time.monotonic()
    stage = tmp_path / "spot" / "stages" / "align"
    while not (saved := list((stage / "checkpoints").glob("*/manifest.json"))):
        assert time.monotonic() < noticed + 25, "the notice is over, and nothing was saved"
        time.sleep(0.05)
    print(f"checkpoint {time.monotonic() - noticed:.1f} s after SIGTERM")  # noqa: T201
    step = json.loads(saved[0].read_text())["step"]
    while not (export := stage / "export" / "manifest.json").exists():
        assert time.monotonic() < noticed + 300, logs()
        time.sleep(0.5)
    assert "align: a machine is taken away; the stage goes on elsewhere" in logs()
    subprocess.run([RAY, "job", "stop", "on-spot"], env=cluster, check=True, capture_output=True)
    history = pq.ParquetFile(export.with_name("history.parquet")).read()
    assert history["step"].to_pylist() == list(range(1, 301))
    assert 0 < step < 300


@on_spot
def test_a_node_that_comes_is_used(
    cluster: dict[str, str], start_node: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Ray looks once a minute whether there is room for more workers."""
    start_node()
    arguments = (
        *(f"storage={tmp_path}", *SMALL, "name=growing", "checkpoint.every_steps=50"),
        "scaling={num_workers: [1, 2], resources_per_worker: {CPU: 1, spot: 1}}",
        "stages.align.max_steps=20000",
    )
    code, log = submit(cluster, *arguments, options=("--no-wait", "--submission-id", "growing"))
    assert code == 0, log
    checkpoints = tmp_path / "growing" / "stages" / "align" / "checkpoints"

    def wait_for(num_workers: int) -> tuple[int, list[int]]:
        """The step of a checkpoint by so many workers, and those it has records of."""
        deadline = time.monotonic() + 300
        while True:
            for file in checkpoints.glob("*/manifest.json"):
                with suppress(FileNotFoundError):  # an old one is deleted as we look
                    manifest = json.loads(file.read_text())
                    if manifest["layout"]["world_size"] == num_workers:
                        history = pq.ParquetFile(file.with_name("history.parquet")).read()
                        return manifest["step"], history["step"].to_pylist()
            assert time.monotonic() < deadline, logs_of(cluster, "growing")
            time.sleep(0.2)

    wait_for(1)
    start_node()
    step, recorded = wait_for(2)
    subprocess.run([RAY, "job", "stop", "growing"], env=cluster, check=True, capture_output=True)
    print(f"two workers since before step {step}")  # noqa: T201
    assert recorded == list(range(1, step + 1))
