"""Small prepared datasets of random samples, written as the preparation writes them."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llavamed.data.feed.loader import StageLoader
from llavamed.data.feed.order import StageOrder, order_stage
from llavamed.data.prepared.content import hash_content, hash_image, hash_pixels
from llavamed.data.prepared.dataset import PreparedDataset, open_prepared, write_shard
from llavamed.data.prepared.mixture import Mixture
from llavamed.data.prepared.sample_tables import SampleTables
from llavamed.data.record import CONTENT_SCHEMA, INDEX_SCHEMA, QUARANTINE_SCHEMA, SHARD_SCHEMA
from llavamed.processor.image_files import to_png
from llavamed.processor.images import ImageSettings, from_planes
from llavamed.processor.turns import IGNORE_INDEX, Turn
from llavamed.storage.location import locate
from llavamed.storage.manifest import ImageFacts
from llavamed.storage.manifest import write as write_manifest
from tests.support.manifests import dataset_manifest

SIZE = 8
NUM_IMAGE_TOKENS = 4
IMAGE_TOKEN, PAD_TOKEN = 5, 0
IMAGES = ImageSettings(SIZE, "square", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@dataclass(frozen=True)
class Prepared:
    """A dataset and what was written into it."""

    dataset: PreparedDataset
    rows: list[dict[str, Any]]

    def order(self, *, num_lanes: int = 8, packing: bool = True, num_epochs: int = 2) -> StageOrder:
        weights = self.dataset.column("num_tokens")
        return order_stage(
            self.dataset.groups,
            weights if packing else np.ones_like(weights),
            seed=0,
            num_lanes=num_lanes,
            capacity=128 if packing else 3,
            num_epochs=num_epochs,
        )

    def loader(
        self, order: StageOrder, *, rank: int = 0, world_size: int = 1, packing: bool = True
    ) -> StageLoader:
        return StageLoader(
            Mixture((self.dataset,)), order, rank=rank, world_size=world_size, packing=packing
        )


def make_row(random: np.random.Generator, number: int, num_images: int) -> dict[str, Any]:
    text = random.integers(10, 100, size=random.integers(4, 40)).tolist()
    input_ids = [1, *[IMAGE_TOKEN] * (NUM_IMAGE_TOKENS * num_images), *text]
    answer = len(input_ids) - len(text) // 2
    return {
        "id": f"sample-{number}",
        "pixels": [
            random.integers(0, 256, size=(channels, SIZE, SIZE), dtype=np.uint8).tobytes()
            for channels in [1 + 2 * (number % 3 > 0)] * num_images
        ],
        "input_ids": input_ids,
        "labels": [IGNORE_INDEX] * answer + input_ids[answer:],
        "turns": dialogue(f"What is number {number}?", f"It is {number}."),
    }


def dialogue(question: str, answer: str) -> list[dict[str, Any]]:
    return [asdict(Turn("user", question)), asdict(Turn("assistant", answer))]


def prepare(
    uri: str,
    num_samples: int,
    *,
    num_images: tuple[int, ...] = (1, 0, 2, 1),
    encoded: bool = False,
    seed: int = 0,
) -> Prepared:
    """Write a dataset of random samples."""
    random = np.random.default_rng(seed)
    rows = [make_row(random, i, num_images[i % len(num_images)]) for i in range(num_samples)]
    return write(uri, rows, encoded=encoded)


def write(uri: str, rows: list[dict[str, Any]], *, encoded: bool = False) -> Prepared:
    """Write a dataset as the preparation does: shards of 50 samples, row groups of 8."""
    place = locate(uri)
    index = []
    for shard, start in enumerate(range(0, len(rows), 50)):
        chunk = rows[start : start + 50]
        if encoded:
            chunk = [
                row | {"pixels": [to_png(from_planes(image, SIZE)) for image in row["pixels"]]}
                for row in chunk
            ]
        write_shard(place, shard, pa.Table.from_pylist(chunk, SHARD_SCHEMA), row_group_size=8)
        index += [
            {
                "shard": shard,
                "row_group": number // 8,
                "row": number % 8,
                "num_tokens": len(row["input_ids"]),
                "num_supervised": sum(label != IGNORE_INDEX for label in row["labels"][1:]),
                "num_images": len(row["pixels"]),
                "num_truncated": number % 2,
            }
            for number, row in enumerate(chunk)
        ]
    tables = SampleTables(
        pa.Table.from_pylist(index, INDEX_SCHEMA),
        pa.Table.from_pylist([content(*item) for item in enumerate(rows)], CONTENT_SCHEMA),
        QUARANTINE_SCHEMA.empty_table(),
    )
    tables.write(place)
    manifest = dataset_manifest(
        fingerprint=place.name,
        num_image_tokens=NUM_IMAGE_TOKENS,
        image_token_id=IMAGE_TOKEN,
        pad_token_id=PAD_TOKEN,
        store_images="original" if encoded else "pixels",
        images=ImageFacts(**vars(IMAGES)),
        **tables.counts(),
    )
    write_manifest(place, manifest)
    return Prepared(open_prepared(place), rows)


def content(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """The row of `content.parquet` of a sample with square images."""
    images = []
    for image in row["pixels"]:
        side = math.isqrt(len(image))
        is_grey = side * side == len(image)
        images.append(from_planes(image, side if is_grey else math.isqrt(len(image) // 3)))
    turns = [Turn(**turn) for turn in row["turns"]]
    hashes = hash_content(turns, list(map(hash_image, images)), list(map(hash_pixels, images)))
    return {"row": number, "id": row["id"], **hashes}
