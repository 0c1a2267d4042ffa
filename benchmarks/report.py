"""What a benchmark leaves behind: its numbers, the machine they are of, and a plot."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    *("llavamed", "torch", "transformers", "numpy", "pyarrow"),
    *("pillow", "simplejpeg", "ray", "deepspeed"),
)
Spread = tuple[float, float, float]
"""Median, least and largest."""


def write(name: str, result: Mapping[str, Any]) -> Path:
    """Write a result with its environment as `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"environment": environment(), **result}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def environment() -> dict[str, Any]:
    """The processor, the GPU if there is one, and the versions of what is measured."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "num_cpus": len(models),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def bar_plot(
    name: str, title: str, series: Mapping[str, Mapping[str, Spread]], *, unit: str
) -> Path:
    """Draw groups of bars as `results/NAME.png`.

    Args:
        name: Of the file.
        title: What is measured.
        series: For each kind of bar its label, and for each group that has one its height with the
            spread.
        unit: Of the heights.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys(group for bars in series.values() for group in bars))
    figure, axes = plt.subplots(figsize=(max(6.0, 2.2 * len(groups)), 4.2), layout="constrained")
    width = 0.8 / len(series)
    for number, (label, bars) in enumerate(series.items()):
        places = [groups.index(group) + (number + 0.5) * width - 0.4 for group in bars]
        medians = [median for median, _, _ in bars.values()]
        spread = [
            [median - least for median, least, _ in bars.values()],
            [largest - median for median, _, largest in bars.values()],
        ]
        drawn = axes.bar(places, medians, width, yerr=spread, capsize=2, label=label)
        axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=7)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(unit)
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, ncols=min(len(series), 3))
    axes.margins(y=0.2)
    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
