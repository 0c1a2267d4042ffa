"""Compute the learning rate of every step as a pure function, with no state to save."""

import math

from llavamed.config.stage import Optimizer, Schedule


def warmup_steps(schedule: Schedule, num_steps: int) -> int:
    """Return the number of warm-up steps, which never include the last step of a stage."""
    return min(math.ceil(schedule.warmup_ratio * num_steps), num_steps - 1)


def rate_factor(schedule: Schedule, *, step: int, num_steps: int) -> float:
    """Return the learning rate of a step as a fraction of its peak, from 0 to 1.

    Steps are counted from 0; the first step of a warm-up has the rate 0. Source: `get_scheduler` of
    transformers for names and arithmetic, except for a warm-up of all steps, which would train
    nothing.
    """
    warmup = warmup_steps(schedule, num_steps)
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, num_steps - warmup)
    match schedule.name:
        case "cosine":
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        case "linear":
            return max(0.0, 1.0 - progress)
        case "constant":
            return 1.0


def learning_rates(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """Return the learning rates of a step: of the stage, and of each part with its own."""
    own = [part for part, settings in optimizer.parts.items() if settings.lr is not None]
    parts = {f"learning_rate.{part}": optimizer.peak_lr(part) * factor for part in own}
    return {"learning_rate": optimizer.lr * factor} | parts
