"""What the driver does again and what it does not, and that one who was taken over stops."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError, DataError, LeaseError, TrainingError
from llavamed.run.curriculum import make_jobs, plan_curriculum
from llavamed.run.driver import evaluate_stages, run_curriculum
from llavamed.run.preflight import check_settings
from llavamed.run.tracking import Tracker
from llavamed.storage import lease
from llavamed.storage.lease import hold_lease
from llavamed.storage.location import locate
from llavamed.storage.manifest import ExportManifest, ScoresManifest, find, read, write
from llavamed.storage.run_progress import RunSummary
from llavamed.tracking.mlflow_client import tracking_uri
from tests.support.driver_without_ray import Done, quiet, scored_config
from tests.support.manifests import export_manifest
from tests.support.training_setup import small_config


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
    assert found.evaluations[0].fingerprint != summary.evaluations[0].fingerprint
    assert run_curriculum(longer, quiet()) == found
    assert done.names == ["cluster", "answer", "shut down"]


def record(config: RunConfig) -> list[object]:
    """What a run's folder and MLflow hold of its settings and its end."""
    runs, client = tracked(config), MlflowClient(tracking_uri(config))
    directory = Path(config.directory)
    return [
        (directory / "config.yaml").read_bytes(),
        (directory / RunSummary.FILE).read_bytes(),
        {name: (run.info.status, run.data.tags) for name, run in runs.items()},
        Path(client.download_artifacts(runs[config.name].info.run_id, "config.yaml")).read_bytes(),
    ]


REFUSED = {
    "seed=1": r"^seed=1, was 0: other settings than .*/stages/align was trained with; re",
    "stages.align.optimizer.lr=0.5": r"^stages.align.optimizer.lr=0.5, was 0.002: other set",
    "engine.precision=bf16": r'^engine.precision="bf16", was "fp32": other settings than ',
    "model.template=plain": r'^model.template="plain", was "vicuna_v1": other settings than ',
    "data.datasets.captions.read.num_images=41": r"datasets.captions.num_images=41, was 40",
}


def test_a_refused_restart_names_what_differs_and_leaves_the_record_alone(
    done: Done, tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = scored_config(tiny_config, tmp_path)
    run_curriculum(config, quiet())
    before = record(config)
    for change, message in REFUSED.items():
        for _ in range(2):
            with pytest.raises((ConfigError, DataError), match=message):
                run_curriculum(scored_config(tiny_config, tmp_path, change), quiet())
            assert record(config) == before, change
    longer = scored_config(tiny_config, tmp_path, "max_failures=7")
    assert run_curriculum(longer, quiet()) == read(RunSummary, locate(longer.directory))
    assert record(longer)[0] != before[0]


def test_of_stages_that_build_on_each_other_all_are_named_once(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = small_config(tiny_config, f"storage={tmp_path}")
    plans = plan_curriculum(config)
    for plan, job in zip(plans, make_jobs(config, plans), strict=True):
        facts = {"fingerprint": job.fingerprint, "settings": job.settings}
        write(plan.export, export_manifest(stage=plan.stage.name, **facts))
    check_settings(plans, make_jobs(config, plans))
    changed = small_config(config, "stages.align.optimizer.lr=0.5", "stages.vqa.max_grad_norm=3")
    plans = plan_curriculum(changed)
    folders = " and ".join(str(plan.folder) for plan in plans)
    message = (
        "stages.align.optimizer.lr=0.5, was 0.002; stages.vqa.max_grad_norm=3.0, was 1.0: other "
        f"settings than {folders} was trained with"
    )
    with pytest.raises(ConfigError, match=message):
        check_settings(plans, make_jobs(changed, plans))
    for plan in plans:
        plan.folder.remove()
    check_settings(plans, make_jobs(changed, plans))
    write(plans[0].export, export_manifest())


@pytest.mark.parametrize(
    "change",
    [
        "engine.zero_stage=3",
        "engine.offload_optimizer=cpu",
        "scaling.num_workers=2",
        "max_failures=9",
        "checkpoint={every_steps: 7, num_to_keep: 5, keep_best: loss}",
        "tracking={experiment: other, log_every_steps: 3}",
        "model.attn_implementation=eager",
        "stages.align.gradient_checkpointing=true",
        "stages.align.max_loss_ratio=9",
    ],
)
def test_what_changes_no_number_is_no_other_run(
    tiny_config: RunConfig, tmp_path: Path, change: str
) -> None:
    config = small_config(tiny_config, f"storage={tmp_path}")
    plans = plan_curriculum(config)
    for plan, job in zip(plans, make_jobs(config, plans), strict=True):
        facts = {"fingerprint": job.fingerprint, "settings": job.settings}
        write(plan.export, export_manifest(stage=plan.stage.name, **facts))
    changed = small_config(config, change)
    plans = plan_curriculum(changed)
    check_settings(plans, make_jobs(changed, plans))


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
    with pytest.raises(LeaseError, match=r"attempt=1: .* was taken over by .* attempt 2"):
        run_curriculum(config, quiet())
    assert not (directory / RunSummary.FILE).exists()
    versions = MlflowClient(tracking_uri(config)).search_model_versions(f"name='{config.name}'")
    left = {
        "export": find(ExportManifest, plan.export) is not None,
        "scores": (plan.evaluation / ScoresManifest.FILE).exists(),
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
    assert evaluate_stages(config, None, quiet()) == list(summary.evaluations)
    directory, (plan,) = locate(config.directory), plan_curriculum(config)
    (plan.evaluation / ScoresManifest.FILE).remove()
    with hold_lease(directory, hint="wait"):
        message = r"which is alive; wait for its end or stop it, or use another name; `llavamed tra"
        with pytest.raises(LeaseError, match=message):
            evaluate_stages(config, None, quiet())
        with pytest.raises(LeaseError, match=message):
            run_curriculum(config, quiet())
    done.meanwhile["answer"] = lambda: successor.enter_context(
        hold_lease(directory, hint="wait", take_over=True)
    )
    with pytest.raises(LeaseError, match="was taken over"):
        evaluate_stages(config, "align", quiet())
    assert not (plan.evaluation / ScoresManifest.FILE).exists()
