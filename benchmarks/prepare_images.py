"""Measure images per CPU second: our two backends beside transformers' CLIPImageProcessorPil.

    python benchmarks/prepare_images.py [--quick] [--images FOLDER]

The same JPEG bytes go through each in turn, round by round, in one process and one thread. They are
drawn (smooth structures with texture, about 558x507 pixels), in colours and in grey, as most of
radiology is, in 0.13 bytes a pixel (half of VQA-RAD's have under 0.08, one in twenty over 0.16);
files of a folder come beside them. Nothing is timed before the exact backend has been found equal,
bit for bit, for every image. Shards hold bytes, so preparing ends with
`uint8`; transformers goes on to normalised `float32`, and ours is also measured that far.

The gates are of as many grey as coloured images. Of coloured ones alone the exact backend gains
less: two thirds of its time are Pillow's resize, which makes the bits that are asked for.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llavamed.processor.images import ImageSettings, normalize_pixels, to_pixels
from llavamed.processor.tower import CLIP_MEAN, CLIP_STD

NAME = "prepare_images"
SIZES = (224, 336)
Work = Callable[[bytes], Any]


def draw(seed: int, *, grey: bool) -> bytes:
    """Draw a JPEG with smooth structures, edges and fine texture."""
    random = np.random.default_rng(seed)
    width, height = (int(side * random.uniform(0.8, 1.2)) for side in (558, 507))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    plane = np.full((height, width, 3), 90, dtype=np.float32)
    for channel in range(3):
        for _ in range(4):
            wave = x * random.uniform(-0.05, 0.05) + y * random.uniform(-0.05, 0.05)
            plane[..., channel] += 25 * np.sin(wave + random.uniform(0, 6))
    for _ in range(6):
        radius = random.uniform(20, 150)
        distance = np.hypot(x - random.uniform(0, width), y - random.uniform(0, height))
        plane += (distance < radius)[..., None] * random.uniform(-40, 60, size=3)
    plane += random.normal(0, 3, size=(height, width, 1))
    image = Image.fromarray(plane.clip(0, 255).astype(np.uint8))
    image = image.convert("L").convert("RGB") if grey else image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def works(size: int) -> dict[str, Work]:
    """Return the functions that are compared, by name."""
    exact = ImageSettings(size, "square", CLIP_MEAN, CLIP_STD)
    fast = ImageSettings(size, "square", CLIP_MEAN, CLIP_STD, "fast")
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )

    def transformers(data: bytes, **options: bool) -> Any:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return theirs(image, return_tensors="np", **options)["pixel_values"][0]

    def normalised(data: bytes, settings: ImageSettings) -> Any:
        return normalize_pixels(to_pixels(data, settings)[None], settings)[0]

    return {
        "transformers, float32": transformers,
        "transformers, uint8": partial(transformers, do_rescale=False, do_normalize=False),
        "exact, uint8": partial(to_pixels, settings=exact),
        "fast, uint8": partial(to_pixels, settings=fast),
        "exact, float32": partial(normalised, settings=exact),
        "fast, float32": partial(normalised, settings=fast),
    }


def compare(compared: dict[str, Work], images: list[bytes]) -> dict[str, float]:
    """Check that the exact backend equals transformers, and return the error of the fast one."""
    levels = []
    for data in images:
        made = {name: work(data) for name, work in compared.items()}
        exact = made["exact, uint8"].astype(int)
        equal = [
            np.array_equal(exact.transpose(2, 0, 1), made["transformers, uint8"]),
            np.array_equal(made["exact, float32"], made["transformers, float32"]),
        ]
        if not all(equal):
            raise SystemExit("the exact backend is not equal to transformers: nothing to time")
        levels.append(np.abs(exact - made["fast, uint8"]))
    return {
        "max_levels": max(int(level.max()) for level in levels),
        "mean_levels": statistics.fmean(float(level.mean()) for level in levels),
    }


def measure(
    compared: dict[str, Work], images: list[bytes], rounds: int
) -> dict[str, report.Spread]:
    """Return images per CPU second of each: median, least and largest of the rounds."""
    rates: dict[str, list[float]] = {name: [] for name in compared}
    for number in range(rounds + 1):
        names = list(compared) if number % 2 else list(compared)[::-1]
        for name in names:
            start = time.process_time()
            for data in images:
                compared[name](data)
            rates[name].append(len(images) / (time.process_time() - start))
    # The first round warms up.
    return {name: (statistics.median(r[1:]), min(r[1:]), max(r[1:])) for name, r in rates.items()}


def gates(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare ours with transformers by the time of a grey and a coloured image together."""
    found = []
    for size in SIZES:
        rates = [results[f"{kind} {size}"]["images_per_cpu_second"] for kind in ("colour", "grey")]
        seconds = {name: sum(1 / rate[name][0] for rate in rates) for name in rates[0]}
        for backend, bound in (("exact", 1.5), ("fast", 3)):
            ratio = seconds["transformers, float32"] / seconds[f"{backend}, uint8"]
            measure = f"images per CPU-second, {backend} / transformers, {size} pixels"
            found.append(report.gate(measure, ratio, at_least=bound))
    return found


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images; its results are not kept")
    parser.add_argument("--images", type=Path, help="a folder of JPEG files to measure too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, count = (5, 8) if options.quick else (9, 40)
    sets = {
        "colour": [draw(seed, grey=False) for seed in range(count)],
        "grey": [draw(seed, grey=True) for seed in range(count)],
    }
    if options.images:
        sets["files"] = [f.read_bytes() for f in sorted(options.images.glob("*.jp*g"))[:count]]
    results: dict[str, Any] = {}
    series: dict[str, dict[str, report.Spread]] = {}
    for kind, images in sets.items():
        for size in SIZES:
            compared = works(size)
            off = compare(compared, images)
            rates = measure(compared, images, rounds)
            theirs = rates["transformers, float32"][0]
            results[f"{kind} {size}"] = {
                "num_images": len(images),
                "mean_kilobytes": sum(map(len, images)) / len(images) / 1e3,
                "fast_differs": off,
                "images_per_cpu_second": rates,
                "ratio_to_transformers_float32": {
                    name: round(rate / theirs, 2) for name, (rate, _, _) in rates.items()
                },
            }
            print(f"{kind} {size}: fast differs by {off}")
            for name, (rate, least, most) in rates.items():
                print(f"  {name:22} {rate:6.0f} ({least:.0f} to {most:.0f})  {rate / theirs:.2f}x")
                series.setdefault(name, {})[f"{kind} {size}"] = (rate, least, most)
    name = f"{NAME}-quick" if options.quick else NAME
    title = "JPEG of 0.3 megapixels to model input, one thread"
    report.bar_plot(name, title, series, unit="images per CPU second")
    return report.finish(name, {"rounds": rounds, "results": results, "gates": gates(results)})


if __name__ == "__main__":
    sys.exit(main())
