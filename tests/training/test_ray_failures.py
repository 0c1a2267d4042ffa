"""What Ray says of a worker it lost becomes a sentence of ours, without Ray's advice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, OutOfMemoryError, WorkerCrashedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from llavamed.errors import DataError
from llavamed.parallel.failures import explain_failure, find_our_error
from llavamed.run.resources import num_workers_that_fit

HINT = "set stages.align.max_tokens lower"
MONITOR = (
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "192.0.2.7, ID: 24ba6db7) was 5.49GB used / 23.54GB limit (0.233377)\nOOM kill reason: Memory "
    "usage 5907165184B exceeded threshold of 5889424896B (23.3% of 25276502016B limit)\n"
    "Selected to kill: (Actor(3f): job ID=01, lease ID=03, task name=SynchronizationActor.__init__,"
    " required resources={}, pid=6322, actual memory used=0.10GB, worker ID=e0)\n"
    "Selected to kill: (Actor(26): job ID=01, lease ID=04, task name=RayTrainWorker.__init__, "
    "required resources={CPU: 1}, pid=6371, actual memory used=3.32GB, worker ID=bc)\n"
    "Refer to the documentation; to adjust the kill threshold, set RAY_memory_usage_threshold."
)
VANISHED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
    "exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
    "common causes include: (1) the process was killed by the OOM killer, (2) ray stop --force"
)


def died(text: str) -> WorkerHealthCheckFailedError:
    """A worker's death as Ray Train passes it on."""
    actor = ActorDiedError()
    actor.error_msg = f"\tpid: 31175\n\tnamespace: x\n\tip: 192.0.2.2\n{text}"
    actor.args = (actor.error_msg,)
    return WorkerHealthCheckFailedError("A worker health check failed.", actor)


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError(MONITOR),
        ControllerError(OutOfMemoryError(MONITOR)),
        WorkerGroupError(MONITOR, {1: died(MONITOR)}),
        WorkerGroupError("", {0: WorkerHealthCheckFailedError("", OutOfMemoryError(MONITOR))}),
    ],
    ids=["itself", "in the controller", "as an actor's death", "in a worker"],
)
def test_the_memory_monitor_s_victim_is_named_with_what_it_held(error: Exception) -> None:
    assert explain_failure(error, HINT) == (
        "Ray's memory monitor killed RayTrainWorker (process 6371, 3.32 GB) on 192.0.2.7, where "
        f"5.49 of 23.54 GB were in use, more than the 23.3 % that Ray allows; {HINT}"
    )


def test_a_process_that_vanished_is_named_and_memory_is_only_a_guess() -> None:
    found = explain_failure(WorkerGroupError("", {0: died(VANISHED)}), HINT)
    assert found.startswith("process 31175 on 192.0.2.2 was killed from outside or crashed, and ")
    assert found.endswith(f"if it was memory, {HINT}")
    assert "ray stop" not in found


def test_any_other_loss_says_nothing_of_ray_s() -> None:
    found = explain_failure(WorkerCrashedError(), HINT)
    assert found == "Ray lost a process or a machine (WorkerCrashedError)"


def test_an_error_of_ours_is_found_however_it_is_wrapped() -> None:
    ours = DataError("path=x: is gone; bring it back")
    nested = WorkerGroupError("", {3: WorkerHealthCheckFailedError("", ControllerError(ours))})
    assert find_our_error(nested) is ours
    assert find_our_error(WorkerGroupError("", {0: died(VANISHED)})) is None


NODE = st.fixed_dictionaries({"CPU": st.integers(0, 16), "GPU": st.integers(0, 8)})


@given(st.lists(NODE, max_size=5), st.integers(1, 4), st.integers(0, 2))
def test_workers_fit_as_if_they_were_placed_one_by_one(
    nodes: list[dict[str, float]], cpus: int, gpus: int
) -> None:
    wanted = {name: float(count) for name, count in (("CPU", cpus), ("GPU", gpus)) if count}
    placed, rest = 0, [dict(node) for node in nodes]
    for node in rest:
        while all(node[name] >= amount for name, amount in wanted.items()):
            for name, amount in wanted.items():
                node[name] -= amount
            placed += 1
    assert num_workers_that_fit(nodes, wanted) == placed
