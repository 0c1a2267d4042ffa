"""Answer the parts of a task on many workers with Ray Data."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import ray

from llavamed.evaluate.generate import AnswerCounts, Task, Worker
from llavamed.parallel.pipeline import actor_restarts, carry_errors, configure_ray_data, iter_rows

_MEMORY_HINT = "set the number of workers or the batch size lower"


def answer_on_ray(
    task: Task, *, num_workers: int, use_gpu: bool, max_failures: int
) -> Iterator[AnswerCounts]:
    """Answer all parts of a task, and yield the count of each, in order.

    Args:
        use_gpu: Reserve a GPU for each.
        max_failures: Number of times that a worker that died is restarted.

    Raises:
        LlavaMedError: A worker fails, for whatever reason.
    """
    items = [{"condition": condition, "chunk": chunk} for condition, chunk in task.parts]
    configure_ray_data()
    pipeline = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _WorkerActor,
        fn_constructor_args=(task,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(items))),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
        **actor_restarts(max_failures),
    )
    for row in iter_rows(pipeline, memory_hint=_MEMORY_HINT):
        yield AnswerCounts(**row)


class _WorkerActor:
    """`Worker` in the form that Ray Data calls: a part in, its count out."""

    def __init__(self, task: Task) -> None:
        self._task = task

    @cached_property
    def _worker(self) -> Worker:
        """Made at the first part: Ray tries forever to make an actor that fails at once."""
        return Worker(self._task)

    def __call__(self, batch: dict[str, Sequence[Any]]) -> dict[str, list[int]]:
        with carry_errors():
            count = self._worker.answer(str(batch["condition"][0]), int(batch["chunk"][0]))
            return {
                "total": [count.total],
                "generated": [count.generated],
                "missing": [count.missing],
            }
