"""What `progress.json` says while a run goes on, ends, fails, is taken over and goes on."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError, LeaseError, StorageError, TrainingError
from llavamed.run import driver, progress
from llavamed.run import record as module
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.driver import run_curriculum
from llavamed.run.progress import ProgressDisplay
from llavamed.run.record import RunRecord
from llavamed.storage.lease import hold_lease
from llavamed.storage.location import locate
from llavamed.storage.run_progress import RunProgress, RunSummary, Spending, find_progress
from llavamed.train.job import Workers
from tests.support.driver_without_ray import Done, quiet, scored_config
from tests.support.log_messages import on_log
from tests.support.manifests import export_manifest
from tests.support.training_setup import small_config
from tests.training.test_driver import tracked

A100S = Workers(2, 2, "A100")
PRICES = "gpu_prices={date: 2026-11-01, currency: EUR, hourly: {A100: 3600}}"
"""A second of one GPU costs one euro."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets, for the GPU seconds and the rate of steps."""
    now = [0.0]
    for each in (module, progress):
        monkeypatch.setattr(each, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(module, "WRITE_SECONDS", 3600.0)
    return now


@pytest.fixture
def config(tiny_config: RunConfig, tmp_path: Path) -> RunConfig:
    return override_config(small_config(tiny_config, f"storage={tmp_path}"), [PRICES])


@contextmanager
def recorded(config: RunConfig) -> Iterator[RunRecord]:
    """The record of one attempt."""
    plans = plan_curriculum(config)
    with (
        hold_lease(locate(config.directory), hint="wait") as lease,
        RunRecord(config, plans, lease, ProgressDisplay()) as record,
    ):
        yield record


def progress_of(config: RunConfig) -> RunProgress:
    found = find_progress(locate(config.directory))
    assert found is not None
    return found


def step(number: int) -> dict[str, float]:
    return {"step": number, "loss": 2.5, "tokens_per_second": 1e4, "mfu": 0.41}


def test_gpu_seconds_count_from_the_workers_start_to_the_export_in_all_attempts(
    config: RunConfig, clock: list[float]
) -> None:
    for attempt, seconds in ((1, 14.0), (2, 35.0)):
        with suppress(TrainingError), recorded(config) as record:
            assert progress_of(config).stages[0].state == "waiting"
            record.prepared("captions", 3, 9)
            clock[0] += 100  # nobody holds a GPU yet
            record.stage_started("align", 20)
            clock[0] += 100
            record.workers_started(A100S)
            clock[0] += 5
            record.trained([step(4)])
            clock[0] += 2
            if attempt == 1:
                raise TrainingError("a worker died")
            clock[0] += 3
            record.workers_started(Workers(1, 1, "A100"))  # fewer, after a restart
            clock[0] += 1
            record.stage_trained("align", export_manifest(steps=20))
            clock[0] += 100
        found = progress_of(config)
        assert found.attempt == attempt
        assert found.stages[0].training == Spending(gpu_seconds=seconds, cost=seconds)
        assert found.spent == found.stages[0].training
        assert (found.currency, found.prices_date) == ("EUR", "2026-11-01")


def test_it_says_what_a_run_does_now(config: RunConfig, clock: list[float]) -> None:
    with recorded(config) as record:
        assert (progress_of(config).state, progress_of(config).task) == ("running", "prepare")
        record.stage_started("instruct", 30)
        record.workers_started(A100S)
        record.trained([step(1), step(2)])
        record.write()
        found = progress_of(config)
        assert (found.task, found.stage, found.step, found.steps) == ("train", "instruct", 2, 30)
        assert (found.loss, found.tokens_per_second, found.mfu) == (2.5, 1e4, 0.41)
        assert (found.num_workers, found.num_gpus, found.accelerator) == (2, 2, "A100")
        assert [stage.state for stage in found.stages] == ["waiting", "training", "waiting"]
        record.evaluation_started("instruct")
        record.answered(7, 9)
        record.write()
        found = progress_of(config)
        assert (found.task, found.step, found.steps) == ("evaluate", 7, 9)
        assert found.stages[1].state == "evaluating"
    assert progress_of(config).state == "finished"


def test_it_estimates_the_rest_of_the_run_and_what_it_will_have_cost(
    config: RunConfig, clock: list[float]
) -> None:
    with recorded(config) as record:
        for stage, flops in {"align": 20e12, "instruct": 60e12, "vqa": 40e12}.items():
            record.planned(stage, flops)
        record.stage_started("align", 20)
        record.workers_started(A100S)
        record.write()
        found = progress_of(config)
        assert (found.run_seconds_left, found.cost_at_end) == (None, None)
        record.trained([step(2)])
        clock[0] += 10
        record.trained([step(12)])
        record.write()
        found = progress_of(config)  # a step a second, 1e12 operations each
        assert found.seconds_left == pytest.approx(8)
        assert found.run_seconds_left == pytest.approx(8 + 60 + 40)
        assert found.cost_at_end == pytest.approx(2 * (10 + 8 + 60 + 40))
        record.stage_trained("align", export_manifest(steps=20))
        assert progress_of(config).run_seconds_left is None
        record.evaluation_started("align")
        record.answered(1, 11)
        clock[0] += 5
        record.answered(6, 11)
        record.write()
        assert progress_of(config).run_seconds_left == pytest.approx(5 + 60 + 40)
    assert progress_of(config).run_seconds_left is None


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (TrainingError("a=b: a rule; a hint"), "failed", "a=b: a rule; a hint"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (ZeroDivisionError("x"), "failed", "ZeroDivisionError"),
    ],
)
def test_the_end_of_an_attempt_is_told_with_its_reason(
    config: RunConfig, error: BaseException, state: str, reason: str
) -> None:
    with pytest.raises(type(error)), recorded(config):
        raise error
    assert (progress_of(config).state, progress_of(config).reason) == (state, reason)


def test_who_was_taken_over_writes_no_more(config: RunConfig) -> None:
    folder = locate(config.directory)
    with (
        suppress(LeaseError),
        recorded(config) as record,
        hold_lease(folder, hint="wait", take_over=True),
    ):
        before = progress_of(config)
        record.stage_started("align", 20)
        record.write()
        raise LeaseError("attempt=1: was taken over")
    assert progress_of(config) == before


def test_a_storage_that_is_away_stops_nothing_and_is_named_once(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def refuse(*_: object) -> None:
        raise StorageError("s3://bucket: cannot write it")

    with recorded(config) as record, monkeypatch.context() as patch, on_log(said.append):
        patch.setattr(module, "write", refuse)
        record.write()
        record.write()
    assert [text for text in said if "progress.json is not written" in text] == [
        "progress.json is not written, and is tried again: s3://bucket: cannot write it"
    ]
    assert progress_of(config).state == "finished"


def test_a_gpu_without_a_price_is_named_and_its_cost_unknown(
    config: RunConfig, clock: list[float]
) -> None:
    said: list[str] = []
    with on_log(said.append), recorded(config) as record:
        record.stage_started("align", 20)
        record.workers_started(Workers(1, 1, "B200"))
        clock[0] += 10
    assert any("gpu_prices.hourly: has no price for B200" in text for text in said)
    assert progress_of(config).spent == Spending(gpu_seconds=10, cost=None)


@pytest.mark.parametrize("is_known", [True, False])
def test_the_work_of_each_stage_is_planned_where_the_shape_of_the_model_is_known(
    is_known: bool,
    done: Done,
    tiny_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("model.weights=a: cannot be loaded")

    if not is_known:
        monkeypatch.setattr(driver, "training_flops", refuse)
    config = scored_config(tiny_config, tmp_path, PRICES)
    run_curriculum(config, quiet())
    found = progress_of(config)
    assert found.state == "finished"
    assert all((stage.flops or 0) > 0 for stage in found.stages) == is_known


def test_a_run_tells_its_cost_in_the_summary_and_in_mlflow(
    done: Done, tiny_config: RunConfig, tmp_path: Path, clock: list[float]
) -> None:
    done.workers = A100S
    done.meanwhile["trained"] = lambda: clock.__setitem__(0, clock[0] + 10)
    config = scored_config(tiny_config, tmp_path, PRICES)
    summary = run_curriculum(config, quiet())
    assert isinstance(summary, RunSummary)
    stage = summary.stages[0]
    assert (stage.gpu_seconds, stage.cost, summary.currency) == (20, 20, "EUR")
    runs = tracked(config)
    for name in ("align", config.name):
        metrics = runs[name].data.metrics
        assert (metrics["gpu_seconds"], metrics["cost"]) == (20, 20)
    found = progress_of(config)
    assert (found.state, found.stages[0].state, found.stages[0].step) == ("finished", "finished", 1)
