"""Simulate 8 to 1,024 GPUs: what stragglers, all-reduce, checkpoints and failures cost.

The packs are real: `order_stage` deals samples of drawn lengths to the lanes of each GPU, and every
step of the epoch is replayed. The time is a model, and none of it was measured on a cluster:

- A GPU takes time in proportion to the tokens of its packs. Each GPU has its own constant speed,
  and the time of each of its steps varies a little around it.
- A step ends when the slowest GPU has finished and the gradients are summed. A ring moves
  2 (n - 1) / n of their bytes, and each doubling of the GPUs adds the latency of two messages. A
  part of the transfer overlaps with the backward pass.
- Training stands still for each checkpoint. A failure costs the work since the last checkpoint and
  a restart. Source: J. T. Daly, A higher order estimate of the optimum checkpoint interval, 2006,
  equation 13, for failures that come at random.

`efficiency` is the share of a step in which the GPUs compute, and `goodput` the share of the time
in which training advances. `used` is their product. Every GPU takes the same number of packs in a
step whatever the number of GPUs, so the batch grows with them.
"""

import argparse
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from packing import CAPACITY, ROW_GROUP, Integers, draw_lengths
from report import finish, gate, save_plot

from llavamed.data.feed.order import StageOrder, order_stage

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
PACKS_PER_GPU = 4
CORPUS = "dialogues 336 px"

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cluster:
    """The assumptions of the model. Times are in seconds, sizes in bytes."""

    seconds_per_token: float = 6 * 6.74e9 / (0.5 * 989e12)
    """Six operations a parameter of a model of 6.74 B, on an H100 at half of its peak."""
    speed_spread: float = 0.01
    """Standard deviation of the logarithm of a GPU's speed."""
    step_spread: float = 0.01
    """Standard deviation of the logarithm of a step's time on one GPU."""
    gradient_bytes: float = 2 * 6.74e9
    bandwidth: float = 50e9
    """Bytes a second between two GPUs of different machines: a port of 400 Gb/s each."""
    latency: float = 20e-6
    """Of one message; each doubling of the GPUs adds two."""
    hidden: float = 0.5
    """Share of the transfer that overlaps with the backward pass."""
    checkpoint_interval: float = 1800.0
    checkpoint_stall: float = 2.0
    failures_per_gpu_hour: float = 419 / (54 * 24 * 16_384)
    """Source: The Llama 3 Herd of Models, section 3.3.4: 419 in 54 days on 16,384 GPUs."""
    restart: float = 300.0
    """From a failure to the first step after it."""

    def gradient_seconds(self, num_gpus: int) -> float:
        """Return the part of summing the gradients that a step waits for."""
        moved = 2 * (num_gpus - 1) / num_gpus * self.gradient_bytes / self.bandwidth
        messages = 2 * math.log2(num_gpus) * self.latency
        return (1 - self.hidden) * moved + messages

    def goodput(self, num_gpus: int) -> float:
        """Return the share of the time in which training advances."""
        work = self.checkpoint_interval
        rate = num_gpus * self.failures_per_gpu_hour / 3600
        if not rate:
            return work / (work + self.checkpoint_stall)
        elapsed = math.exp(rate * self.restart) / rate
        return work / (elapsed * math.expm1(rate * (work + self.checkpoint_stall)))


def tokens_of_gpus(order: StageOrder, lengths: Integers, num_gpus: int) -> Integers:
    """Return the tokens of each GPU in each step: int64, [steps, GPUs]."""
    (epoch,) = order.epochs
    tokens = np.zeros((epoch.num_steps, num_gpus), dtype=np.int64)
    for number, packs in enumerate(epoch.lanes):
        for step, places in enumerate(packs):
            tokens[step, number % num_gpus] += lengths[epoch.samples[places]].sum()
    return tokens


def simulate(tokens: Integers, cluster: Cluster, seed: int) -> dict[str, float]:
    """Return efficiency, goodput, their product, and the share of a step lost to each wait.

    Args:
        tokens: int64 array of shape [steps, GPUs].
        cluster: The assumptions.
        seed: Seed for the speeds of GPUs and steps.
    """
    num_gpus = tokens.shape[1]
    random = np.random.default_rng(seed)
    even: Seconds = tokens * cluster.seconds_per_token
    speeds = np.exp(cluster.speed_spread * random.standard_normal(num_gpus))
    noise = np.exp(cluster.step_spread * random.standard_normal(tokens.shape))
    busy = even * speeds * noise
    computed, slowest = busy.mean(axis=1).sum(), busy.max(axis=1).sum()
    packs = (even.max(axis=1) - even.mean(axis=1)).sum()
    gradients = cluster.gradient_seconds(num_gpus) * len(tokens)
    total = slowest + gradients
    efficiency, goodput = computed / total, cluster.goodput(num_gpus)
    return {
        "efficiency": float(efficiency),
        "goodput": goodput,
        "used": float(efficiency * goodput),
        "waits_for_packs": float(packs / total),
        "waits_for_stragglers": float((slowest - computed - packs) / total),
        "waits_for_gradients": float(gradients / total),
    }


def order_of(lengths: Integers, num_gpus: int) -> StageOrder:
    """Order one epoch for this many GPUs."""
    groups = np.arange(len(lengths)) // ROW_GROUP
    return order_stage(
        groups,
        lengths,
        seed=0,
        num_lanes=num_gpus * PACKS_PER_GPU,
        capacity=CAPACITY,
        num_epochs=1,
    )


def measure_order(sizes: Sequence[int]) -> list[dict[str, float]]:
    """Measure the CPU seconds and the memory to order an epoch, once for each size."""
    return [{"samples": size} | _measured(draw_lengths(CORPUS, size)) for size in sizes]


def _measured(lengths: Integers) -> dict[str, float]:
    """Order an epoch in a forked process, whose peak of memory starts at what it holds.

    In this process, what drawing the lengths took at its peak would hide a part of it.
    """
    context = multiprocessing.get_context("fork")
    result, its_end = context.Pipe(duplex=False)

    def work() -> None:
        before, start = _peak_bytes(), time.process_time()
        order_of(lengths, GPUS[0])
        seconds = time.process_time() - start
        its_end.send({"cpu_seconds": seconds, "more_bytes": _peak_bytes() - before})

    process = context.Process(target=work)
    process.start()
    its_end.close()
    found: dict[str, float] = result.recv()
    process.join()
    return found


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def plot(name: str, found: dict[int, dict[str, float]]) -> Path:
    """Draw the shares over the number of GPUs as `results/NAME.png`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (shares, waits) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    numbers = list(found)
    labels = {
        "efficiency": "efficiency: GPUs compute, share of a step",
        "goodput": "goodput: training advances, share of the time",
        "used": "efficiency x goodput",
    }
    for key, label in labels.items():
        shares.plot(numbers, [one[key] for one in found.values()], marker="o", label=label)
    shares.set_title("Simulated: efficiency and goodput", loc="left", fontsize=11)
    shares.set_ylabel("share")
    shares.set_ylim(min(0.8, min(one["used"] for one in found.values()) - 0.02), 1.005)
    kinds = {"packs": "uneven packs", "stragglers": "stragglers", "gradients": "all-reduce"}
    parts = [[one[f"waits_for_{kind}"] for one in found.values()] for kind in kinds]
    waits.stackplot(numbers, parts, labels=kinds.values(), alpha=0.8)
    waits.set_title("Simulated: what a step waits for", loc="left", fontsize=11)
    waits.set_ylabel("share of a step")
    waits.set_ylim(0, 1.4 * max(map(sum, zip(*parts, strict=True))))
    for axes in (shares, waits):
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axes.set_xlabel("GPUs")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    shares.legend(frameon=False, fontsize=8, loc="lower left")
    waits.legend(frameon=False, fontsize=8, loc="upper left")
    return save_plot(name, figure)


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="600,000 samples, not 15,000,000")
    parser.add_argument("--seed", type=int, default=0, help="seed for speeds of GPUs and steps")
    arguments = parser.parse_args()
    num_samples = 600_000 if arguments.quick else 15_000_000
    sizes = [num_samples // 10, num_samples]
    ordering = measure_order(sizes)
    for one in ordering:
        print("order:", *(f"{key}={value:.4g}" for key, value in one.items()))
    lengths = draw_lengths(CORPUS, num_samples)
    cluster, found = Cluster(), {}
    for num_gpus in GPUS:
        tokens = tokens_of_gpus(order_of(lengths, num_gpus), lengths, num_gpus)
        found[num_gpus] = simulate(tokens, cluster, arguments.seed) | {"steps": len(tokens)}
        print(f"{num_gpus:5} GPUs", *(f"{key}={v:.4g}" for key, v in found[num_gpus].items()))
    name = "scaling-quick" if arguments.quick else "scaling"
    plot(name, found)
    per_sample = [one["cpu_seconds"] / one["samples"] for one in ordering]
    most = GPUS[-1]
    return finish(
        name,
        {
            "simulated": True,
            "quick": arguments.quick,
            "num_samples": num_samples,
            "packs_per_gpu": PACKS_PER_GPU,
            "capacity": CAPACITY,
            "cluster": vars(cluster),
            "gpus": found,
            "ordering": ordering,
            "gates": [
                gate(
                    f"simulated: share of a step that {most:,} GPUs wait for packs",
                    found[most]["waits_for_packs"],
                    at_most=0.1 if arguments.quick else 0.03,
                ),
                gate(
                    "CPU seconds per sample to order an epoch, 10 times the samples / at once",
                    per_sample[1] / per_sample[0],
                    at_most=1.3,
                ),
                gate(
                    f"bytes a sample to order {num_samples:,} samples",
                    ordering[1]["more_bytes"] / num_samples,
                    at_most=110,
                ),
            ],
        },
    )


if __name__ == "__main__":
    sys.exit(main())
