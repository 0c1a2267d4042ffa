"""How long a run still takes, from what its stages take and how fast it trains."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.run.forecast import seconds_to_end
from llavamed.storage.run_progress import RunProgress, StageProgress

FLOPS = st.floats(1e9, 1e24)


def running(*stages: StageProgress, seconds_left: float | None) -> RunProgress:
    return RunProgress(
        name="demo",
        attempt=1,
        started_at="2026-11-25T11:30:00+00:00",
        updated_at="2026-11-25T11:59:58+00:00",
        task="train",
        stage=stages[0].name,
        seconds_left=seconds_left,
        currency="USD",
        prices_date="2026-11-01",
        stages=stages,
    )


@given(
    flops=st.lists(FLOPS, min_size=1, max_size=5),
    steps=st.integers(1, 1000),
    data=st.data(),
    flops_per_second=FLOPS,
)
def test_at_an_even_speed_the_rest_is_the_work_left_by_the_speed(
    flops: list[float], steps: int, data: st.DataObject, flops_per_second: float
) -> None:
    """Of every stage any part may be done already, by an attempt before."""
    done = [data.draw(st.integers(0, steps)) for _ in flops]
    stages = [
        StageProgress(name=str(number), flops=amount, step=step, steps=steps)
        for number, (amount, step) in enumerate(zip(flops, done, strict=True))
    ]
    work = [amount * (steps - step) / steps for amount, step in zip(flops, done, strict=True)]
    stages[0] = stages[0].replace(state="training")
    now = running(*stages, seconds_left=work[0] / flops_per_second)
    assert seconds_to_end(now, flops_per_second) == pytest.approx(sum(work) / flops_per_second)


def test_what_is_unknown_is_not_guessed() -> None:
    trained = StageProgress(name="align", state="training", flops=1e12)
    waiting = StageProgress(name="instruct", flops=2e12)
    assert seconds_to_end(running(trained, waiting, seconds_left=None), 1e12) is None
    assert seconds_to_end(running(trained, waiting, seconds_left=1), None) is None
    unplanned = StageProgress(name="instruct")
    assert seconds_to_end(running(trained, unplanned, seconds_left=1), 1e12) is None
    finished = waiting.replace(state="finished")
    assert seconds_to_end(running(trained, finished, seconds_left=1), None) == 1
