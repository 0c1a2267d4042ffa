"""Measure memory at 1, 10 and 100 times the rows, while a dataset is prepared and loaded.

Each task is a process of its own. Its memory is that of the whole process tree, Ray's processes and
the object store included, sampled while it runs. Counted beside it: what the object store spilled
to disk, and whether the last rows take as much CPU time as those before, which is time in
proportion to the rows once the start that every size pays is left out.

Shards are of 64 rows here, not of 1024 as by default: a shard's cost to Ray's driver, about 100 kB,
is spread over so many fewer rows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import process_tree
import psutil
from dataset import make_dataset
from report import Spread, bar_plot, finish, gate

from llavamed.config.load import load_config
from llavamed.config.run import RunConfig
from llavamed.storage.location import locate

SCALES = (1, 10, 100)
SAMPLE_SECONDS = 0.2
ROW_GROUP = 16
ROWS_PER_SHARD = 64
DEMO = Path(__file__).parents[1] / "ray_jobs" / "configs" / "demo.yaml"


def run_config(folder: Path, num_rows: int) -> RunConfig:
    """Return the demo's model with a number of captions of small pictures, in small shards."""
    return load_config(
        DEMO,
        [
            f"storage={folder}",
            f"data.rows_per_shard={ROWS_PER_SHARD}",
            f"data.row_group_size={ROW_GROUP}",
            f"data.datasets.captions.read.num_images={num_rows}",
        ],
    )


def make_processor(folder: Path, num_rows: int) -> dict[str, Any]:
    """Make the tokenizer, which is not measured, because it is trained on the first texts only."""
    from llavamed.data.prepare.processor import ensure_processor

    ensure_processor(run_config(folder, num_rows))
    return {}


def prepare(folder: Path, num_rows: int) -> dict[str, Any]:
    """Prepare the captions with Ray Data on this machine."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    from llavamed.data.prepare.job import prepare

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
    )
    done = Progress(num_rows)
    prepared = prepare(
        run_config(folder, num_rows), ["captions"], lambda _, rows, __: done.add(rows)
    )
    assert prepared["captions"].num_samples == num_rows
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    spilled = get_memory_info_reply(state).store_stats.spilled_bytes_total
    return {**done.summary(), "spilled_bytes": int(spilled)}


def make(folder: Path, num_rows: int) -> dict[str, Any]:
    """Write a dataset to load."""
    make_dataset(
        locate(str(folder)), num_rows, size=28, rows_per_shard=ROWS_PER_SHARD, row_group=ROW_GROUP
    )
    return {}


def load(folder: Path, num_rows: int) -> dict[str, Any]:
    """Load one epoch of a worker with two lanes of packs."""
    from llavamed.data.feed.loader import StageLoader
    from llavamed.data.feed.order import order_stage
    from llavamed.data.prepared.dataset import open_prepared
    from llavamed.data.prepared.mixture import Mixture

    data = Mixture((open_prepared(locate(str(folder))),))
    done = Progress(num_rows)
    order = order_stage(
        data.groups, data.column("num_tokens"), seed=0, num_lanes=2, capacity=2048, num_epochs=1
    )
    seen = 0
    for batches in StageLoader(data, order, rank=0, world_size=1, packing=True).steps():
        seen += sum(len(batch.sample_ids) for batch in batches)
        done.add(seen)
    assert seen == num_rows
    return {**done.summary(), "spilled_bytes": 0}


class Progress:
    """Wall and CPU seconds when a tenth, 55 % and all of the rows were done."""

    def __init__(self, num_rows: int) -> None:
        self._start = time.monotonic()
        self._marks = [int(part * num_rows) for part in (0.1, 0.55, 1)]
        self._passed: list[tuple[int, float]] = []

    def add(self, rows: int) -> None:
        """Note the number of rows that are done."""
        while len(self._passed) < 3 and rows >= self._marks[len(self._passed)]:
            self._passed.append((rows, process_tree.cpu_seconds()))

    def summary(self) -> dict[str, float]:
        """Return all seconds, and the CPU seconds per row of the last 45 % over the 45 % before."""
        early, late = ((b[1] - a[1]) / max(1, b[0] - a[0]) for a, b in pairwise(self._passed))
        return {"seconds": time.monotonic() - self._start, "late_by_early": late / (early or 1)}


TASKS = {"processor": make_processor, "prepare": prepare, "make": make, "load": load}


def watch(task: str, folder: Path, num_rows: int) -> dict[str, Any]:
    """Run a task in a process of its own, and sample the memory of its tree."""
    command = [sys.executable, __file__, "--task", task]
    command += ["--folder", str(folder), "--rows", str(num_rows)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    tree = psutil.Process(process.pid)
    peak: dict[str, int] = {}
    while process.poll() is None:
        for name, value in process_tree.memory(tree).items():
            peak[name] = max(peak.get(name, 0), value)
        time.sleep(SAMPLE_SECONDS)
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{task} of {num_rows} rows failed: {errors[-2000:]}")
    return json.loads(output.splitlines()[-1]) | peak


def judge(task: str, runs: dict[int, dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """Return what a row costs, and the gates, from the runs by number of rows."""
    few, some, many = sorted(runs)
    growth = (runs[many]["held_bytes"] - runs[some]["held_bytes"]) / (many - some)
    flat = runs[many]["held_bytes"] / runs[few]["held_bytes"]
    spilled = sum(run["spilled_bytes"] for run in runs.values())
    slower = runs[many]["late_by_early"]
    seconds = (runs[many]["seconds"] - runs[few]["seconds"]) / (many - few)
    return {"bytes_per_row": growth, "seconds_per_row": seconds}, [
        gate(f"{task}: peak memory at 100 times the rows / at once", flat, at_most=1.1),
        gate(f"{task}: bytes spilled", spilled, at_most=0),
        gate(f"{task}: CPU seconds per row, late / early in the run", slower, at_most=1.15),
    ]


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 rows at once, not 500")
    parser.add_argument("--only", choices=("prepare", "load"), help="one of the two tasks")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(TASKS[arguments.task](arguments.folder, arguments.rows)))
        return 0
    result: dict[str, Any] = {"quick": arguments.quick, "gates": []}
    peaks: dict[str, dict[str, Spread]] = {}
    rows = 100 if arguments.quick else 500
    for before, task in (("processor", "prepare"), ("make", "load")):
        if arguments.only not in (None, task):
            continue
        runs = {}
        for scale in SCALES:
            with tempfile.TemporaryDirectory() as scratch:
                watch(before, Path(scratch) / "data", rows * scale)
                runs[rows * scale] = watch(task, Path(scratch) / "data", rows * scale)
            print(task, rows * scale, runs[rows * scale])
        costs, gates = judge(task, runs)
        print(task, costs)
        result[task] = {"runs": runs, **costs}
        result["gates"] += gates
        for num_rows, run in runs.items():
            peaks.setdefault(f"{num_rows:,} rows", {})[task] = (run["held_bytes"] / 2**20,) * 3
    name = "memory-quick" if arguments.quick else "memory"
    bar_plot(name, "Most memory of the process tree", peaks, unit="MiB")
    return finish(name, result)


if __name__ == "__main__":
    sys.exit(main())
