"""The `corpus` section: how open literature becomes training data.

Each step has a section of its own: `harvest`, `select`, `pairs` and `dialogues`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.endpoint import Endpoint
from llavamed.config.harvest import Harvest, Licence, ThirdParty
from llavamed.config.section import Count, Fraction, Name, Section, Seed


class Classifier(Section):
    """A model that compares a picture with descriptions of modalities, such as CLIP or SigLIP."""

    weights: Annotated[str, Field(min_length=1)]
    """Folder, or name on the hub, of a model in the format of transformers, or of BiomedCLIP as
    saved by open_clip."""
    revision: str | None = None
    """Commit, tag or branch on the hub, of a model in the format of transformers."""
    batch_size: Count = 32
    """Number of pictures per forward pass."""
    use_gpu: bool = False
    """Reserve a GPU per worker."""
    num_workers: Count = 1
    """Number of workers, each with a copy of the model."""
    min_score: Fraction = 0.5
    """Minimum probability of the modality among all descriptions."""


class Select(Section):
    """Which figures are kept. Every refusal is a row with its reason."""

    licences: tuple[Licence, ...] = ("CC0", "CC BY")
    """Licences of the articles whose figures are kept."""
    third_party: tuple[ThirdParty, ...] = ("no",)
    """Figures to keep, by the verdict on whether they belong to a third party."""
    modalities: tuple[Name, ...] = ("chest_xray", "mri", "ct_scan", "histology", "gross")
    """Modalities to keep, by their names in the lexicon."""
    lexicon: str | None = None
    """URI of a YAML file with the words and descriptions of modalities. By default the
    package's own."""
    min_modality_score: Fraction = 0.6
    """Minimum score that the words of a caption must give its modality."""
    classifier: Classifier | None = None
    """A model that must agree with the words. By default the words alone decide."""
    panels: Literal["refuse", "split", "keep"] = "refuse"
    """What happens to figures of several panels. `split` cuts a figure at its white or black
    gutters if it has as many parts as its caption has letters, each before its text."""
    min_side: Count = 224
    """Minimum width and height of a picture, in pixels."""
    duplicate_bits: Annotated[int, Field(ge=0, le=24)] | None = 10
    """Two pictures that differ in at most this many of 256 bits are duplicates; only the first is
    kept. null keeps all."""
    evaluation_sets: tuple[str, ...] = ()
    """URIs of prepared datasets that no kept picture may be in."""
    evaluation_bits: Annotated[int, Field(ge=0, le=128)] = 40
    """Maximum number of bits in which a picture may differ from an equal one of an evaluation
    set."""
    find_faces: bool = False
    """Look for faces in pictures, and refuse pictures with a face. This needs the package dlib, of
    the extra `faces`. Captions that mention a person's face are refused in any case."""
    read_text: bool = False
    """Read the text within pictures, and refuse those with a date, an identifier or a name. This
    needs the package rapidocr, of the extra `ocr`."""


class Dialogues(Section):
    """How dialogues are written from captions and mentions."""

    endpoint: Endpoint
    """The language model that writes dialogues."""
    num_dialogues: Count | None = None
    """Maximum number of figures to ask about, distributed evenly over the modalities. By default
    all that are selected."""
    seed: Seed = 0
    """Seed for the choice of figures and the position of the image. A larger `num_dialogues` with
    the same seed adds figures to the chosen ones while all modalities have enough."""
    prompt: str | None = None
    """URI of a YAML file with instructions and examples. By default those of the package."""
    filters: str | None = None
    """URI of a YAML file with the rules that dialogues must pass. By default those of the
    package."""
    num_examples: Annotated[int, Field(ge=0, le=32)] = 3
    """Number of examples to show to the model, those of the figure's modality first."""
    max_tokens: Count = 800
    """Maximum number of tokens of a dialogue."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    """Sampling temperature for dialogues. null leaves it to the endpoint."""
    send_image: bool = False
    """Send the picture too. The model must accept images."""
    checker: Endpoint | None = None
    """A second model that scores each dialogue against the notes from which it was written. The
    rules of kind `score` read the scores. By default there is none."""
    dialogues_per_file: Count = 1000
    """Number of dialogues per Parquet file. A file is the unit of finished work."""


class Pairs(Section):
    """How captions become samples for the alignment stage."""

    seed: Seed = 0
    """Seed for the choice of prompts and the position of the image."""
    concise_words: Count = 30
    """A caption with fewer words answers a prompt that asks for a short description. Source: about
    a quarter of the captions of PMC-15M are shorter than 30 words."""
    min_words: Count = 4
    """A figure whose caption has fewer words gives no pair."""
    max_words: Count = 400
    """A figure whose caption has more words gives no pair."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words={self.min_words}: is more than max_words={self.max_words}; lower it"
            )
        return self


class ChatQuestions(Section):
    """How questions for a chat evaluation are written. Pairs and dialogues leave out the articles
    of these figures, so that no model is asked about what it was trained on."""

    endpoint: Endpoint | None = None
    """The language model that writes questions and reference answers. By default that of
    `dialogues`."""
    num_figures: Count = 50
    """Number of figures to ask about, distributed evenly over the modalities, one per article."""
    num_questions: Annotated[int, Field(ge=1, le=10)] = 3
    """Number of short questions about each figure, besides the request to describe it."""
    seed: Seed = 0
    """Seed for the choice of figures and for the wording of the request to describe."""
    max_tokens: Count = 1200
    """Maximum number of tokens of the answer about one figure."""


class Corpus(Section):
    """A corpus, made step by step below one folder."""

    directory: str | None = None
    """URI of the folder. By default the folder `corpus` in `storage`."""
    harvest: Harvest = Harvest()
    """Which articles to take from PubMed Central."""
    select: Select = Select()
    """Which figures are kept."""
    pairs: Pairs = Pairs()
    """How captions become samples for the alignment stage."""
    dialogues: Dialogues | None = None
    """How dialogues are written. By default none are."""
    questions: ChatQuestions | None = None
    """How questions for a chat evaluation are written. By default none are."""
