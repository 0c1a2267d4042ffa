"""Read what a prepared dataset shows: samples as the model sees them, and the quarantined ones.

This module collects facts; `terminal` and `page` display them. Finding a sample reads only the ids
in the shards, and then the one row group that holds the sample.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from llavamed.data.prepared.dataset import QUARANTINE, PreparedDataset
from llavamed.data.record import SHARD_SCHEMA, QuarantineRow, ShardRow
from llavamed.errors import DataError
from llavamed.processor.encode import encode
from llavamed.processor.image_files import Pixels
from llavamed.processor.templates import get_template
from llavamed.processor.turns import IGNORE_INDEX, Turn
from llavamed.storage.location import Location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE, LINE_BREAK = "\u00b7", "\u23ce"
"""Characters that show a space or a line break in a token's text."""

Kind = Literal["trained", "masked", "image"]

_PLACE = ("shard", "row_group", "row")
_FACTS = ("source", "licence", "pmid", "domain", "answer_type", "question_type")


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one kind, each as readable text; each image is a span of its own."""

    kind: Kind
    tokens: list[str]


@dataclass(frozen=True, slots=True)
class InspectedSample:
    """One sample of a prepared dataset."""

    id: str
    place: tuple[int, int, int]
    """Numbers of its shard, its row group in the shard, and its row in the row group."""
    pixels: list[Pixels]
    """uint8 arrays: at training resolution, or of the file where it is cut into tiles."""
    turns: list[Turn]
    spans: list[Span]
    num_tokens: int
    num_trained: int
    num_cut: int
    """Text tokens that were cut off to fit `data.max_length`."""
    facts: dict[str, str]
    """Its source and the kind of its question; unknown facts are left out."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason of the quarantine, the number of its samples, and the first few of them."""

    reason: str
    count: int
    first: list[QuarantineRow]
    """Rows of `QUARANTINE_SCHEMA`."""


def pick_samples(dataset: PreparedDataset, number: int, seed: int) -> list[int]:
    """Draw up to `number` distinct positions in the index, and return them in ascending order."""
    random = np.random.default_rng(seed)
    number = min(number, dataset.index.num_rows)
    return sorted(random.choice(dataset.index.num_rows, number, replace=False).tolist())


def find_samples(dataset: PreparedDataset, ids: Sequence[str]) -> list[int]:
    """Return the position in the index of the first sample with each id, in the order of `ids`.

    Raises:
        DataError: No sample has one of the ids; the message says if it was quarantined.
    """
    found: dict[str, int] = {}
    starts = np.unique(dataset.groups, return_index=True)[1]
    for start in starts:
        if found.keys() >= set(ids):
            break
        shard, group = (int(dataset.column(name)[start]) for name in ("shard", "row_group"))
        names = dataset.read_samples(shard, group, ["id"]).column("id").to_pylist()
        for number, name in enumerate(names):
            if name in ids:
                found.setdefault(name, int(start) + number)
    for name in ids:
        if name not in found:
            raise DataError(_explain_absence(dataset, name))
    return [found[name] for name in ids]


def read_samples(
    dataset: PreparedDataset, rows: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[InspectedSample]:
    """Yield samples by their positions in the index; those of one row group are read at once."""
    places = [tuple(int(dataset.column(name)[row]) for name in _PLACE) for row in rows]
    for (shard, group), members in groupby(places, key=lambda place: place[:2]):
        table = dataset.read_row_group(shard, group, SHARD_SCHEMA.names)
        for _, _, row in members:
            (sample,) = table.slice(row, 1).to_pylist()
            yield _inspect(dataset, sample, (shard, group, row), tokenizer)


def read_refusals(dataset: PreparedDataset | Location, number: int) -> list[Refusal]:
    """Return the reasons of the quarantine, the most frequent first.

    Args:
        dataset: A dataset, or the folder of one whose preparation failed.
        number: Samples of each reason to return.

    Raises:
        DataError: Nothing was prepared in the folder.
    """
    if isinstance(dataset, Location):
        try:
            rows = (dataset / QUARANTINE).read_table().to_pylist()
        except FileNotFoundError as error:
            raise DataError(
                f"{dataset}: nothing was prepared there; run `llavamed prepare`"
            ) from error
    else:
        rows = dataset.read(QUARANTINE).to_pylist()
    counts = Counter(row["reason"] for row in rows)
    return [
        Refusal(reason, count, [row for row in rows if row["reason"] == reason][:number])
        for reason, count in counts.most_common()
    ]


def _inspect(
    dataset: PreparedDataset,
    sample: ShardRow,
    place: tuple[int, int, int],
    tokenizer: "PreTrainedTokenizerBase",
) -> InspectedSample:
    """Return what a stored row shows; its dialogue is encoded again to count what was cut off."""
    turns = [Turn(**turn) for turn in sample["turns"]]
    pixels = [dataset.pixels(image) for image in sample["pixels"]]
    numbers = [dataset.tiling.num_tokens(each.shape[:2]) for each in pixels]
    whole = encode(
        turns,
        template=get_template(dataset.manifest.template),
        tokenizer=tokenizer,
        num_image_tokens=numbers,
        max_length=None,
    )
    ids, labels = sample["input_ids"], sample["labels"]
    stored = dict(sample)
    return InspectedSample(
        id=sample["id"],
        place=place,
        pixels=pixels,
        turns=turns,
        spans=_spans(dataset, ids, labels, numbers, tokenizer),
        num_tokens=len(ids),
        num_trained=sum(label != IGNORE_INDEX for label in labels),
        num_cut=len(whole.input_ids) - len(ids),
        facts={name: str(stored[name]) for name in _FACTS if stored[name]},
    )


def _spans(
    dataset: PreparedDataset,
    ids: list[int],
    labels: list[int],
    num_image_tokens: list[int],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Span]:
    """Return the tokens of a sample as spans.

    Args:
        labels: Its labels, not shifted.
        num_image_tokens: The tokens of each of its images.
    """
    image = dataset.manifest.image_token_id
    texts = _spell(ids, tokenizer)
    kinds: list[Kind] = [
        "image" if token == image else "masked" if label == IGNORE_INDEX else "trained"
        for token, label in zip(ids, labels, strict=True)
    ]
    spans: list[Span] = []
    start, images = 0, iter(num_image_tokens)
    for kind, members in groupby(kinds):
        stop = start + len(list(members))
        while start < stop:  # images that follow each other are spans of their own
            end = start + next(images) if kind == "image" else stop
            spans.append(Span(kind, texts[start:end]))
            start = end
    return spans


def _spell(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return each token as text with visible spaces and line breaks, for any vocabulary."""
    from tokenizers.decoders import ByteLevel

    decoder = tokenizer.backend_tokenizer.decoder
    special = tokenizer.get_added_vocab()
    texts = []
    for piece in tokenizer.convert_ids_to_tokens(ids):
        if isinstance(decoder, ByteLevel) and piece not in special:
            piece = decoder.decode([piece])
        piece = piece.replace("<0x0A>", "\n").replace("\u2581", " ")
        texts.append(piece.replace(" ", SPACE).replace("\n", LINE_BREAK))
    return texts


def _explain_absence(dataset: PreparedDataset, name: str) -> str:
    refused = dataset.read(QUARANTINE).to_pylist()
    for row in refused:
        if row["id"] == name:
            return (
                f"sample={name}: was quarantined, {row['reason']}: {row['detail']}; fix row "
                f"{row['row']} of the source and prepare the dataset again"
            )
    return (
        f"sample={name}: none of the {dataset.num_samples:,} of dataset {dataset.name} has this "
        "id; leave the id out to see samples drawn at random"
    )
