"""Write the result of a benchmark: its numbers, the machine, a plot and its gates.

python benchmarks/report.py writes the gates of all results as the table of README.md.
"""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    *("llavamed", "torch", "transformers", "numpy", "pyarrow"),
    *("pillow", "simplejpeg", "ray", "deepspeed", "datasets", "webdataset"),
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
    """Return the processor, the GPU if there is one, and the versions of what is measured."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "num_cpus": len(models),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def gate(
    measure: str, value: float, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """Return a gate: a number that must not be worse than its bound, and a row of the table."""
    passed = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    bound = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
    return {"measure": measure, "value": round(value, 4), "bound": bound, "passed": passed}


def finish(name: str, result: Mapping[str, Any]) -> int:
    """Write a result with `gates`, print them, and return the exit status: 1 when one is missed."""
    write(name, result)
    for one in result["gates"]:
        verdict = "ok    " if one["passed"] else "MISSED"
        print(f"{verdict} {one['measure']}: {one['value']:g} ({one['bound']})")
    return int(not all(one["passed"] for one in result["gates"]))


def table() -> str:
    """Return the gates of all results that were not quick, as Markdown."""
    lines = ["| benchmark | measure | value | gate |", "|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        if path.stem.endswith("-quick"):
            continue
        for one in json.loads(path.read_text(encoding="utf-8")).get("gates", []):
            bound = one["bound"] if one["passed"] else f"**{one['bound']}**, missed"
            lines.append(f"| {path.stem} | {one['measure']} | {one['value']:g} | {bound} |")
    return "\n".join(lines)


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
    return save_plot(name, figure)


def save_plot(name: str, figure: Any) -> Path:
    """Write a figure beside the results, and close it."""
    from matplotlib import pyplot as plt

    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def main() -> None:
    """Put the table into README.md, between its marks."""
    readme = RESULTS.parent / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition("<!-- table -->\n")
    end = "<!-- end of table -->"
    readme.write_text(before + begin + table() + "\n" + end + rest.partition(end)[2], "utf-8")


if __name__ == "__main__":
    main()
