"""Draw the loss of a stage."""

from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure

from llavamed.train.metrics import StepRecord


def draw_loss(history: Sequence[StepRecord]) -> Figure:
    """Draw loss and learning rate by optimizer step."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    loss_axis = figure.add_subplot()
    steps = [record["step"] for record in history]
    loss_axis.plot(steps, [record["loss"] for record in history], color="tab:blue")
    loss_axis.set(xlabel="optimizer step", ylabel="loss, mean over supervised tokens")
    rate_axis = loss_axis.twinx()
    rate_axis.plot(steps, [record["learning_rate"] for record in history], color="tab:gray")
    rate_axis.set_ylabel("learning rate")
    return figure
