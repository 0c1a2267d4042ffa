"""The `data.datasets.*.read` sections: the sources of samples, one section per format."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.section import Section, Seed

PLACES = ("path", "image_folder", "attested")
"""Keys of a source that say where its files are."""


class Phantoms(Section):
    """Procedural images with questions and answers, for trials and tests without any download."""

    source: Literal["phantoms"]
    kind: Literal["captions", "dialogues", "questions"]
    """What each image comes with: one caption (`captions`), all its questions in one dialogue
    (`dialogues`), or one sample per question (`questions`)."""
    split: Literal["train", "validation", "test"] = "train"
    """Split to draw. No image is in two splits."""
    num_images: Annotated[int, Field(ge=1, le=100_000_000)]
    """Number of images to draw."""
    image_size: Annotated[int, Field(ge=32, le=4096)] = 64
    """Width and height of each image, in pixels."""
    seed: Seed = 0
    """Seed for drawing the images."""


class LlavaJson(Section):
    """A JSON file of dialogues and a folder of images, the format LLaVA-Med was released in, or a
    CSV file of questions.
    """

    source: Literal["llava_json"]
    path: str
    """URI of the file: a JSON list, one JSON object per line, or CSV (`.csv`, `.tsv`) whose first
    line names the columns."""
    image_folder: str
    """URI of the folder that contains the images named in the file. It may be packed as zip."""
    licence: str = ""
    """Licence of the data, stored with every sample."""


class VqaRad(Section):
    """VQA-RAD as published: `trainset.json`, `testset.json` and a folder `images`."""

    source: Literal["vqa_rad"]
    path: str
    """URI of the folder. It, or the images in it, may be packed as zip."""
    split: Literal["train", "test"] = "train"
    """Split to read."""
    phrase_types: tuple[Literal["freeform", "para", "frame"], ...] = ("freeform", "para", "frame")
    """Kinds of questions to read. The training split has 3,064 questions, or 1,797 without
    `frame`."""


class Slake(Section):
    """SLAKE as published: `train.json`, `validate.json`, `test.json` and a folder `imgs`."""

    source: Literal["slake"]
    path: str
    """URI of the folder. It, or the images in it, may be packed as zip."""
    split: Literal["train", "validation", "test"] = "train"
    """Split to read."""
    languages: Annotated[tuple[Literal["en", "zh"], ...], Field(min_length=1)] = ("en",)
    """Languages of the questions to read. Each image has questions in both."""


class PathVqa(Section):
    """PathVQA as published (`qas`, `images`), or its Parquet files from Hugging Face (`data`)."""

    source: Literal["path_vqa"]
    path: str
    """URI of the folder. Its content tells which of the two formats it is."""
    split: Literal["train", "validation", "test"] = "train"
    """Split to read."""


class PmcVqa(Section):
    """Multiple-choice questions of PMC-VQA, either version: a CSV file and a folder of images."""

    source: Literal["pmc_vqa"]
    path: str
    """URI of the CSV file."""
    image_folder: str
    """URI of the folder that contains the figures named in the file. It may be packed as zip."""


class Parquet(Section):
    """Parquet files of images and dialogues. Columns such as `domain` and `answer_type` are used
    where they exist.
    """

    source: Literal["parquet"]
    path: str
    """URI of a file, a folder, or several files: `*` matches any text, `{000..031}` a range."""
    image_folder: str | None = None
    """URI of the folder that contains the named images, which may be packed as zip. By default the
    images are in the files."""
    id_column: str | None = None
    """Column with the sample's identifier. By default `id`, or the sample's position without it."""
    images_column: str | None = None
    """Column with the images: bytes, `{bytes, path}`, names, or lists of these. By default `image`
    or `images`."""
    turns_column: str | None = None
    """Column with the dialogue: `[{role, content}]`, `[{from, value}]`, or either as JSON text. By
    default `conversations`, `turns` or `messages`, or columns of a question and its answer."""
    licence: str = ""
    """Licence of the data, stored with every sample that does not name its own."""


class WebDataset(Section):
    """Tar shards: members that share a name form a sample of images with dialogues (`.json`) or
    captions (`.txt`).
    """

    source: Literal["webdataset"]
    path: str
    """URI of a file, a folder, or several files: `*` matches any text, `{000..031}` a range."""
    licence: str = ""
    """Licence of the data, stored with every sample that does not name its own."""


class Scans(Section):
    """Dialogues about DICOM and NIfTI files, in LLaVA's JSON form or as CSV."""

    source: Literal["scans"]
    path: str
    """URI of the file: a JSON list, one JSON object per line, or CSV (`.csv`, `.tsv`) whose first
    line names the columns."""
    image_folder: str
    """URI of the folder that contains the scans named in the file."""
    slices_per_volume: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of slices that represent a NIfTI volume, each as one image of the sample."""
    attested: str | None = None
    """URI of a list of files that somebody attests to be de-identified, in the form that
    `sha256sum` writes. By default only DICOM files whose own tags attest it are read."""
    attested_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of that list. A changed list is refused."""
    licence: str = ""
    """Licence of the data, stored with every sample."""

    @model_validator(mode="after")
    def _the_list_is_signed(self) -> Self:
        if self.attested is not None and self.attested_sha256 is None:
            raise ValueError(
                f"attested={self.attested}: needs attested_sha256, which authenticates it; set it "
                "to the list's SHA-256"
            )
        return self


Read = Annotated[
    Phantoms | LlavaJson | Scans | VqaRad | Slake | PathVqa | PmcVqa | Parquet | WebDataset,
    Field(discriminator="source"),
]
"""Source of samples."""
