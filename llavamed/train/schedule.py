"""The learning rate of every step, as a pure function: nothing to save, nothing to restore."""

import math

from llavamed.config.stage import Optimizer, Schedule


def warmup_steps(schedule: Schedule, num_steps: int) -> int:
    """Return the steps of the warm-up; at least the last step of a stage is none."""
    return min(math.ceil(schedule.warmup_ratio * num_steps), num_steps - 1)


def rate_factor(schedule: Schedule, *, step: int, num_steps: int) -> float:
    """Return the part of its peak that the rate of an optimizer step is, from 0 to 1.

    Steps are counted from 0; the first of a warm-up has a rate of 0. Source: `get_scheduler` of
    transformers, names and arithmetic, but for a warm-up of all steps, which would train nothing.
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
    """The rates of a step, for its record: the stage's, and that of each part with its own."""
    own = [part for part, settings in optimizer.parts.items() if settings.lr is not None]
    parts = {f"learning_rate.{part}": optimizer.peak_lr(part) * factor for part in own}
    return {"learning_rate": optimizer.lr * factor} | parts
