"""What a prepared dataset, its processor and a part of a corpus say of themselves."""

from typing import ClassVar, Literal

from pydantic import Field

from llavamed.config.model import Pretrained, TemplateName, Thinking, VisionTower
from llavamed.config.section import added_later
from llavamed.config.sources import Read
from llavamed.errors import DataError, LlavaMedError
from llavamed.storage.manifest.typed import Facts, Manifest


class ImageFacts(Facts):
    """How the images of a dataset were made; the fields of `processor.images.ImageSettings`."""

    size: int
    """Width and height of every image, or of every tile, in pixels."""
    aspect_ratio: Literal["square", "pad", "stretch"]
    """How an image was made square: by a crop of its centre, by borders, or by stretching it."""
    mean: tuple[float, float, float]
    """Mean of each channel that is subtracted from values between 0 and 1."""
    std: tuple[float, float, float]
    """Standard deviation by which each channel is divided afterwards."""
    backend: Literal["exact", "fast"] = "exact"
    """Which library resized the images: Pillow for `exact`, torch for `fast`."""
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter with which the images were resized."""
    grid_pinpoints: tuple[tuple[int, int], ...] = added_later(())
    """Heights and widths that images may be enlarged to before they are cut into tiles; without
    any, an image is one tile."""


class MadeFrom(Facts):
    """The settings a dataset was prepared with."""

    read: Read
    """The `read` section of the dataset in the config."""
    tokenizer: str
    """Hash of the tokenizer."""
    template: str
    """Hash of the chat template."""
    images: ImageFacts
    """How its images were made."""
    max_length: int
    """Number of tokens after which a sample is cut off."""
    store_images: Literal["pixels", "original"]
    """Whether the shards hold pixels at training resolution or the original files."""
    rows_per_shard: int
    """Number of rows of the source that become one shard."""
    row_group_size: int
    """Number of samples in a row group of a shard."""
    drop_duplicates: bool
    """Whether samples with the content of an earlier one were quarantined."""


class Decontamination(Facts):
    """One removal of samples that evaluation sets have too."""

    against: dict[str, str]
    """Fingerprints of the evaluation sets, by name."""
    by: tuple[str, ...]
    """What made a match: images, questions, pairs of both, or texts."""
    max_distance: int
    """Number of bits of 256 in which the hashes of equal images were allowed to differ."""
    num_removed: int
    """Number of samples that were removed."""


class DatasetManifest(Manifest):
    """A prepared dataset. The counts are zero until its samples are counted."""

    VERSION: ClassVar[int] = 5
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "prepare the dataset again"

    made_from: MadeFrom
    """The settings it was prepared with."""
    source_hash: str
    """Hash of the source's listing."""
    num_rows: int
    """Number of rows of the source."""
    template: str
    """Name of the chat template in the config."""
    num_image_tokens: int
    """Number of tokens an image takes; where images are cut into tiles, that of one tile."""
    image_token_id: int
    """Id of the token that is repeated for an image."""
    pad_token_id: int
    """Id of the token that pads a row of a batch."""
    fingerprint: str = ""
    """Fingerprint of its samples and of the settings that decide them."""
    num_samples: int = 0
    """Number of samples that can be trained on."""
    num_tokens: int = 0
    """Number of their tokens, image tokens included."""
    num_supervised: int = 0
    """Number of tokens that a loss is computed for."""
    num_images: int = 0
    """Number of their images."""
    num_truncated: int = 0
    """Number of samples that were cut off at `max_length`."""
    num_duplicates: int = 0
    """Number of samples with the content of an earlier one."""
    num_quarantined: int = 0
    """Number of samples that were refused; `quarantine.parquet` names each with its reason."""
    quarantined: dict[str, int] = Field(default_factory=dict)
    """Number of quarantined samples by reason."""
    unread_keys: dict[str, int] = Field(default_factory=dict)
    """Keys of the source that nothing reads, with the number of samples that have them."""
    num_unnamed: int = 0
    """Number of samples without an id."""
    num_repeated_names: int = 0
    """Number of samples with the id of an earlier one."""
    revision: int = 0
    """Number of times samples were removed after preparing."""
    decontaminated: tuple[Decontamination, ...] = ()
    """Each of these removals, oldest first."""


class ProcessorModel(Facts):
    """Settings of the `model` section that determine tokens and pixels."""

    weights: str | None = None
    """Path, URI or hub name of a whole LLaVA."""
    vision_tower: VisionTower | None = None
    """The image encoder."""
    language_model: Pretrained | None = None
    """The language model."""
    tokenizer: str | None = None
    """Path, URI or hub name of the tokenizer."""
    template: TemplateName
    """Name of the chat template."""
    thinking: Thinking = added_later("train")
    """What happens to the thinking part of an answer."""
    image_aspect_ratio: Literal["square", "pad"]
    """How an image becomes square."""
    image_grid_pinpoints: tuple[tuple[int, int], ...] | None = added_later(None)
    """Heights and widths that images may be enlarged to before they are cut into tiles."""


class ProcessorMadeFrom(Facts):
    """The settings a processor was made with."""

    model: ProcessorModel
    """Settings of the `model` section."""
    datasets: dict[str, Read] | None = None
    """The `read` section of each dataset whose text has trained the tokenizer, or null for a
    tokenizer that was there already."""


class ProcessorManifest(Manifest):
    """The processor that the datasets of a folder share."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "set data.directory to another folder, or delete this one"

    made_from: ProcessorMadeFrom
    """The settings it was made with."""


class FiguresManifest(Manifest):
    """A part of a corpus: the figures of some articles, after one step."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "make the part again: delete its folder, then start the same command"

    made_from: str
    """Fingerprint of the settings, and of the part of the step before."""
    fingerprint: str
    """Hash of the rows."""
    num_figures: int
    """Number of figures, refused ones included."""
    num_kept: int
    """Number of figures that nothing has refused."""
    refused: dict[str, int] = Field(default_factory=dict)
    """Number of refused figures by reason."""
