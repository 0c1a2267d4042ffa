"""A training set with copies of what an evaluation set holds, and a few that hold nothing of it."""

import io
from typing import Any

import numpy as np
from PIL import Image

from llavamed.config.load import parse_config
from llavamed.config.run import RunConfig
from llavamed.data.sources.phantoms import PhantomSource
from llavamed.processor.images import to_planes
from tests.support.small_datasets import dialogue, prepare, write

Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]

DISTANCE = 12
"""PhantomSource are more alike than real images."""

PLANTED = {  # place in the training set: what it has of which evaluation sample
    3: ("image", 0),
    12: ("question", 1),
    40: ("both", 2),
    41: ("image", 3),
    49: ("later question", 4),
    50: ("all", 5),
}


def phantom(split: str, number: int) -> Image.Image:
    source = PhantomSource(kind="captions", split=split, num_images=1, seed=3, image_size=48)
    return Image.open(io.BytesIO(source.load_image(f"phantom:{split}:3:{number}")))


def copied(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Image.open(buffer)


def sample(name: str, image: Image.Image, turns: list[dict[str, Any]]) -> dict[str, Any]:
    ids = [1, *range(10, 20)]
    return {
        "id": name,
        "pixels": [to_planes(np.asarray(image.convert("RGB")))],
        "input_ids": ids,
        "labels": ids,
        "turns": turns,
    }


def question(number: int) -> str:
    return f"Is region {number} of the T2-weighted image affected?"


def planted_rows() -> Rows:
    """Sixty training samples with copies of what ten evaluation samples hold."""
    test = [
        sample(f"test-{i}", phantom("test", i), dialogue(f"<image>\n{question(i)}", "Yes."))
        for i in range(10)
    ]
    train = []
    for i in range(60):
        image, asked = phantom("train", i), dialogue(f"What is shown in {i}?<image>", "A mass.")
        kind, number = PLANTED.get(i, ("", 0))
        typed = question(number).upper().replace("?", " ?!").replace("-", " ")
        if kind in {"image", "both", "all"}:
            image = copied(phantom("test", number))
        if kind in {"question", "both", "all"}:
            asked = dialogue(f"{typed}\n<image>", "YES" if kind == "all" else "No.")
        if kind == "later question":
            asked += dialogue(typed, "no")
        train.append(sample(f"train-{i}", image, asked))
    return train, test


def make(rows: Rows, config: RunConfig, folder: str) -> RunConfig:
    """Write the rows as datasets in a folder; gives the config that leads there."""
    train, test = rows
    write(f"{folder}/questions", train)
    write(f"{folder}/test-questions", test)
    prepare(f"{folder}/dialogues", 20, seed=1)
    tree = config.model_dump(mode="json")
    tree["data"]["directory"] = folder
    return parse_config(tree)
