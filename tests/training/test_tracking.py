"""MLflow as the driver uses it: a real SQLite store, and servers that do not answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from llavamed.config.run import RunConfig
from llavamed.errors import TrackingError
from llavamed.run.tracking import Tracker
from llavamed.storage.manifest import PartFacts
from llavamed.tracking.mlflow_client import tracking_uri
from tests.support.manifests import export_manifest

RESULT = export_manifest(
    fingerprint="0123456789abcdef",
    parts={"projector": PartFacts(num_trained=1, num_frozen=2)},
    step_seconds={"p50": 0.5, "p95": 0.6, "p99": 0.7},
    seconds=3.0,
)
HISTORY = [{"step": 1, "loss": 1.0, "learning_rate": 0.1}]


@pytest.fixture(autouse=True)
def _no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return


def in_folder(config: RunConfig, folder: Path | str, uri: str | None = None) -> RunConfig:
    tracking = config.tracking.model_copy(update={"uri": uri})
    return config.model_copy(update={"storage": str(folder), "tracking": tracking})


def records(first: int, last: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1.0 / step} for step in range(first, last + 1)]


def test_runs_are_found_again_and_no_step_is_logged_twice(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = in_folder(tiny_config, tmp_path)
    first = Tracker(config).start("align", {"lr": 1e-3})
    first.log_records(records(1, 5))
    again = Tracker(config).start("align", {"lr": 1e-3})
    assert again.run_id == first.run_id
    again.log_records(records(3, 8))
    client = MlflowClient(tracking_uri(config))
    steps = [point.step for point in client.get_metric_history(first.run_id, "loss")]
    assert steps == list(range(1, 9))
    other = Tracker(config.model_copy(update={"name": "other"})).start("align", {})
    assert other.run_id != first.run_id


def test_a_stage_that_is_trained_anew_does_not_show_the_steps_of_the_one_before(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    """As where its folder was deleted to train it again with other settings."""
    config = in_folder(tiny_config, tmp_path)
    old = Tracker(config).start("align", {"lr": 1e-3}, "of-1e-3")
    old.log_records(records(1, 5))
    old.finish("of-1e-3")
    new = Tracker(config).start("align", {"lr": 1e-4}, "of-1e-4")
    new.log_records([{"step": 1, "loss": 9.0}])
    assert not Tracker(config).has_recorded("align", "of-1e-3")
    again = Tracker(config).start("align", {"lr": 1e-4}, "of-1e-4")
    assert again.run_id == new.run_id != old.run_id
    shown = MlflowClient(tracking_uri(config)).get_run(again.run_id).data
    assert (shown.params["lr"], shown.metrics["loss"]) == ("0.0001", 9.0)


def test_a_run_that_an_earlier_version_opened_goes_on(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = in_folder(tiny_config, tmp_path)
    old = Tracker(config).start("align", {})
    assert Tracker(config).start("align", {}, "of-1e-3").run_id == old.run_id


def test_more_metrics_than_a_request_may_hold(tiny_config: RunConfig, tmp_path: Path) -> None:
    run = Tracker(in_folder(tiny_config, tmp_path)).start("align", {})
    run.log_records(records(1, 2300))
    client = MlflowClient(tracking_uri(in_folder(tiny_config, tmp_path)))
    assert len(client.get_metric_history(run.run_id, "loss")) == 2300


def test_a_failure_closes_what_runs_and_is_forgotten_when_the_run_goes_on(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = in_folder(tiny_config, tmp_path)
    tracker = Tracker(config)
    done, failing = tracker.start("align", {}), tracker.start("instruct", {})
    done.finish()
    tracker.fail("name=value: a rule; a cure")
    client = MlflowClient(tracking_uri(config))

    def parent() -> Run:
        (run,) = client.search_runs([experiment], f"attributes.run_name = '{config.name}'")
        return run

    experiment = client.get_run(done.run_id).info.experiment_id
    assert client.get_run(done.run_id).info.status == "FINISHED"
    assert client.get_run(failing.run_id).info.status == parent().info.status == "FAILED"
    assert parent().data.tags["llavamed.error"] == "name=value: a rule; a cure"
    again = Tracker(config)
    assert parent().info.status == "FAILED", "nothing is touched before a run is opened"
    again.start("instruct", {})
    assert parent().info.status == "RUNNING"
    again.finish({})
    assert parent().info.status == "FINISHED"
    assert "llavamed.error" not in parent().data.tags


def test_object_storage_needs_a_server(tiny_config: RunConfig) -> None:
    with pytest.raises(TrackingError, match=r"tracking.uri=null: SQLite cannot live in s3://.*set"):
        tracking_uri(in_folder(tiny_config, "s3://bucket/runs"))


def test_the_environment_names_the_server(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(in_folder(tiny_config, "s3://bucket/runs")) == "http://mlflow:5000"
    own = in_folder(tiny_config, "s3://bucket/runs", uri="http://other:5000")
    assert tracking_uri(own) == "http://other:5000"


def test_runs_of_two_folders_of_one_name_are_apart(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one server, also where both configs say `storage: runs`."""
    keys = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        monkeypatch.chdir(folder)
        config = in_folder(tiny_config, "runs", uri=f"sqlite:///{tmp_path}/mlflow.db")
        keys.append(Tracker(config).start("align", {}).run_id)
    assert keys[0] != keys[1]


def test_a_result_is_recorded_once_whatever_the_run_is_called(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = in_folder(tiny_config.model_copy(update={"name": "llava-v1.5"}), tmp_path)
    run = Tracker(config).start("align", {})
    for _ in range(2):
        run.log_result("llava-v1.5-align", "s3://bucket/export", RESULT, HISTORY)
    client = MlflowClient(tracking_uri(config))
    metrics = client.get_run(run.run_id).data.metrics
    assert metrics["step_seconds.p95"] == 0.6
    assert metrics["parameters_frozen.projector"] == 2
    experiment = client.get_run(run.run_id).info.experiment_id
    (model,) = client.search_logged_models([experiment])
    assert (model.name, model.tags["export"]) == ("llava-v1-5-align", "s3://bucket/export")


def test_an_export_is_registered_once_and_the_newest_is_current(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = in_folder(tiny_config.model_copy(update={"name": "v1.5"}), tmp_path)
    client = MlflowClient(tracking_uri(config))
    first, second = "s3://bucket/one/export", str(tmp_path / "two" / "export")
    said = Tracker(config).register_model(first, RESULT)
    assert said == "model v1.5: version 1 in the registry is s3://bucket/one/export"
    assert Tracker(config).register_model(first, RESULT) == said
    assert "version 2" in Tracker(config).register_model(second, RESULT)
    assert "version 3" in Tracker(config).register_model(
        second, RESULT.replace(fingerprint="other")
    )
    assert Tracker(config).register_model(first, RESULT) == said
    current = client.get_model_version_by_alias("v1.5", "current")
    assert (int(current.version), current.source) == (3, second)
    assert current.tags == {"export": second, "stage": "align", "fingerprint": "other"}
    assert len(client.search_model_versions("name = 'v1.5'")) == 3


def test_an_alias_that_a_kill_left_out_is_set_the_next_time(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = in_folder(tiny_config, tmp_path)
    Tracker(config).register_model("s3://bucket/export", RESULT)
    client = MlflowClient(tracking_uri(config))
    client.delete_registered_model_alias(config.name, "current")
    Tracker(config).register_model("s3://bucket/export", RESULT)
    assert int(client.get_model_version_by_alias(config.name, "current").version) == 1


def test_a_folder_of_this_machine_is_not_registered_elsewhere(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    tracker = Tracker(in_folder(tiny_config, tmp_path))
    tracker.uri = "http://mlflow:5000"
    said = tracker.register_model(str(tmp_path / "export"), RESULT)
    assert said.endswith(
        f"not registered, because http://mlflow:5000 cannot read {tmp_path}/export"
    )


def test_a_server_lost_in_the_middle_is_a_sentence(tiny_config: RunConfig, tmp_path: Path) -> None:
    tracker = Tracker(in_folder(tiny_config, tmp_path))
    run = tracker.start("align", {})
    (tmp_path / "mlflow.db").write_bytes(b"no database any more" * 1000)
    for call in (
        lambda: run.log_scores({"closed_accuracy": 0.5}),
        lambda: run.log_result("align", "export", RESULT, HISTORY),
        lambda: tracker.register_model(f"{tmp_path}/export", RESULT),
        run.finish,
    ):
        with pytest.raises(
            TrackingError,
            match=r"tracking.uri=sqlite:///.*: the database is damaged .*; move it away and st",
        ):
            call()
    tracker.fail("a reason")  # says nothing: something else has failed already


def test_a_server_that_does_not_answer(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = in_folder(tiny_config, tmp_path, uri="http://127.0.0.1:9")
    with pytest.raises(
        TrackingError, match=r"tracking.uri=http://127.0.0.1:9: does not answer .*start the server"
    ):
        Tracker(config)
