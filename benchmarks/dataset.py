"""Make a prepared dataset of random samples, and the same samples for other loaders.

Every second picture is grey, as most of radiology is. They are smooth shapes with a little noise on
a flat ground, and compress as well as real ones: by LZ4 the grey to 0.79 of their bytes (60 images
of VQA-RAD: 0.78), the coloured to 0.91.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llavamed.config.sources import Phantoms
from llavamed.data.prepared.dataset import INDEX, PreparedDataset, open_prepared, write_shard
from llavamed.data.record import INDEX_SCHEMA, SHARD_SCHEMA
from llavamed.processor.image_files import Pixels
from llavamed.processor.images import ImageSettings, to_planes
from llavamed.processor.turns import IGNORE_INDEX
from llavamed.storage.location import Location
from llavamed.storage.manifest import DatasetManifest, ImageFacts, MadeFrom, write

ROWS_PER_SHARD = 1024
ROW_GROUP = 64
PATCH = 14
_MEAN_STD = ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))
_IMAGE_TOKEN, _PAD_TOKEN = 5, 0


def make_dataset(
    place: Location,
    num_samples: int,
    *,
    size: int = 224,
    rows_per_shard: int = ROWS_PER_SHARD,
    row_group: int = ROW_GROUP,
) -> PreparedDataset:
    """Write a dataset as the preparation does, with one image and 150 tokens of text per sample."""
    index = []
    for shard, start in enumerate(range(0, num_samples, rows_per_shard)):
        numbers = range(start, min(start + rows_per_shard, num_samples))
        rows = [_row(number, size) for number in numbers]
        table = pa.Table.from_pylist(rows, SHARD_SCHEMA)
        write_shard(place, shard, table, row_group)
        index += [
            {
                "shard": shard,
                "row_group": number // row_group,
                "row": number % row_group,
                "num_tokens": len(row["input_ids"]),
                "num_supervised": sum(label != IGNORE_INDEX for label in row["labels"][1:]),
                "num_images": 1,
            }
            for number, row in enumerate(rows)
        ]
    (place / INDEX).write_table(pa.Table.from_pylist(index, INDEX_SCHEMA))
    manifest = DatasetManifest(
        made_from=MadeFrom(
            read=Phantoms(source="phantoms", kind="captions", num_images=num_samples),
            tokenizer="",
            template="",
            images=ImageFacts(**vars(ImageSettings(size, "square", *_MEAN_STD))),
            max_length=2048,
            store_images="pixels",
            rows_per_shard=rows_per_shard,
            row_group_size=row_group,
            drop_duplicates=False,
        ),
        source_hash="",
        num_rows=num_samples,
        template="",
        num_samples=num_samples,
        num_image_tokens=_num_image_tokens(size),
        image_token_id=_IMAGE_TOKEN,
        pad_token_id=_PAD_TOKEN,
    )
    write(place, manifest)
    return open_prepared(place)


def write_tars(prepared: Path, folder: Path) -> None:
    """Write the same samples for webdataset: raw pixels, and the tokens as JSON."""
    folder.mkdir()
    for shard in sorted((prepared / "shards").iterdir()):
        with tarfile.open(folder / f"{shard.stem}.tar", "w") as tar:
            for sample in _samples(shard):
                tokens = {"input_ids": sample["input_ids"], "labels": sample["labels"]}
                for name, data in (
                    ("pixels", sample["pixels"][0]),
                    ("json", json.dumps(tokens).encode()),
                ):
                    entry = tarfile.TarInfo(f"{sample['id']}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def write_litdata(prepared: Path, folder: Path) -> None:
    """Write the same samples for litdata, in chunks of the size that it advises."""
    from litdata import optimize

    shards = sorted(str(shard) for shard in (prepared / "shards").iterdir())
    optimize(_for_litdata, shards, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)


def _for_litdata(shard: str) -> Iterator[dict[str, Any]]:
    for sample in _samples(Path(shard)):
        tokens = {name: np.array(sample[name], np.int32) for name in ("input_ids", "labels")}
        yield {"pixels": sample["pixels"][0], **tokens}


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(64, columns=["id", "pixels", "input_ids", "labels"]):
            yield from batch.to_pylist()


def _num_image_tokens(size: int) -> int:
    return (size // PATCH) ** 2


def _row(number: int, size: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    num_text = int(np.clip(random.lognormal(np.log(150) - 0.7**2 / 2, 0.7), 8, 1024))
    text = random.integers(10, 30_000, size=num_text).tolist()
    input_ids = [1, *[_IMAGE_TOKEN] * _num_image_tokens(size), *text]
    answer = len(input_ids) - num_text // 2
    return {
        "id": f"{number:08d}",
        "pixels": [to_planes(_picture(random, size, grey=number % 2 == 0))],
        "input_ids": input_ids,
        "labels": [IGNORE_INDEX] * answer + input_ids[answer:],
    }


def _picture(random: np.random.Generator, size: int, *, grey: bool) -> Pixels:
    channels = 1 if grey else 3
    shapes = random.integers(-128 if grey else -64, 256, size=(channels, 12, 12))
    coarse = [Image.fromarray(channel) for channel in shapes.astype(np.float32)]
    smooth = [channel.resize((size, size), Image.Resampling.BICUBIC) for channel in coarse]
    planes = np.stack(smooth, axis=-1) + random.integers(-2, 3, size=(size, size, channels))
    return np.broadcast_to(planes.clip(0, 255).astype(np.uint8), (size, size, 3))
