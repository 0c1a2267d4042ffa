"""Feeding a training loop: images per CPU-second and time to the first batch, beside six loaders.

Every loader reads the same samples and makes the same batches, which is checked before anything is
timed; from local files, and then from an S3 server on this machine, whose CPU time is not counted.
Each run is a process of its own, in rounds that take every loader once; the median of the rounds
counts. CPU time is that of the whole process tree in a second epoch, when memory has been touched
and Ray's workers are there; all of it on one processor, since the seconds of two that share a core
count for less. Not counted are imports, the start of Ray, and the copies of the data that
webdataset, litdata and memory-mapped datasets need.

The work is not the same in all: ours and torch's `DataLoader` verify the checksum of every page,
about 20 us an image, and ours alone could go on from any step. A memory-mapped dataset is shown
without a gate: it reads a copy on the local disk that it never checks, which neither an object
store nor data larger than the disk allows. litdata's copy on the disk begins empty in each epoch,
for the same reason.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from statistics import median
from typing import Any

from dataset import make_dataset, write_litdata, write_tars
from loaders import LOADERS, MAPPED, ON_S3, RAY, convert_for_hf
from process_tree import cpu_seconds
from report import bar_plot, finish, gate
from s3_server import s3_server

from llavamed.processor.turns import IGNORE_INDEX
from llavamed.storage.location import locate


def measure(name: str, root: str) -> dict[str, Any]:
    """Measure two epochs of a loader: the first batch of the first, the rates of the second."""
    first_batch = epoch(name, root)["first_batch_seconds"]
    return {**epoch(name, root), "first_batch_seconds": first_batch}


def epoch(name: str, root: str) -> dict[str, float]:
    """Run one epoch with the creation of the loader. The consumer only touches the batches."""
    cpu, start = cpu_seconds(), time.monotonic()
    first, images, touched = 0.0, 0, 0.0
    for input_ids, targets, pixel_values in LOADERS[name](root):
        first = first or time.monotonic() - start
        images += len(pixel_values)
        touched += float(pixel_values[0, 0, 0, 0] + input_ids[0, 0] + targets[0, 0])
    wall, used = time.monotonic() - start, cpu_seconds() - cpu
    return {
        "images_per_cpu_second": images / used,
        "images_per_second": images / wall,
        "first_batch_seconds": first,
    }


def contents(name: str, root: str) -> dict[str, Any]:
    """Return a hash of all samples that a loader delivers, in any order."""
    seen = []
    for input_ids, targets, pixel_values in LOADERS[name](root):
        for ids, target, pixels in zip(input_ids, targets, pixel_values, strict=True):
            trained = target[target != IGNORE_INDEX].numpy().tobytes()
            used = ids[ids != 0].numpy().tobytes()
            seen.append(f"{zlib.crc32(used)} {zlib.crc32(trained)} {zlib.crc32(pixels.numpy())}")
    return {
        "samples": len(seen),
        "hash": hashlib.sha256("\n".join(sorted(seen)).encode()).hexdigest(),
    }


def in_process(task: str, name: str, root: str) -> dict[str, Any]:
    """Run `measure` or `contents` in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        f"--{task}",
        name,
        "--root",
        root,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def alone(task: str, name: str, root: str) -> None:
    """Do the work of that process, on one processor."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if name == RAY:
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
    print(json.dumps({"measure": measure, "contents": contents}[task](name, root)))
    sys.stdout.flush()


def make_data(folder: Path, num_images: int) -> None:
    """Make the dataset, and the copies of it that some loaders need."""
    prepared = folder / "prepared"
    make_dataset(locate(str(prepared)), num_images)
    write_tars(prepared, folder / "tars")
    write_litdata(prepared, folder / "litdata")
    convert_for_hf(str(folder))


def compare(root: str, names: list[str], num_rounds: int) -> list[dict[str, dict[str, float]]]:
    """Return what every round measures of each loader."""
    found = {name: in_process("contents", name, root) for name in names}
    if len({json.dumps(one) for one in found.values()}) > 1:
        raise SystemExit(f"the loaders do not deliver the same samples: {found}")
    rounds = []
    for number in range(num_rounds):
        # Several read the same shards: whoever comes first may find them on the disk only.
        first = number % len(names)
        in_turn = [*names[first:], *names[:first]]
        rounds.append({name: in_process("measure", name, root) for name in in_turn})
        print(f"{root}: round {number + 1} of {num_rounds}, load {os.getloadavg()[0]:.1f}")
    for name, values in medians(rounds).items():
        print(f"{name:30}", *(f"{key}={value:.4g}" for key, value in values.items()))
    return rounds


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the median of the rounds, for each loader and measure."""
    return {
        name: {key: median(one[name][key] for one in rounds) for key in values}
        for name, values in rounds[0].items()
    }


def gates(
    local: dict[str, dict[str, float]], s3: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """Compare ours with the other loaders, and with torch for the first batch."""
    best = {
        place: max(
            values["images_per_cpu_second"]
            for name, values in found.items()
            if name not in {"ours", MAPPED}
        )
        for place, found in (("local", local), ("s3", s3))
    }
    torch_first = min(
        values["first_batch_seconds"] for name, values in local.items() if "torch" in name
    )
    return [
        gate(
            "images per CPU-second / best loader that could read from an object store",
            local["ours"]["images_per_cpu_second"] / best["local"],
            at_least=1.0,
        ),
        gate(
            "images per CPU-second / best loader, from S3",
            s3["ours"]["images_per_cpu_second"] / best["s3"],
            at_least=1.0,
        ),
        gate(
            "seconds to the first batch / torch DataLoader",
            local["ours"]["first_batch_seconds"] / torch_first,
            at_most=2,
        ),
    ]


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,048 images and 3 rounds")
    parser.add_argument("--only", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--measure", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--contents", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the data is, or will be kept")
    arguments = parser.parse_args()
    for task in ("measure", "contents"):
        if name := getattr(arguments, task):
            alone(task, name, arguments.root)
            return 0
    num_images, num_rounds = (2048, 3) if arguments.quick else (6144, 5)
    with tempfile.TemporaryDirectory() as scratch, s3_server() as bucket:
        folder = arguments.folder or Path(scratch)
        if not (folder / "prepared" / "manifest.json").exists():
            make_data(folder, num_images)
        for name in ("prepared", "tars", "litdata"):
            locate(f"{bucket}/{name}").upload(folder / name)
        local = compare(str(folder), arguments.only, num_rounds)
        on_s3 = [name for name in arguments.only if name in ON_S3]
        s3 = compare(bucket, on_s3, num_rounds) if on_s3 else []
    if set(arguments.only) != set(LOADERS):
        return 0
    output = "feeding-quick" if arguments.quick else "feeding"
    series: dict[str, dict[str, tuple[float, float, float]]] = {name: {} for name in LOADERS}
    for place, rounds in (("local files", local), ("S3", s3)):
        for name in rounds[0]:
            rates = sorted(one[name]["images_per_cpu_second"] for one in rounds)
            series[name][place] = (median(rates), rates[0], rates[-1])
    bar_plot(output, "From shards to batches", series, unit="images per CPU second")
    return finish(
        output,
        {
            "quick": arguments.quick,
            "num_images": num_images,
            "medians": {"local": medians(local), "s3": medians(s3)},
            "rounds": {"local": local, "s3": s3},
            "gates": gates(medians(local), medians(s3)),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
