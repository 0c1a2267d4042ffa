"""The datasets' part of the tree: where samples come from and how they are prepared."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llavamed.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$")]
"""Of a stage or dataset; without dots, which part the keys of overrides."""
Fraction = Annotated[float, Field(ge=0, le=1)]


ONE, SEVERAL = "one", "several"


def one_or_several(value: Any) -> str:
    """The tag of a field that takes one value, or several as a list or mapping."""
    return SEVERAL if isinstance(value, list | tuple | dict) else ONE


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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


class Declared(Section):
    """What is known of a dataset that is not prepared yet; only `plan` reads it."""

    num_samples: Annotated[int, Field(ge=1)]
    """Samples."""
    mean_text_tokens: Annotated[float, Field(gt=0)]
    """Tokens a sample beside its images."""
    mean_supervised_tokens: Annotated[float, Field(gt=0)]
    """Tokens a sample that are trained."""


class Dataset(Section):
    """One dataset to prepare."""

    read: Read
    """Where the samples come from."""
    max_bad_fraction: Fraction = 0.01
    """Preparing fails when a larger part of the samples had to be quarantined."""
    drop_duplicates: bool = False
    """Quarantine samples with the same images and words as an earlier one; else only count them."""
    declared: Declared | None = None
    """Stands in for the prepared dataset while planning."""


class Data(Section):
    """How datasets are prepared."""

    directory: str | None = None
    """URI of the folder with the prepared datasets; none: `datasets` below `storage`."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Most tokens of a sample, its image tokens included. Longer text is cut, images never."""
    store_images: Literal["pixels", "original"] = "pixels"
    """`pixels` at training resolution, ready to use; `original` keeps the encoded file."""
    image_backend: Literal["exact", "fast"] = "exact"
    """`exact` resizes as transformers does, to the bit; `fast` makes two or three times the pixels
    a second, of which 0.2 % are a grey level off, never more than two (measured on radiology)."""
    rows_per_shard: Annotated[int, Field(ge=1)] = 1024
    """Samples a Parquet file."""
    row_group_size: Annotated[int, Field(ge=1)] = 64
    """Samples a row group: what is read and shuffled as one."""
    datasets: dict[Name, Dataset]
    """By name, which stages and the evaluation refer to."""

    def check_name(self, name: str, option: str = "dataset") -> None:
        """Raise ConfigError unless there is a dataset of this name."""
        if name not in self.datasets:
            known = ", ".join(self.datasets)
            raise ConfigError(f"{option}={name}: is not in data.datasets; use one of: {known}")
