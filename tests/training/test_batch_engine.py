"""The running batch of the service: who joins it, who leaves it, and who fails with it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llavamed.errors import RequestError
from llavamed.model import running_batch
from llavamed.model.continuation import Sampling
from llavamed.model.generation import Generator, Prompt
from llavamed.model.running_batch import RunningBatch
from llavamed.processor.turns import Turn
from llavamed.serve.engine import BatchEngine, _Job
from llavamed.serve.export import open_export
from llavamed.storage.location import locate


@pytest.fixture(scope="module")
def generator(tiny_export: Path) -> Generator:
    return open_export(locate(str(tiny_export)), device="cpu")


def test_those_that_come_at_once_and_fit_into_the_batch_do_not_wait(generator: Generator) -> None:
    engine = BatchEngine(generator, max_batch_size=4, max_waiting=1)
    prompt = generator.encode(Prompt([Turn("user", "Why?")], []))

    async def answer() -> str | None:
        last = None
        with engine.place(1):
            await asyncio.sleep(0)  # all are here before the first prompt is made
        async for news in engine.answer(prompt, [Sampling(2)]):
            last = news[0].finish_reason
        return last

    async def burst() -> list[Any]:
        return await asyncio.gather(*(answer() for _ in range(4)))

    assert set(asyncio.run(burst())) <= {"stop", "length"}
    with engine.place(4), engine.place(1), pytest.raises(RequestError, match="queue: 1 requests"):
        engine.place(1).__enter__()
    assert engine.num_waiting == 0
    engine.close()


class Jobs:
    """Requests to an engine whose thread has ended, so that a test takes its steps."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.engine = BatchEngine(generator, max_batch_size=4, max_waiting=4)
        self.engine.close()
        self._loop = asyncio.new_event_loop()

    def new(self) -> _Job:
        prompt = self._generator.encode(Prompt([Turn("user", "Why?")], []))
        return _Job(prompt, [self._generator.begin(Sampling(3))], self._loop)

    def close(self) -> None:
        self._loop.close()

    def told(self, job: _Job) -> list[Any]:
        """What the client of a job was told so far."""
        self._loop.run_until_complete(asyncio.sleep(0))
        return [job.told.get_nowait() for _ in range(job.told.qsize())]


@pytest.fixture
def jobs(generator: Generator) -> Iterator[Jobs]:
    jobs = Jobs(generator)
    yield jobs
    jobs.close()


def run_out_of_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError


def test_requests_that_fail_to_join_together_begin_anew_one_by_one(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunningBatch._append

    def fail_for_several(batch: RunningBatch, rows: list[Any], *rest: Any) -> None:
        if len(rows) > 1:
            raise RuntimeError("out of memory")
        append(batch, rows, *rest)

    monkeypatch.setattr(RunningBatch, "_append", fail_for_several)
    both = [jobs.new(), jobs.new()]
    jobs.engine._join(both)
    assert [len(job.answers[0].token_ids) for job in both] == [1, 1]


def test_a_request_for_which_memory_runs_out_fails_alone(
    jobs: Jobs, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, late = jobs.new(), jobs.new()
    jobs.engine._join([going])
    with monkeypatch.context() as patch:
        patch.setattr("llavamed.model.running_batch._stack", run_out_of_memory)
        jobs.engine._join([late])
    assert [error.code for error in jobs.told(late)] == ["model_failed"]
    while going.answers[0].finish_reason is None:
        jobs.engine._step()
    alone = generator.answer([Prompt([Turn("user", "Why?")], [])], max_new_tokens=3)
    assert jobs.told(going)[-1][0].text == alone[0]


def test_a_request_whose_logits_are_not_finite_fails_alone(
    jobs: Jobs, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, broken = jobs.new(), jobs.new()
    jobs.engine._join([going, broken])
    choose = running_batch._choose

    def spoil(rows: list[Any], logits: torch.Tensor) -> list[Any]:
        places = [place for place, row in enumerate(rows) if row in broken.answers]
        logits = logits.clone()
        logits[places] = float("nan")
        return choose(rows, logits)

    with monkeypatch.context() as patch:
        patch.setattr(running_batch, "_choose", spoil)
        while going.answers[0].finish_reason is None:
            jobs.engine._step()
    told = jobs.told(broken)
    assert [each.code for each in told[1:]] == ["logits_not_finite"]
    alone = generator.answer([Prompt([Turn("user", "Why?")], [])], max_new_tokens=3)
    assert jobs.told(going)[-1][0].text == alone[0]
    assert jobs.engine.batch_size == 0


def test_those_in_the_batch_fail_when_it_cannot_be_made_smaller(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, gone = jobs.new(), jobs.new()
    jobs.engine._join([left, gone])
    gone.is_given_up = True
    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "remove", run_out_of_memory)
        jobs.engine._drop_given_up()
    assert jobs.told(left)[-1].code == "model_failed"
    assert jobs.engine.batch_size == 0
    new = jobs.new()
    jobs.engine._join([new])
    assert len(jobs.told(new)) == 1
