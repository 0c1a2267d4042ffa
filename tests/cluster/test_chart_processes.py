"""What the chart's containers do, as processes: MLflow on both databases, the test scripts."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import psycopg
import pytest
import requests
from gcp_storage_emulator.server import create_server
from mlflow import MlflowClient

from tests.support.chart_release import BUNDLED, hook_pods, objects, ray_pods
from tests.support.container_process import ContainerProcess, mlflow_server
from tests.support.control_plane import free_ports
from tests.support.kubernetes_rules import pod_specs

SEARCH = "/api/2.0/mlflow/experiments/search"
USERS = {"username": "admin", "password": "a long % password", "flask-secret-key": "k" * 32}


def status(url: str, host: str, **options: Any) -> int:
    found: int = requests.post(
        url + SEARCH, json={"max_results": 1}, headers={"Host": host}, timeout=60, **options
    ).status_code
    return found


@pytest.fixture(scope="module")
def gs_uri() -> Iterator[str]:
    """A bucket of a stand-in for Google Cloud Storage, with the environment that leads there."""
    (port,) = free_ports(1)
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="llavamed-test")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        # gcsfs would ask for the kind of the bucket, which the stand-in cannot tell.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield "gs://llavamed-test"
    server.stop()


def bucket_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "STORAGE_", "GCSFS_"))}


def test_mlflow_answers_to_its_names_only(gs_uri: str, tmp_path: Path) -> None:
    """On SQLite, with artifacts in Google Cloud Storage."""
    values = {"mlflow.artifacts.destination": f"{gs_uri}/mlflow"}
    with mlflow_server(values, tmp_path, {}, bucket_environment()) as url:
        service = "llavamed-mlflow.research.svc.cluster.local"
        names = ["llavamed-mlflow:5000", f"{service}:5000", "localhost:5000", "127.0.0.1"]
        assert {name: status(url, name) for name in names} == dict.fromkeys(names, 200)
        others = ["example.org", "llavamed-mlflow.example.org", "10.example.org", "10.1.2.3:5000"]
        assert {name: status(url, name) for name in others} == dict.fromkeys(others, 403)
        # The kubelet probes by the pod's address.
        probe = requests.get(f"{url}/health", headers={"Host": "10.1.2.3:5000"}, timeout=60)
        assert probe.status_code == 200
        run_helm_test(url, tmp_path, values)
    assert (tmp_path / "data" / "mlflow.db").is_file()
    assert len(artifacts(gs_uri)) == 1


def run_helm_test(url: str, folder: Path, values: dict[str, Any], **secrets: Any) -> None:
    container = hook_pods(values)["llavamed-test-mlflow"]["containers"][0]
    process = ContainerProcess(container, folder / "test", secrets, {"MLFLOW_TRACKING_URI": url})
    process.run()


def artifacts(bucket: str) -> list[str]:
    """The files that the test of the release has logged."""
    fs = fsspec.filesystem(bucket.partition(":")[0])
    fs.invalidate_cache()
    return [path for path in fs.find(f"{bucket}/mlflow") if path.endswith("artifact.txt")]


class Postgres:
    """The bundled database as a process, of a user without a name, with its files in a folder."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        (pod,) = pod_specs(objects(BUNDLED)["StatefulSet/llavamed-postgres"])
        self.container = pod["containers"][0]
        wrapped = any(Path("/usr/lib").glob("*/libnss_wrapper.so"))
        # PostgreSQL does not run as root, and asks for a name where libnss-wrapper is missing.
        named = 12345 if wrapped else pwd.getpwnam("postgres").pw_uid
        self.user = named if os.getuid() == 0 else None
        self.given = {"PGPORT": str(self.port), "PATH": f"{programs}:{os.environ['PATH']}"}

    def uri(self, password: str) -> str:
        return f"postgresql://mlflow:{quote(password, safe='')}@127.0.0.1:{self.port}/postgres"

    @contextlib.contextmanager
    def serving(self, password: str) -> Iterator[subprocess.Popen[str]]:
        """Serve from when the startup probe passes; end it as a pod is ended."""
        secrets = {"llavamed-postgres": {"password": password}}
        container = ContainerProcess(self.container, self.folder, secrets, self.given, self.user)
        process = container.start()
        try:
            container.wait_until_started(process)
            yield process
            stop = self.container["lifecycle"]["preStop"]
            assert process.poll() is not None or container.ask(stop)
        finally:
            process.kill()
            process.communicate(timeout=60)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb")
    if not found:
        pytest.skip("initdb: not found; install PostgreSQL")
    programs = Path(found[-1] if isinstance(found, list) else found).resolve().parent
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are of this user alone
        yield Postgres(Path(folder), programs)


def sign_in(uri: str) -> str | None:
    """Ask for the number of tables; why not, where the server refuses."""
    try:
        with psycopg.connect(uri, connect_timeout=10) as connection:
            connection.execute("create table if not exists kept (x int)")
    except psycopg.OperationalError as error:
        return str(error)
    return None


def test_the_bundled_database_survives_kills_and_follows_its_secret(postgres: Postgres) -> None:
    half_made = postgres.folder / "data" / "data.partial"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").touch()
    with postgres.serving("first") as process:
        assert sign_in(postgres.uri("first")) is None
        assert "password authentication failed" in (sign_in(postgres.uri("other")) or "")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    with postgres.serving("second"):
        assert sign_in(postgres.uri("second")) is None
        assert "password authentication failed" in (sign_in(postgres.uri("first")) or "")
    assert not half_made.exists()
    assert (postgres.folder / "data" / "data" / "postmaster.pid").exists() is False


@pytest.fixture
def postgres_uri(postgres: Postgres) -> Iterator[str]:
    """The bundled database, with a password that is not safe in a URI as it stands."""
    with postgres.serving("p@ss%word"):
        yield postgres.uri("p@ss%word")


def test_mlflow_on_postgres_and_a_bucket_with_passwords(
    postgres_uri: str, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Migration, passwords, metrics, artifacts through the server, and garbage collection."""
    values = BUNDLED | {
        "mlflow.artifacts.destination": f"{s3_uri}/mlflow",
        "mlflow.auth.existingSecret": "users",
        "mlflow.metrics": True,
        "mlflow.gc.enabled": True,
        "mlflow.gc.olderThan": "1s",
    }
    secrets = {"llavamed-postgres": {"uri": postgres_uri}, "users": USERS}
    given = bucket_environment()
    with mlflow_server(values, tmp_path, secrets, given) as url:
        signed = (USERS["username"], USERS["password"])
        assert status(url, "llavamed-mlflow:5000") == 401
        assert status(url, "llavamed-mlflow:5000", auth=signed) == 200
        assert status(url, "example.org", auth=signed) == 403
        metrics = requests.get(
            f"{url}/metrics", headers={"Host": "10.1.2.3:5000"}, auth=signed, timeout=60
        )
        assert metrics.status_code == 200
        assert "mlflow_exporter_info" in metrics.text
        run_helm_test(url, tmp_path, values, **secrets)
        assert len(artifacts(s3_uri)) == 1
        job = objects(values)["CronJob/llavamed-mlflow-gc"]["spec"]["jobTemplate"]["spec"]
        container = job["template"]["spec"]["containers"][0]
        ContainerProcess(
            container, tmp_path / "gc", secrets, given | {"MLFLOW_TRACKING_URI": url}
        ).run()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", signed[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", signed[1])
        client = MlflowClient(url)
        experiment = client.get_experiment_by_name("helm-test")
        assert client.search_runs([experiment.experiment_id], run_view_type=3) == []
        assert artifacts(s3_uri) == []


def test_the_entrypoint_of_a_job_reads_the_config_that_the_pods_mount(tmp_path: Path) -> None:
    spec = objects({"job.enabled": True, "runConfig": "demo.yaml"})["RayJob/llavamed"]["spec"]
    (head, *_) = pod_specs({"kind": "RayCluster", "spec": spec["rayClusterSpec"]})
    wrong = [*spec["entrypoint"].split(), "stages.align.max_steps=0"]
    container = head["containers"][0] | {"command": wrong, "args": []}
    process = ContainerProcess(container, tmp_path).start()
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2, output
    assert "stages.align.max_steps=0" in output


@pytest.mark.parametrize("bucket", ["s3_uri", "gs_uri"])
def test_pods_fetch_their_weights(
    bucket: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = f"{request.getfixturevalue(bucket)}/weights"
    for name in ("config.json", "shards/model-1.safetensors"):
        with fsspec.open(f"{folder}/{name}", "wb") as file:
            file.write(name.encode())
    _, _, a100 = ray_pods(objects({"ray.weights.uri": folder}))
    ContainerProcess(a100["initContainers"][0], tmp_path, given=bucket_environment()).run()
    assert (tmp_path / "weights" / "config.json").read_text() == "config.json"
    assert (tmp_path / "weights" / "shards" / "model-1.safetensors").is_file()
