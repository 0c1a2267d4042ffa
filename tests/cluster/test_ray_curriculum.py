"""The whole curriculum on a local Ray with two workers: what it leaves, and that it goes on."""

import logging
import os
import random
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llavamed.cli.options import console
from llavamed.cli.tables import show_summary
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError, TrainingError
from llavamed.run import driver
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.driver import run_curriculum
from llavamed.run.progress import ProgressDisplay
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import read
from llavamed.storage.run_progress import RunSummary
from llavamed.train.checkpoint.listing import complete_checkpoints, read_checkpoint
from llavamed.train.history import read_history
from tests.support.gloo_workers import run_on_workers
from tests.support.log_messages import on_log
from tests.support.training_setup import make_job

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def run(config: RunConfig) -> tuple[dict, str]:
    said: list[str] = []
    with on_log(said.append):
        summary = run_curriculum(config, ProgressDisplay())
    return summary, "\n".join(said)


def weights(config: RunConfig, stage: str) -> dict[str, torch.Tensor]:
    place = f"{config.directory}/stages/{stage}/export"
    return LlavaForConditionalGeneration.from_pretrained(place).state_dict()


def test_curriculum_trains_evaluates_tracks_and_finds_itself_finished(
    small: RunConfig, monkeypatch: pytest.MonkeyPatch, local_ray: str
) -> None:
    with fetched_metrics(local_ray) as metrics:
        summary, text = run(small)

    assert [stage.name for stage in summary.stages] == ["align", "instruct", "vqa"]
    for stage, steps in zip(summary.stages, (4, 6, 4), strict=True):
        assert stage.steps == steps
        assert stage.tokens_per_second > 0
        LlavaForConditionalGeneration.from_pretrained(stage.export)
        assert AutoProcessor.from_pretrained(stage.export).chat_template
    for control in ("trained", "untrained", "blank_image"):
        assert 0 <= summary.scores[control]["closed_strict"] <= 1
        assert 0 <= summary.scores[control]["open_token_recall"] <= 1
    assert read(RunSummary, locate(small.directory)) == summary
    assert "left" in text
    assert "train instruct  6/6" in text
    assert Path(summary.evaluations[0].report).read_text().startswith("<!DOCTYPE html>")
    with console.capture() as printed:
        show_summary(summary)
    assert "mlflow server --backend-store-uri sqlite:" in printed.get()
    check_tracking(summary)
    check_metrics(metrics, summary)

    def must_not_start(config: RunConfig) -> None:
        raise AssertionError("Ray was asked for although everything is finished")

    monkeypatch.setattr(driver, "ray_cluster", must_not_start)
    again, text = run(small)
    assert again == summary
    assert "everything is finished" in text

    changed = small.model_copy(update={"seed": 1})
    monkeypatch.undo()
    with pytest.raises(
        ConfigError, match=r"^seed=1, was 0: other settings than .*align and .*vqa was trained with"
    ):
        run(changed)


@contextmanager
def fetched_metrics(address: str) -> Iterator[dict[str, float]]:
    """Every sample of ours that Prometheus would have met, with the last value it had."""
    samples: dict[str, float] = {}
    stop = threading.Event()

    def fetch() -> None:
        while not stop.wait(0.5):
            with suppress(OSError), urllib.request.urlopen(address) as answer:
                lines = answer.read().decode().splitlines()
                ours = (line.rpartition(" ") for line in lines if line.startswith("ray_llavamed_"))
                samples.update({sample: float(value) for sample, _, value in ours})

    fetcher = threading.Thread(target=fetch, daemon=True)
    fetcher.start()
    yield samples
    stop.set()
    fetcher.join()


def check_metrics(metrics: dict[str, float], summary: RunSummary) -> None:
    found: dict[tuple[str, str, str], float] = {}
    for sample, value in metrics.items():
        tags = dict(re.findall(r'(\w+)="([^"]*)"', sample))
        assert tags["run"] == "demo"
        found[sample.partition("{")[0], tags["stage"], tags["rank"]] = value
    for stage in summary.stages:
        history = read_history(locate(stage.export))
        expected = {
            "step": stage.steps,
            "loss": stage.loss_last,
            "tokens_total": sum(record["num_tokens"] for record in history),
            "step_seconds_count": stage.steps,
            **{key: history[-1][key] for key in ("grad_norm", "learning_rate", "memory_bytes")},
            **{key: history[-1][key] for key in ("tokens_per_second", "data_wait_seconds")},
            "checkpoint_age_seconds": history[-1]["checkpoint_age_seconds"],
        }
        for key, value in expected.items():
            name = f"ray_llavamed_{key}"
            assert found[name, stage.name, "0"] == pytest.approx(value), key
            is_of_a_worker = key in ("step_seconds_count", "data_wait_seconds", "memory_bytes")
            assert ((name, stage.name, "1") in found) == is_of_a_worker, key


def check_tracking(summary: RunSummary) -> None:
    client = MlflowClient(summary.tracking_uri)
    experiment = client.get_experiment_by_name("llavamed")
    assert experiment is not None
    runs = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"demo", "align", "instruct", "vqa", "vqa-evaluation"}
    parent = runs.pop("demo")
    assert parent.data.metrics["trained.open_token_recall"] >= 0
    for child in runs.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert child.inputs.dataset_inputs
    for stage in summary.stages:
        run_id = runs[stage.name].info.run_id
        for metric in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"):
            steps = [point.step for point in client.get_metric_history(run_id, metric)]
            assert steps == list(range(1, stage.steps + 1))
        keys = runs[stage.name].data.metrics.keys()
        assert {"step_seconds", "step_seconds.p99", "grad_norm.projector"} <= keys
        assert "mfu" not in keys, "on a CPU there is no peak to compare with"
        assert {"loss.png"} <= {file.path for file in client.list_artifacts(run_id)}
    version = client.get_model_version_by_alias("demo", "current")
    assert version.source == summary.stages[-1].export
    models = client.search_logged_models([experiment.experiment_id])
    assert {model.tags["export"] for model in models} == {s.export for s in summary.stages}


def test_a_killed_worker_changes_nothing(small_prepared: RunConfig, tmp_path: Path) -> None:
    stage = small_prepared.stages[1].model_copy(update={"max_steps": 40})
    base = small_prepared.model_copy(update={"stages": (stage,), "max_failures": 1})
    quiet = base.model_copy(update={"storage": str(tmp_path / "quiet")})
    run_on_workers(2, [make_job(quiet)])
    killed = base.model_copy(update={"storage": str(tmp_path / "killed")})
    checkpoints = plan_curriculum(killed)[0].checkpoints
    victims = kill_a_worker(checkpoints, after_step=4)
    summary, text = run(killed)
    assert victims, "no worker was killed; the test has shown nothing"
    assert f"process {victims[0]} on " in text
    assert "the workers start again, from the last checkpoint (failure 1, max_failures=1)" in text

    undisturbed, disturbed = weights(quiet, "instruct"), weights(killed, "instruct")
    assert all(torch.equal(undisturbed[name], disturbed[name]) for name in undisturbed)
    assert sorted(tracked_losses(summary, "instruct")) == list(range(1, 41))


def kill_a_worker(checkpoints: Location, *, after_step: int) -> list[int]:
    """Kill one as soon as such a checkpoint is complete; its process is in the list by then."""
    victims: list[int] = []

    def wait_and_kill() -> None:
        while max(complete_checkpoints(checkpoints), default="") < f"step-{after_step:06d}":
            time.sleep(0.02)
        ours = psutil.Process().children(recursive=True)
        worker = next(each for each in ours if "RayTrainWorker" in "".join(each.cmdline()))
        worker.kill()
        victims.append(worker.pid)

    threading.Thread(target=wait_and_kill, daemon=True).start()
    return victims


def tracked_losses(summary: RunSummary, stage: str) -> dict[int, float]:
    """The loss of every step of a stage's only run, each of which was logged once."""
    client = MlflowClient(summary.tracking_uri)
    experiment = client.get_experiment_by_name("llavamed")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{stage}'")
    assert len(found) == 1
    points = client.get_metric_history(found[0].info.run_id, "loss")
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


def test_a_run_goes_on_with_half_its_workers_from_the_checkpoint_before_a_damaged_one(
    small_prepared: RunConfig,
) -> None:
    stage = small_prepared.stages[0].model_copy(update={"max_steps": 40})
    by_two = small_prepared.model_copy(update={"stages": (stage,), "max_failures": 0})
    checkpoints = plan_curriculum(by_two)[0].checkpoints
    victims = kill_a_worker(checkpoints, after_step=random.randrange(4, 16))
    with pytest.raises(TrainingError, match="max_failures=0: workers of stage align failed"):
        run(by_two)
    assert victims
    *_, older, newer = complete_checkpoints(checkpoints)
    (checkpoints / newer / "random_of_rank_1_.pt").remove()

    scaling = by_two.scaling.model_copy(update={"num_workers": 1})
    summary, text = run(by_two.model_copy(update={"scaling": scaling}))
    assert f"{newer}/random_of_rank_1_.pt: is missing; resuming from the checkpoint" in text
    assert f"before, {checkpoints / older}" in text
    assert summary.stages[0].steps == 40
    manifests = [read_checkpoint(checkpoints / name) for name in checkpoints.children()]
    assert [manifest.layout.world_size for manifest in manifests] == [1, 1]
    losses = tracked_losses(summary, "align")
    assert sorted(losses) == list(range(1, 41))
    exported = read_history(locate(summary.stages[0].export))
    # Steps after the older checkpoint were taken twice: by two workers, then by one.
    assert losses == pytest.approx({each["step"]: each["loss"] for each in exported}, abs=1e-3)


def test_an_error_of_ours_ends_the_stage_at_once(small_prepared: RunConfig) -> None:
    wild = small_prepared.stages[0].model_copy(
        update={"optimizer": small_prepared.stages[0].optimizer.model_copy(update={"lr": 1e30})}
    )
    config = small_prepared.model_copy(update={"stages": (wild,), "max_failures": 3})
    said: list[str] = []
    with (
        on_log(said.append, level=logging.DEBUG),
        pytest.raises(TrainingError, match=r"loss=(nan|inf) at step \d+.*not finite"),
    ):
        run_curriculum(config, ProgressDisplay())
    started = [line for line in said if line.startswith("worker ")]
    assert len(started) == config.scaling.num_workers, "it is tried again"


def test_ctrl_c_ends_a_stage_at_once(small_prepared: RunConfig) -> None:
    stage = small_prepared.stages[0].model_copy(update={"max_steps": 5000})
    config = small_prepared.model_copy(update={"stages": (stage,)})
    checkpoints = plan_curriculum(config)[0].checkpoints
    # A shell starts what runs in its background with the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT)

    def wait_and_press() -> None:
        while not complete_checkpoints(checkpoints):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_and_press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert signal.getsignal(signal.SIGINT) is before
    assert complete_checkpoints(checkpoints)
