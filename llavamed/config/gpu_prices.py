"""Prices of GPUs: a dated table, which a config may replace with its own."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from llavamed.config.section import Section

_SHIPPED = Path(__file__).with_suffix(".yaml")


class GpuPrices(Section):
    """Prices of GPUs, from which the cost of a run is computed. A table replaces the default
    entirely."""

    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """Day on which the prices were looked up, such as `2026-11-01`."""
    currency: Annotated[str, Field(min_length=1, max_length=8)]
    """Currency of the prices, such as `USD`."""
    hourly: dict[str, Annotated[float, Field(ge=0)]]
    """Price per GPU hour, by Ray's name of the GPU model, such as `A100`. The cost of a
    GPU that is not in the table is unknown."""

    def cost(self, accelerator: str | None, gpu_seconds: float) -> float | None:
        """Return what a time on GPUs costs, or None where their price is unknown.

        Args:
            accelerator: Ray's name of the GPU model, None where it is unknown.
            gpu_seconds: Number of GPUs times seconds. Zero costs nothing on any GPU.
        """
        if gpu_seconds == 0:
            return 0.0
        price = self.hourly.get(accelerator or "")
        return None if price is None else price * gpu_seconds / 3600


def shipped_prices() -> GpuPrices:
    """Return the table that comes with this program."""
    return GpuPrices.model_validate(yaml.safe_load(_SHIPPED.read_text(encoding="utf-8")))
