"""The `data.datasets.*.read` sections: where samples come from, one section a form of source."""

from typing import Annotated, Literal

from pydantic import Field

from llavamed.config.section import Section


class Phantoms(Section):
    """Built-in procedural images: a dataset out of nothing, for trials and tests."""

    source: Literal["phantoms"]
    kind: Literal["captions", "dialogues", "questions"]
    """What is asked of each image: a caption, all its questions in one dialogue, or one by one."""
    split: Literal["train", "validation", "test"] = "train"
    """Splits share no image."""
    num_images: Annotated[int, Field(ge=1)]
    """How many images are drawn."""
    image_size: Annotated[int, Field(ge=32)] = 64
    """Width and height in pixels."""
    seed: int = 0
    """Another seed draws other images."""


class LlavaJson(Section):
    """LLaVA's JSON and a folder of images, the form LLaVA-Med was released in."""

    source: Literal["llava_json"]
    path: str
    """URI of the file: a JSON list, or JSON lines."""
    image_folder: str
    """URI of the folder that the file's image names are below."""
    licence: str = ""
    """Licence of the data, kept with every sample."""


class VqaRad(Section):
    """VQA-RAD as published: `trainset.json`, `testset.json` and a folder `images`."""

    source: Literal["vqa_rad"]
    path: str
    """URI of the folder."""
    split: Literal["train", "test"] = "train"
    """Which of its two files."""
    phrase_types: tuple[Literal["freeform", "para", "frame"], ...] = ("freeform", "para", "frame")
    """Which questions: all 3,064 of the training file, or its 1,797 without `frame`."""


class Slake(Section):
    """SLAKE as published: `train.json`, `validate.json`, `test.json` and a folder `imgs`."""

    source: Literal["slake"]
    path: str
    """URI of the folder."""
    split: Literal["train", "validation", "test"] = "train"
    """Which of its three files."""
    languages: Annotated[tuple[Literal["en", "zh"], ...], Field(min_length=1)] = ("en",)
    """Which questions: each image has English and Chinese ones."""


class PathVqa(Section):
    """PathVQA as published (`qas`, `images`), or its Parquet files from Hugging Face (`data`)."""

    source: Literal["path_vqa"]
    path: str
    """URI of the folder; which of the two forms lies there is seen."""
    split: Literal["train", "validation", "test"] = "train"
    """Which questions."""


class PmcVqa(Section):
    """PMC-VQA's multiple-choice questions, either version: a CSV file and a folder of images."""

    source: Literal["pmc_vqa"]
    path: str
    """URI of the CSV file."""
    image_folder: str
    """URI of the folder that the file's figure names are below."""


class Parquet(Section):
    """Parquet files of images and turns; `domain`, `answer_type` and the like are read if there."""

    source: Literal["parquet"]
    path: str
    """URI of a file, a folder, or several files: `*` is any text, `{000..031}` a range."""
    image_folder: str | None = None
    """URI of the folder that image names are below; none: the images lie in the files."""
    id_column: str | None = None
    """Column of the sample's name; none: `id`, or if that is absent the sample's place."""
    images_column: str | None = None
    """Column of the images: bytes, `{bytes, path}`, names, or lists; none: `image` or `images`."""
    turns_column: str | None = None
    """Column of the turns, `[{role, content}]` or `[{from, value}]`, or the same as JSON text;
    none: `conversations`, `turns` or `messages`."""
    licence: str = ""
    """Licence of the data, kept with every sample that names none itself."""


class WebDataset(Section):
    """Tar shards: what shares a name is a sample, images with dialogues (`.json`) or captions
    (`.txt`).
    """

    source: Literal["webdataset"]
    path: str
    """URI of a file, a folder, or several files: `*` is any text, `{000..031}` a range."""
    licence: str = ""
    """Licence of the data, kept with every sample that names none itself."""


Read = Annotated[
    Phantoms | LlavaJson | VqaRad | Slake | PathVqa | PmcVqa | Parquet | WebDataset,
    Field(discriminator="source"),
]
"""Where samples come from."""
