"""Samples with no image, one and several, of many shapes, as LLaVA's JSON with a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((30, 40), (16, 16), (90, 20), (20, 90), (33, 31), (64, 64), (7, 13))
"""Heights and widths of the pictures."""
NUM_IMAGES = (1, 0, 2, 0, 1, 3)
"""Images of the first samples, and of each six after them."""

PINPOINTS = ((16, 32), (32, 16), (32, 32), (16, 48))
TILES = ("data.store_images=original", f"model.image_grid_pinpoints={[*map(list, PINPOINTS)]}")
"""The config's overrides that cut images of `tiny_config` into tiles."""


@dataclass(frozen=True)
class Mixed:
    """A source of samples."""

    folder: Path
    rows: list[dict[str, Any]]

    def overrides(self, name: str) -> tuple[str, ...]:
        """The config's overrides that make them the data of its first stage.

        Datasets prepared with other settings need another name.
        """
        read = f"source: llava_json, path: {self.folder}/list.json, image_folder: {self.folder}"
        return (
            f"data.datasets.mixed={{read: {{{read}}}}}",
            "stages.align.data=mixed",
            f"data.directory={self.folder}/datasets-{name}",
        )

    def pictures(self, row: dict[str, Any]) -> list[Image.Image]:
        """The pictures of a sample, in order."""
        return [Image.open(self.folder / name) for name in row["image"]]


def make_samples(folder: Path, number: int = 18, num_images: tuple[int, ...] = NUM_IMAGES) -> Mixed:
    """Write samples whose images are noise."""
    random = np.random.default_rng(0)
    rows = []
    for sample in range(number):
        names = []
        for image in range(num_images[sample % len(num_images)]):
            height, width = SIZES[(sample + 3 * image) % len(SIZES)]
            names.append(f"{sample}-{image}.png")
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / names[-1])
        marks = "<image>\n" * len(names)
        words = " ".join(random.choice(["left", "lung", "small", "lesion"], 3 + sample % 5))
        rows.append(
            {
                "id": f"sample-{sample}",
                "image": names,
                "answer_type": "OPEN",
                "conversations": [
                    {"from": "human", "value": f"{marks}What is number {sample}?"},
                    {"from": "gpt", "value": f"It is {words}."},
                ],
            }
        )
    (folder / "list.json").write_text(json.dumps(rows))
    return Mixed(folder, rows)
