"""What the driver does again and what it does not, and that one who was taken over stops."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError, TrainingError
from llavamed.evaluate.scores import SCORES
from llavamed.model.export import read_manifest
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.driver import SUMMARY, evaluate_stages, run_curriculum
from llavamed.run.tracking import Tracker, tracking_uri
from llavamed.storage import lease
from llavamed.storage.lease import hold_lease
from llavamed.storage.location import locate
from tests.support.driver_without_ray import Done, done, quiet, scored_config

__all__ = ["done"]


def tracked(config: RunConfig) -> dict[str, Run]:
    """All runs of the only experiment, by name."""
    client = MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return {run.info.run_name: run for run in runs}


def test_what_is_finished_is_not_done_again_and_only_what_changed_is(
    done: Done, tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = scored_config(tiny_config, tmp_path)
    summary = run_curriculum(config, quiet())
    assert done.names == ["cluster", "train", "trained", "answer", "shut down"]
    assert run_curriculum(config, quiet()) == summary
    assert done.names == ["cluster", "train", "trained", "answer", "shut down"]

    done.names.clear()
    longer = scored_config(tiny_config, tmp_path, "stages.align.evaluation.max_new_tokens=3")
    found = run_curriculum(longer, quiet())
    assert done.names == ["cluster", "answer", "shut down"]
    assert found["evaluations"][0]["fingerprint"] != summary["evaluations"][0]["fingerprint"]
    assert run_curriculum(longer, quiet()) == found
    assert done.names == ["cluster", "answer", "shut down"]


def test_settings_that_were_refused_once_are_not_finished_the_next_time(
    done: Done, tiny_config: RunConfig, tmp_path: Path
) -> None:
    run_curriculum(scored_config(tiny_config, tmp_path), quiet())
    changed = scored_config(tiny_config, tmp_path, "seed=1")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"stage align .* other settings or data"):
            run_curriculum(changed, quiet())
    longer = scored_config(tiny_config, tmp_path, "max_failures=7")
    assert run_curriculum(longer, quiet()) == (locate(longer.directory) / SUMMARY).read_json()


@pytest.fixture
def successor() -> Iterator[ExitStack]:
    """Holds what another attempt takes over in the middle of a test."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    ("moment", "is_scored", "leaves"),
    [
        ("train", True, set()),
        ("trained", False, {"export"}),
        ("trained", True, {"export"}),
        ("answer", True, {"export"}),
        ("shut down", True, {"export", "scores", "version"}),
    ],
)
def test_who_was_taken_over_publishes_no_more_and_leaves_the_tracked_runs_alone(
    done: Done,
    successor: ExitStack,
    tiny_config: RunConfig,
    tmp_path: Path,
    *,
    moment: str,
    is_scored: bool,
    leaves: set[str],
) -> None:
    config = scored_config(tiny_config, tmp_path)
    if not is_scored:
        stage = config.stages[0].model_copy(update={"evaluation": None})
        config = config.model_copy(update={"stages": (stage,)})
    directory, (plan,) = locate(config.directory), plan_curriculum(config)

    def take_over() -> None:
        successor.enter_context(hold_lease(directory, hint="wait", take_over=True))
        Tracker(config).start("align", {})

    done.meanwhile[moment] = take_over
    with pytest.raises(TrainingError, match=r"attempt=1: .* was taken over by .* attempt 2"):
        run_curriculum(config, quiet())
    assert not (directory / SUMMARY).exists()
    versions = MlflowClient(tracking_uri(config)).search_model_versions(f"name='{config.name}'")
    left = {
        "export": read_manifest(plan.export) is not None,
        "scores": (plan.evaluation / SCORES).exists(),
        "version": bool(versions),
    }
    assert {name for name, is_there in left.items() if is_there} == leaves
    runs = tracked(config)
    assert {runs[name].info.status for name in (config.name, "align")} == {"RUNNING"}
    assert "llavamed.error" not in runs[config.name].data.tags


def test_an_error_is_told_to_the_tracker_until_the_run_goes_on(
    done: Done, tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = scored_config(tiny_config, tmp_path)

    def fail() -> None:
        raise TrainingError("a=b: a rule; a cure")

    done.meanwhile["answer"] = fail
    with pytest.raises(TrainingError, match="a=b"):
        run_curriculum(config, quiet())
    runs = tracked(config)
    assert {name: run.info.status for name, run in runs.items()} == {
        config.name: "FAILED",
        "align": "FINISHED",
        "align-evaluation": "FAILED",
    }
    assert runs[config.name].data.tags["llavamed.error"] == "a=b: a rule; a cure"
    done.meanwhile.clear()
    run_curriculum(config, quiet())
    runs = tracked(config)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert "llavamed.error" not in runs[config.name].data.tags


def test_scoring_once_more_is_for_who_holds_the_run(
    done: Done,
    successor: ExitStack,
    tiny_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    config = scored_config(tiny_config, tmp_path)
    summary = run_curriculum(config, quiet())
    assert evaluate_stages(config, None, quiet()) == summary["evaluations"]
    directory, (plan,) = locate(config.directory), plan_curriculum(config)
    (plan.evaluation / SCORES).remove()
    with hold_lease(directory, hint="wait"):
        message = r"which is alive; wait for its end or stop it, or use another name; `llavamed tra"
        with pytest.raises(TrainingError, match=message):
            evaluate_stages(config, None, quiet())
        with pytest.raises(TrainingError, match=message):
            run_curriculum(config, quiet())
    done.meanwhile["answer"] = lambda: successor.enter_context(
        hold_lease(directory, hint="wait", take_over=True)
    )
    with pytest.raises(TrainingError, match="was taken over"):
        evaluate_stages(config, "align", quiet())
    assert not (plan.evaluation / SCORES).exists()
