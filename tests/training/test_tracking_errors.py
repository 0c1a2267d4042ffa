"""What MLflow, its databases and its servers get wrong, each with what to do about it."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from mlflow import MlflowClient

from llavamed.config.run import RunConfig
from llavamed.errors import TrackingError
from llavamed.run.tracking import Tracker
from llavamed.tracking.mlflow_client import TrackingClient, readable_errors, shown_uri, tracking_uri
from tests.support.http_server import serving
from tests.training.test_tracking import in_folder

START = """
import sys
from llavamed.tracking.mlflow_client import TrackingClient
client = TrackingClient(sys.argv[1])
client.create_experiment(sys.argv[2])
"""


@pytest.fixture(autouse=True)
def _no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of which tests take copies."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    TrackingClient(f"sqlite:///{path}")
    return path


def test_runs_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mlflow.db.partial").write_bytes(b"left by one that was killed")
    started = [
        subprocess.Popen([sys.executable, "-c", START, uri, f"experiment-{number}"])
        for number in range(3)
    ]
    assert [process.wait(timeout=200) for process in started] == [0, 0, 0]
    names = {experiment.name for experiment in MlflowClient(uri).search_experiments()}
    assert names == {"Default", *(f"experiment-{number}" for number in range(3))}
    assert not (tmp_path / "new" / "mlflow.db.partial").exists()


def test_a_deleted_experiment_is_restored_or_another_is_set(
    database: Path, tiny_config: RunConfig, tmp_path: Path
) -> None:
    shutil.copy(database, tmp_path)
    config = in_folder(tiny_config, tmp_path)
    run = Tracker(config).start("align", {})
    client = MlflowClient(tracking_uri(config))
    (experiment,) = client.search_experiments(filter_string="name = 'llavamed'")
    client.delete_experiment(experiment.experiment_id)
    hint = (
        rf"restore it with `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
    )
    with pytest.raises(TrackingError, match=rf"tracking.experiment=llavamed: is deleted.*; {hint}"):
        Tracker(config)
    with pytest.raises(TrackingError, match=rf"its experiment is deleted; {hint}, or set "):
        TrackingClient(tracking_uri(config)).create_run(experiment.experiment_id)
    client.restore_experiment(experiment.experiment_id)
    assert Tracker(config).start("align", {}).run_id == run.run_id


def test_a_deleted_run_is_restored_or_made_anew(
    database: Path, tiny_config: RunConfig, tmp_path: Path
) -> None:
    shutil.copy(database, tmp_path)
    config = in_folder(tiny_config, tmp_path)
    tracker = Tracker(config)
    run = tracker.start("align", {})
    run.finish("done")
    client = MlflowClient(tracking_uri(config))
    client.delete_run(run.run_id)
    message = rf"run {run.run_id} is deleted; restore it with `mlflow runs restore --run-id {run}"
    with pytest.raises(TrackingError, match=message.replace(str(run), run.run_id)):
        run.log_scores({"closed_accuracy": 0.5})
    assert not tracker.has_recorded("align", "done")
    assert Tracker(config).start("align", {}).run_id != run.run_id


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE alembic_version SET version_num = 'ffffffffffff'",
            r"a newer MLflow made the database \(schema ffffffffffff\); install that MLflow, or se",
        ),
        (
            "UPDATE alembic_version SET version_num = '451aebb31d03'",
            r"an older MLflow made the database .*; back it up, then run `mlflow db upgrade sqlite",
        ),
        ("DROP TABLE experiments", r"the database is damaged .*; move it away and start the same"),
    ],
)
def test_a_database_that_is_not_as_this_mlflow_makes_it(
    database: Path, tiny_config: RunConfig, tmp_path: Path, statement: str, message: str
) -> None:
    with sqlite3.connect(shutil.copy(database, tmp_path)) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(TrackingError, match=rf"^tracking.uri=sqlite:///\S+/mlflow.db: {message}"):
        Tracker(in_folder(tiny_config, tmp_path)).start("align", {})


def test_a_database_that_is_away_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", slept.append)
    message = r"^tracking.uri=postgresql://me:\*\*\*@127.0.0.1:9/runs: does not answer \("
    with pytest.raises(TrackingError, match=message):
        TrackingClient("postgresql://me:secret@127.0.0.1:9/runs").get_experiment_by_name("llavamed")
    assert 0 < sum(slept) < 5
    assert int(os.environ["PGCONNECT_TIMEOUT"]) <= 10


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    """Starts servers that answer every request with one status; gives their URI."""

    def start(status: int) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"<html>no MLflow</html>")

            do_POST = do_GET  # noqa: N815

        return servers.enter_context(serving(Answer))

    with ExitStack() as servers:
        yield start


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"refuses the credentials .*; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS"),
        (403, r"refuses the credentials .*; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS"),
        (404, r"what answers there is not an MLflow server .*; correct tracking.uri"),
        (200, r"what answers there is not an MLflow server.*; correct tracking.uri"),
        (500, r"the server has failed .*; read its log, or set tracking.uri to another"),
        (503, r"the server has failed .*; read its log, or set tracking.uri to another"),
    ],
)
def test_a_server_that_refuses(
    answering: Callable[[int], str],
    tiny_config: RunConfig,
    tmp_path: Path,
    status: int,
    message: str,
) -> None:
    uri = answering(status)
    with pytest.raises(TrackingError, match=rf"^tracking.uri={uri}: {message}"):
        Tracker(in_folder(tiny_config, tmp_path, uri=uri))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("(sqlite3.OperationalError) database or disk is full", r"no space left for it .*; free s"),
        ("[Errno 28] No space left on device", r"there is no space left for it .*; free some, or"),
        (
            "attempt to write a readonly database",
            r"cannot be written .*; make the database and its",
        ),
        ("(sqlite3.OperationalError) database is locked", r"kept the database locked .*; end it, "),
        ('password authentication failed for user "a"', r"refuses the credentials .*; set MLFLOW_"),
        (
            "CERTIFICATE_VERIFY_FAILED",
            r"its certificate cannot be verified .*; set MLFLOW_TRACKING",
        ),
        ("what nobody has seen", r"what nobody has seen; read the server's log, or set track"),
        ("", r"OSError; read the server's log, or set tracking.uri to another server"),
    ],
)
def test_an_error_is_told_by_what_it_says(said: str, message: str) -> None:
    with (
        pytest.raises(TrackingError, match=rf"^tracking.uri=http://a: .*{message}"),
        readable_errors("http://a"),
    ):
        raise OSError(said)


def test_no_password_of_the_environment_is_shown() -> None:
    assert shown_uri("postgresql://me:secret@a:9/db") == "postgresql://me:***@a:9/db"
    assert shown_uri("postgresql://me:s/cr@t@a:9/db") == "postgresql://me:***@a:9/db"
    assert shown_uri("http://mlflow:5000/a@b") == "http://mlflow:5000/a@b"
