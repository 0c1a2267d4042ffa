"""How long a step of `step.py` takes, where the host waits in it, and which kernels it runs."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from drawn import Scale

NUM_OPERATIONS = 25
"""Operations that a profile lists."""


def seconds_of(step: Callable[[int], None], scale: Scale) -> float:
    """Return the seconds of the timed steps, after warm-up, until the device has done them."""
    for number in range(scale.warm_up):
        step(number)
    scale.wait()
    begin = time.perf_counter()
    for number in range(scale.warm_up, scale.warm_up + scale.steps):
        step(number)
    scale.wait()
    return time.perf_counter() - begin


def host_waits(step: Callable[[int], None], scale: Scale) -> dict[str, int] | None:
    """Return where and how often the host waits for the GPU in a step, without a GPU None."""
    if scale.device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(0)
    torch.cuda.set_sync_debug_mode("default")
    found = [each for each in caught if "synchronizing" in str(each.message)]
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in found)


def profile(step: Callable[[int], None], scale: Scale) -> dict[str, float]:
    """Return the seconds of one step by kernel of the GPU, without one by operation."""
    on_gpu = scale.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profiled:
        step(1)
        scale.wait()
    seconds = {
        each.key[:80]: (each.self_device_time_total if on_gpu else each.self_cpu_time_total) / 1e6
        for each in profiled.key_averages()
    }
    most = sorted(seconds.items(), key=lambda item: -item[1])[:NUM_OPERATIONS]
    return {"all": sum(seconds.values())} | dict(most)
