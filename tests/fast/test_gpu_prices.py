"""What GPUs cost: the table that comes with the program, and one of one's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.gpu_prices import GpuPrices, shipped_prices
from llavamed.config.load import load_config
from llavamed.errors import ConfigError
from llavamed.storage.location import locate
from llavamed.storage.manifest import write
from llavamed.storage.run_progress import RunProgress, Spending, StageProgress, find_progress
from tests.conftest import CONFIGS

PRICES = GpuPrices(date="2026-11-01", currency="EUR", hourly={"A100": 3.6})
COSTS = st.none() | st.floats(0, 1e6)


def test_a_gpu_hour_costs_what_the_table_says() -> None:
    assert PRICES.cost("A100", 3600) == 3.6
    assert PRICES.cost("A100", 8 * 1800) == pytest.approx(4 * 3.6)
    assert PRICES.cost("H100", 1.0) is None
    assert PRICES.cost(None, 1.0) is None
    assert PRICES.cost(None, 0.0) == 0.0


def test_the_default_is_the_dated_table_that_is_shipped() -> None:
    config = load_config(CONFIGS / "demo.yaml")
    assert config.gpu_prices == shipped_prices()
    assert {"A100", "A100-40G", "H100"} <= config.gpu_prices.hourly.keys()
    assert all(price > 0 for price in config.gpu_prices.hourly.values())


def test_a_table_of_a_config_replaces_the_default_whole() -> None:
    own = "gpu_prices={date: 2026-11-01, currency: EUR, hourly: {A100: 3.6}}"
    assert load_config(CONFIGS / "demo.yaml", [own]).gpu_prices == PRICES
    with pytest.raises(ConfigError, match=r"gpu_prices\.date"):
        load_config(CONFIGS / "demo.yaml", ["gpu_prices={currency: EUR, hourly: {A100: 3.6}}"])


@given(seconds=st.lists(st.floats(0, 1e6), max_size=4), costs=st.lists(COSTS, max_size=4))
def test_a_sum_is_known_when_all_its_parts_are(
    seconds: list[float], costs: list[float | None]
) -> None:
    parts = [
        Spending(gpu_seconds=each, cost=cost) for each, cost in zip(seconds, costs, strict=False)
    ]
    total = sum(parts, Spending())
    assert total.gpu_seconds == pytest.approx(sum(part.gpu_seconds for part in parts))
    known = [part.cost for part in parts if part.cost is not None]
    assert total.cost == (pytest.approx(sum(known)) if len(known) == len(parts) else None)


def test_progress_comes_back_and_what_is_illegible_is_no_progress(tmp_path) -> None:
    folder = locate(str(tmp_path))
    assert find_progress(folder) is None
    progress = RunProgress(
        name="demo",
        attempt=2,
        started_at="2026-11-01T00:00:00+00:00",
        updated_at="2026-11-01T00:00:05+00:00",
        currency="USD",
        prices_date="2026-11-01",
        stages=(StageProgress(name="align", training=Spending(gpu_seconds=8, cost=None)),),
    )
    write(folder, progress)
    assert find_progress(folder) == progress
    file = tmp_path / RunProgress.FILE
    assert file.stat().st_size < 4096
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    assert find_progress(folder) is None
    file.write_text("{")
    assert find_progress(folder) is None
