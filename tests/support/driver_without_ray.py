"""The driver as it is, while what Ray would do on a cluster is done in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.evaluate import answering
from llavamed.evaluate.generate import AnswerCounts, Task, answer_here
from llavamed.run import driver
from llavamed.run.progress import ProgressDisplay
from llavamed.train.job import StageJob, Workers
from tests.support.training_setup import prepared, run_stage, small_config

STAGES = (
    "data.datasets.test-questions.read.num_images=2",
    "stages.align.max_steps=1",
    "stages.align.evaluation={data: test-questions, max_new_tokens: 2}",
)
"""A stage of one step, scored with a few questions."""


class Done:
    """What the driver had Ray do, in order; and what happens in the meantime."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.meanwhile: dict[str, Callable[[], object]] = {}
        self.workers = Workers(1, 0, None)

    def note(self, name: str) -> None:
        self.names.append(name)
        self.meanwhile.get(name, lambda: None)()


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Done:
    """Put our own process in the place of Ray."""
    done = Done()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    @contextmanager
    def ray_cluster(_: RunConfig) -> Iterator[None]:
        done.note("cluster")
        yield
        done.note("shut down")

    def prepare(config: RunConfig, names: list[str], *_: Any) -> dict[str, PreparedDataset]:
        return {name: prepared(config, name) for name in names}

    def fit(job: StageJob, folder: Any, on_started: Any, on_records: Any) -> bool:
        done.note("train")
        on_started(done.workers)
        run_stage(job, on_records)
        done.note("trained")
        return True

    def answer_on_ray(task: Task, **_: Any) -> Iterator[AnswerCounts]:
        yield from answer_here(task)
        done.note("answer")

    for module, part in ((driver, ray_cluster), (driver, prepare), (driver, fit)):
        monkeypatch.setattr(module, part.__name__, part)
    monkeypatch.setattr(answering, "answer_on_ray", answer_on_ray)
    return done


def scored_config(config: RunConfig, folder: Path, *overrides: str) -> RunConfig:
    """One stage in a storage of its own, with datasets that its session shares."""
    places = (f"storage={folder}", f"data.directory={config.storage}/scored-datasets")
    small = small_config(config, *STAGES, *places, *overrides)
    return small.model_copy(update={"stages": small.stages[:1]})


def quiet() -> ProgressDisplay:
    return ProgressDisplay()
