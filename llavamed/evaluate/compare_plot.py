"""Draw a comparison of predictions."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llavamed.evaluate.compare import GroupComparison
from llavamed.evaluate.statistics import Estimate


def draw_comparison(
    compared: Sequence[GroupComparison], names: Sequence[str], scorer: str
) -> bytes:
    """Draw scores and differences to the first file with their intervals, as a PNG.

    Args:
        compared: Result of `compare`, one row for each group.
        names: Names of the files, for the legend.
        scorer: Name of the scorer, for the axis.
    """
    height = 1.2 + 0.3 * len(names) + len(compared) * (0.3 + 0.2 * len(names))
    figure = Figure(figsize=(9, height), layout="constrained")
    scores, differences = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
    for number, name in enumerate(names):
        rows = [found.scores[number] for found in compared]
        _draw(scores, rows, number, len(names), name)
        if number:
            rows = [found.differences[number - 1].estimate for found in compared]
            _draw(differences, rows, number, len(names), name)
    scores.set_xlim(-0.02, 1.02)
    scores.set_xlabel(f"score by {scorer}, 95 % interval")
    differences.axvline(0, color="0.4", linewidth=1)
    differences.set_xlabel("difference to A, 95 % interval")
    differences.locator_params(axis="x", nbins=6)
    scores.set_yticks(range(len(compared)), [_label(found) for found in compared])
    scores.set_ylim(len(compared) - 0.5, -0.5)
    for axes in (scores, differences):
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(*scores.get_legend_handles_labels(), loc="outside upper left", frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    return drawn.getvalue()


def _draw(axes: Axes, rows: Sequence[Estimate], number: int, num_files: int, name: str) -> None:
    shift = 0.6 * ((number + 0.5) / num_files - 0.5)
    values = [row.value for row in rows]
    below = [row.value - row.low for row in rows]
    above = [row.high - row.value for row in rows]
    axes.errorbar(
        values,
        [place + shift for place in range(len(rows))],
        xerr=[below, above],
        fmt="o",
        markersize=5,
        capsize=3,
        color=f"C{number}",
        label=name,
    )


def _label(found: GroupComparison) -> str:
    number = len(found.group.positions)
    return f"{found.group.name}\n{number:,} question{'s' if number > 1 else ''}"
