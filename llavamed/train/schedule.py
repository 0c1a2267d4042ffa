"""The learning rate of every step, as a pure function: nothing to save, nothing to restore."""

import math

from llavamed.config.stages import Schedule


def learning_rate(schedule: Schedule, peak: float, *, step: int, num_steps: int) -> float:
    """The rate of an optimizer step, counted from 0; the first of a warm-up is 0.

    Source: `get_scheduler` of transformers, names and arithmetic.
    """
    warmup = math.ceil(schedule.warmup_ratio * num_steps)
    if step < warmup:
        return peak * step / max(1, warmup)
    progress = (step - warmup) / max(1, num_steps - warmup)
    match schedule.name:
        case "cosine":
            return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        case "linear":
            return peak * max(0.0, 1.0 - progress)
        case "constant":
            return peak
