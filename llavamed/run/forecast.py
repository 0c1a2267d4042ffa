"""Estimate how long a run still takes, from the work of its stages and the speed of training."""

from llavamed.storage.run_progress import RunProgress, StageProgress


def flops_left(stage: StageProgress) -> float | None:
    """Return the floating point operations that the training of a stage still takes, if known."""
    if stage.flops is None:
        return None
    done = stage.step / stage.steps if stage.steps else 0.0
    return stage.flops * (1.0 - done)


def seconds_to_end(now: RunProgress, flops_per_second: float | None) -> float | None:
    """Return how long a run still takes, or None where that is unknown.

    This is the rest of the current task and the training of the stages that wait, at the same
    number of operations per second. Later evaluations are not counted, because their duration is
    not known.

    Args:
        flops_per_second: Speed of training, over all workers; None before it was measured.
    """
    waiting = [flops_left(stage) for stage in now.stages if stage.state == "waiting"]
    if now.seconds_left is None or None in waiting:
        return None
    if not waiting:
        return now.seconds_left
    if not flops_per_second:
        return None
    return now.seconds_left + sum(filter(None, waiting)) / flops_per_second
