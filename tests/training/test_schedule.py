"""The rates are those of transformers' own scheduler, at every step of any stage."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from llavamed.config.stage import Optimizer, Schedule
from llavamed.train.schedule import learning_rates, rate_factor

PEAK = 3e-4


def reference_rates(name: str, num_steps: int, num_warmup_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    name = "constant_with_warmup" if name == "constant" and num_warmup_steps else name
    scheduler = get_scheduler(name, optimizer, num_warmup_steps, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@settings(max_examples=30)
@given(num_steps=st.integers(1, 200), warmup_ratio=st.floats(0, 1))
def test_every_rate_is_that_of_transformers(name: str, num_steps: int, warmup_ratio: float) -> None:
    schedule = Schedule.model_validate({"name": name, "warmup_ratio": warmup_ratio})
    rates = [PEAK * rate_factor(schedule, step=k, num_steps=num_steps) for k in range(num_steps)]
    expected = reference_rates(
        name, num_steps, min(math.ceil(num_steps * warmup_ratio), num_steps - 1)
    )
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(
    ("name", "last"), [("cosine", 0.0), ("linear", 0.0), ("constant", PEAK)], ids=str
)
def test_a_schedule_ends_where_its_name_says(name: str, last: float) -> None:
    schedule = Schedule.model_validate({"name": name, "warmup_ratio": 0.1})
    assert PEAK * rate_factor(schedule, step=100, num_steps=100) == pytest.approx(last)


def test_a_warm_up_begins_at_zero_and_reaches_the_peak() -> None:
    schedule = Schedule(warmup_ratio=0.1)
    rates = [PEAK * rate_factor(schedule, step=k, num_steps=100) for k in range(11)]
    assert rates[0] == 0.0
    assert rates == sorted(rates)
    assert rates[10] == PEAK


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@given(num_steps=st.integers(1, 200), warmup_ratio=st.floats(0, 1))
def test_a_warm_up_never_takes_all_steps(name: str, num_steps: int, warmup_ratio: float) -> None:
    schedule = Schedule.model_validate({"name": name, "warmup_ratio": warmup_ratio})
    assert any(rate_factor(schedule, step=k, num_steps=num_steps) > 0 for k in range(num_steps))


def test_a_record_tells_the_rates_that_differ() -> None:
    parts = {"projector": {"lr": 2e-3}, "language_model": {"weight_decay": 0.1}}
    optimizer = Optimizer.model_validate({"lr": 1e-3, "parts": parts})
    assert learning_rates(optimizer, 0.5) == {
        "learning_rate": 5e-4,
        "learning_rate.projector": 1e-3,
    }
    assert learning_rates(Optimizer(lr=1e-3), 0.5) == {"learning_rate": 5e-4}
