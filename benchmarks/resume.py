"""Measure the seconds to the first batch when resuming late in an epoch, beside early.

The position is a step number and the order is known from the index, so nothing is replayed and both
take as long. Step 0 is shown beside them and is faster for another reason: the lanes' first windows
are cut short, lest all lanes ask for the next at once, so its packs come from fewer row groups. The
starts are taken in turn, each round at other steps, from a local folder with warm and with dropped
file caches, and from an S3 server on this machine.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from dataset import make_dataset
from report import bar_plot, finish, gate
from s3_server import s3_server

from llavamed.data.feed.loader import StageLoader
from llavamed.data.feed.order import StageOrder, order_stage
from llavamed.data.prepared.dataset import open_prepared
from llavamed.data.prepared.mixture import Mixture
from llavamed.storage.location import Location, locate

EARLY, LATE = "at 5 to 25 %", "at 75 to 95 %"
LANES = 2
CAPACITY = 4096
SIZE = 112  # small, so that each lane has many windows
SLACK_SECONDS = 0.02
"""What a start may take more without being called slower: the scheduler's noise."""


def first_batch_seconds(data: Mixture, order: StageOrder, start: int) -> float:
    """Return the seconds from the creation of a loader to its first batch."""
    begin = time.monotonic()
    loader = StageLoader(data, order, rank=0, world_size=1, packing=True)
    steps = loader.steps(start)
    next(steps)
    seconds = time.monotonic() - begin
    steps.close()
    for thread in threading.enumerate():
        if thread.name.startswith("reader"):  # what it still reads does not concern the next start
            thread.join()
    return seconds


def compare(place: Location, num_rounds: int, *, cold: bool = False) -> dict[str, Any]:
    """Return the medians of the starts, which are taken in turn."""
    data = Mixture((open_prepared(place),))
    begin = time.monotonic()
    order = order_stage(
        data.groups,
        data.column("num_tokens"),
        seed=0,
        num_lanes=LANES,
        capacity=CAPACITY,
        num_epochs=1,
    )
    ordering = time.monotonic() - begin
    parts = {"step 0": (0.0, 0.0), EARLY: (0.05, 0.25), LATE: (0.75, 0.95)}
    first_batch_seconds(data, order, 1)  # connections and imports
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(num_rounds):
        for name, (low, high) in parts.items():
            place_in_epoch = low + (high - low) * number / num_rounds
            if cold:
                drop_file_cache(Path(place.path))
            start = int(place_in_epoch * order.num_steps)
            taken[name].append(first_batch_seconds(data, order, start))
    medians = {name: median(seconds) for name, seconds in taken.items()}
    slower = (medians[LATE] - SLACK_SECONDS) / medians[EARLY]
    return {
        "medians": medians,
        "all": taken,
        "ordering_seconds": ordering,
        "steps": order.num_steps,
        "gate": slower,
    }


def drop_file_cache(folder: Path) -> None:
    """Make the system read the files below from disk again."""
    os.sync()
    for path in folder.rglob("*.parquet"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4,096 images and 9 rounds")
    quick = parser.parse_args().quick
    num_images, num_rounds = (4096, 9) if quick else (16_384, 25)
    with tempfile.TemporaryDirectory() as folder, s3_server() as bucket:
        local, remote = locate(f"{folder}/prepared"), locate(f"{bucket}/prepared")
        make_dataset(local, num_images, size=SIZE)
        remote.upload(Path(local.path))
        results = {
            "local, warm": compare(local, num_rounds),
            "local, cold": compare(local, num_rounds, cold=True),
            "S3": compare(remote, num_rounds),
        }
    for name, result in results.items():
        print(name, {start: round(value, 3) for start, value in result["medians"].items()})
    output = "resume-quick" if quick else "resume"
    series = {
        start: {
            name: (result["medians"][start], min(result["all"][start]), max(result["all"][start]))
            for name, result in results.items()
        }
        for start in ("step 0", EARLY, LATE)
    }
    bar_plot(output, "First batch of a stage", series, unit="seconds")
    gates = [
        gate(f"first batch late / early in the epoch, {name}", result["gate"], at_most=1.2)
        for name, result in results.items()
    ]
    result = {"quick": quick, "num_images": num_images, "results": results, "gates": gates}
    return finish(output, result)


if __name__ == "__main__":
    sys.exit(main())
