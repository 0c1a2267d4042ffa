"""What there is to see of a prepared dataset: samples as the model gets them, and what was refused.

Facts only; `inspect_terminal` and `inspect_page` draw them. A sample is found by reading no more
than the ids of the shards, and then only its own row group.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llavamed.data.prepared.dataset import QUARANTINE, PreparedDataset
from llavamed.data.record import SHARD_SCHEMA
from llavamed.errors import DataError
from llavamed.processor.encode import encode, get_template
from llavamed.processor.images import Pixels
from llavamed.processor.turns import IGNORE_INDEX, Turn
from llavamed.storage.location import Location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE, LINE_BREAK = "\u00b7", "\u23ce"
"""Stand in a token's text for a space at its start and for a line break."""

Kind = Literal["trained", "masked", "image"]

FEW = 3
"""Refused samples shown of each reason."""

_PLACE = ("shard", "row_group", "row")
_FACTS = ("source", "licence", "pmid", "domain", "answer_type", "question_type")


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one kind, each as readable text; an image is a span of its own."""

    kind: Kind
    tokens: list[str]


@dataclass(frozen=True, slots=True)
class InspectedSample:
    """One sample: `pixels` at training resolution; `place` is shard, row group and row there."""

    id: str
    place: tuple[int, int, int]
    pixels: list[Pixels]
    turns: list[Turn]
    spans: list[Span]
    num_tokens: int
    num_trained: int
    num_cut: int
    """Text tokens that did not fit the longest sample."""
    facts: dict[str, str]
    """Where it is from and what is asked; what is not known is left out."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason of the quarantine, how many samples it has, and the first of them."""

    reason: str
    count: int
    first: list[dict[str, Any]]
    """`QUARANTINE_SCHEMA`."""


def pick_samples(dataset: PreparedDataset, number: int, seed: int) -> list[int]:
    """Draw places in the index, at most as many as there are, in the dataset's order."""
    random = np.random.default_rng(seed)
    number = min(number, dataset.index.num_rows)
    return sorted(random.choice(dataset.index.num_rows, number, replace=False).tolist())


def find_samples(dataset: PreparedDataset, ids: Sequence[str]) -> list[int]:
    """Find the place in the index of the first sample of each id, in the order asked for.

    Raises:
        DataError: No sample has one of the ids; says so where it was quarantined.
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
    """Read samples by their places in the index; neighbours of one row group are read at once."""
    places = [tuple(int(dataset.column(name)[row]) for name in _PLACE) for row in rows]
    for (shard, group), members in groupby(places, key=lambda place: place[:2]):
        table = dataset.read_row_group(shard, group, SHARD_SCHEMA.names)
        for _, _, row in members:
            (sample,) = table.slice(row, 1).to_pylist()
            yield _inspect(dataset, sample, (shard, group, row), tokenizer)


def read_refusals(dataset: PreparedDataset | Location) -> list[Refusal]:
    """Sum up the quarantine, the commonest reason first.

    Args:
        dataset: A dataset, or the folder of one whose preparation failed, which is when the
            reasons are looked for.

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
        Refusal(reason, count, [row for row in rows if row["reason"] == reason][:FEW])
        for reason, count in counts.most_common()
    ]


def _inspect(
    dataset: PreparedDataset,
    sample: dict[str, Any],
    place: tuple[int, int, int],
    tokenizer: "PreTrainedTokenizerBase",
) -> InspectedSample:
    turns = [Turn(**turn) for turn in sample["turns"]]
    whole = encode(
        turns,
        template=get_template(dataset.manifest["template"]),
        tokenizer=tokenizer,
        num_image_tokens=dataset.num_image_tokens,
        max_length=None,
    )
    ids, labels = sample["input_ids"], sample["labels"]
    return InspectedSample(
        id=sample["id"],
        place=place,
        pixels=[dataset.pixels(image) for image in sample["pixels"]],
        turns=turns,
        spans=_spans(dataset, ids, labels, tokenizer),
        num_tokens=len(ids),
        num_trained=sum(label != IGNORE_INDEX for label in labels),
        num_cut=len(whole.input_ids) - len(ids),
        facts={name: sample[name] for name in _FACTS if sample[name]},
    )


def _spans(
    dataset: PreparedDataset,
    ids: list[int],
    labels: list[int],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Span]:
    image = dataset.manifest["image_token_id"]
    texts = _spell(ids, tokenizer)
    kinds: list[Kind] = [
        "image" if token == image else "masked" if label == IGNORE_INDEX else "trained"
        for token, label in zip(ids, labels, strict=True)
    ]
    spans: list[Span] = []
    start = 0
    for kind, members in groupby(kinds):
        stop = start + len(list(members))
        step = dataset.num_image_tokens if kind == "image" else stop - start
        spans += [Span(kind, texts[at : at + step]) for at in range(start, stop, step)]
        start = stop
    return spans


def _spell(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Write each token readably, its spaces and line breaks visible, whatever the vocabulary."""
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
                f"sample={name}: was quarantined, {row['reason']}: {row['detail']}; mend row "
                f"{row['row']} of the source and prepare the dataset again"
            )
    return (
        f"sample={name}: none of the {dataset.num_samples:,} of dataset {dataset.name} has this "
        "id; leave the id out to see samples drawn at random"
    )
