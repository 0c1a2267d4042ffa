"""MLflow shows what storage holds, whatever kept an attempt from telling it."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from llavamed.config.run import RunConfig
from llavamed.run import driver
from llavamed.run.driver import run_curriculum
from llavamed.storage.location import locate
from llavamed.tracking.mlflow_client import tracking_uri
from llavamed.train.history import read_history
from tests.support.driver_without_ray import Done, quiet, scored_config

STEPS = 3


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def runs_of(config: RunConfig) -> list[Run]:
    client = MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    return client.search_runs([experiment.experiment_id]) if experiment else []


def check_told(config: RunConfig) -> None:
    """Every run is there once and finished, with every step once, scores and a model."""
    runs = {run.info.run_name: run for run in runs_of(config)}
    names = {config.name, "align", "align-evaluation"}
    assert set(runs) == names
    assert len(runs_of(config)) == len(names)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    client = MlflowClient(tracking_uri(config))
    points = client.get_metric_history(runs["align"].info.run_id, "loss")
    history = read_history(locate(config.directory) / "stages" / "align" / "export")
    assert [point.step for point in points] == [1, 2, 3]
    assert [point.value for point in points] == [record["loss"] for record in history]
    evaluation = runs["align-evaluation"].info.run_id
    kept = {file.path for file in client.list_artifacts(evaluation)}
    assert kept >= {"answers.parquet", "answers.json", "scores.json", "report.html", "cards"}
    cards = {file.path for file in client.list_artifacts(evaluation, "cards")}
    assert "cards/model_card.md" in cards
    assert len(cards) > 1
    assert "align.trained.open_token_recall" in runs[config.name].data.metrics
    assert len(client.search_model_versions(f"name = '{config.name}'")) == 1


def config_in(tiny_config: RunConfig, folder: Path, *overrides: str) -> RunConfig:
    return scored_config(tiny_config, folder, f"stages.align.max_steps={STEPS}", *overrides)


@pytest.mark.parametrize("part", ["track_stage", "track_evaluation", "track_end"])
def test_a_driver_that_is_killed_before_it_tells_is_made_up_for(
    done: Done, tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    config = config_in(tiny_config, tmp_path)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(driver, part, die)
        with pytest.raises(Killed):
            run_curriculum(config, quiet())
    run_curriculum(config, quiet())
    assert done.names.count("train") == 1
    check_told(config)
    run_curriculum(config, quiet())  # nothing to do, and nothing is told twice
    check_told(config)


def test_a_server_that_knows_nothing_is_told_all_by_a_run_with_nothing_to_do(
    done: Done, tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tiny_config, tmp_path / "run")
    run_curriculum(config, quiet())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert runs_of(config) == []
    run_curriculum(config, quiet())
    assert done.names.count("train") == 1
    check_told(config)


def test_odd_names_of_folders_work(done: Done, tiny_config: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path.joinpath("it's", "100%", "a b", "what?", "a%20b")
    config = config_in(tiny_config, folder)
    run_curriculum(config, quiet())
    check_told(config)
    run = next(run for run in runs_of(config) if run.info.run_name == "align")
    client = MlflowClient(tracking_uri(config))
    assert client.download_artifacts(run.info.run_id, "loss.png", str(tmp_path))
    assert (folder / "mlartifacts").is_dir()
