"""Define a sample as a source lists it (`Record`) and as a dataset stores it (`SHARD_SCHEMA`).

A record holds its full text and refers to its images, so that listing millions of records is
cheap. The workers that prepare a dataset fetch and decode the images.
"""

import re
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import pyarrow as pa

from llavamed.errors import SampleError
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Role, Turn

IMAGE_HASH_BYTES = 32
TEXT_HASH_BYTES = 16

AnswerType = Literal["", "OPEN", "CLOSED"]


@dataclass(frozen=True, slots=True)
class Record:
    """One sample as a source lists it.

    `answer_type` and `question_type` are set for visual question answering and empty elsewhere.
    """

    id: str
    images: tuple[str, ...]
    """References that `load_image` of the same source resolves, in the order of the text."""
    turns: tuple[Turn, ...]
    domain: str = ""
    """The kind of image, or the organ, as the source names it."""
    answer_type: AnswerType = ""
    question_type: str = ""
    pmid: str = ""
    licence: str = ""
    unread_keys: tuple[str, ...] = ()
    """Keys of the row, or members of the archive, that hold a value but are not read."""


_FOREIGN_MARK = re.compile(
    r"<\|?_*/?(?:img|images?|videos?|audios?|media)(?:here)?(?![a-z])[^<>\n]{0,200}>|\[img\]"
    r"|<(?:im_(?:start|end|patch)|(?:start|end)_of_(?:image|video|audio))>",
    re.I,
)
"""Marks of images, videos and sounds in other trainers' texts; only `IMAGE_PLACEHOLDER` is ours."""


def check_record(record: Record) -> None:
    """Raise SampleError if no template can render the record.

    Raises:
        SampleError: `empty_dialogue`, `unknown_role`, `empty_answer`, `not_unicode`, `foreign_mark`
            or `placeholder_mismatch`.
    """
    if not any(turn.role == "user" for turn in record.turns) or not any(
        turn.role == "assistant" for turn in record.turns
    ):
        raise SampleError("empty_dialogue", f"{len(record.turns)} turns, no question and answer")
    for number, turn in enumerate(record.turns):
        if turn.role not in get_args(Role):
            raise SampleError("unknown_role", f"turn {number} has role {turn.role!r}")
    if not any(turn.text.strip() for turn in record.turns if turn.role == "assistant"):
        raise SampleError("empty_answer", "no assistant turn has any text")
    check_unicode(record)
    for turn in record.turns:
        for mark in _FOREIGN_MARK.findall(turn.text):
            if mark != IMAGE_PLACEHOLDER:
                raise SampleError(
                    "foreign_mark",
                    f"{mark!r} in a {turn.role} turn would be read as text; the mark of an image "
                    f"is {IMAGE_PLACEHOLDER}, and videos and sounds are not read",
                )
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in record.turns)
    if placeholders != len(record.images):
        raise SampleError(
            "placeholder_mismatch",
            f"{placeholders} {IMAGE_PLACEHOLDER} in the text, {len(record.images)} images",
        )


def check_unicode(record: Record) -> None:
    """Raise SampleError (`not_unicode`) if a text holds a lone surrogate, which JSON can spell."""
    notes = (record.id, record.domain, record.question_type, record.pmid, record.licence)
    try:
        "".join([*notes, *record.images, *(turn.text for turn in record.turns)]).encode()
    except UnicodeEncodeError as error:
        raise SampleError("not_unicode", f"{error.object[error.start]!r} in it") from error


class StoredTurn(TypedDict):
    """A turn of a `ShardRow`."""

    role: Role
    text: str
    trained: bool


class ShardRow(TypedDict):
    """A row of `SHARD_SCHEMA`."""

    id: str
    pixels: list[bytes]
    input_ids: list[int]
    labels: list[int]
    turns: list[StoredTurn]
    domain: str
    answer_type: str
    question_type: str
    source: str
    pmid: str
    licence: str


class ContentHashes(TypedDict):
    """The hashes of a sample, by their names in `CONTENT_SCHEMA`."""

    image_hashes: list[bytes]
    question_hashes: list[bytes]
    answer_hashes: list[bytes]
    sample_hash: bytes


class ContentRow(ContentHashes):
    """A row of `CONTENT_SCHEMA`."""

    row: int
    id: str


class QuarantineRow(TypedDict):
    """A row of `QUARANTINE_SCHEMA`."""

    source: str
    row: int
    id: str
    reason: str
    detail: str


_TURN = pa.struct([("role", pa.string()), ("text", pa.string()), ("trained", pa.bool_())])

SHARD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("pixels", pa.list_(pa.binary())),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("turns", pa.list_(_TURN)),
        pa.field("domain", pa.string()),
        pa.field("answer_type", pa.string()),
        pa.field("question_type", pa.string()),
        pa.field("source", pa.string()),
        pa.field("pmid", pa.string()),
        pa.field("licence", pa.string()),
    ]
)
"""Schema of `shards/*.parquet`, one row per sample. Each of `pixels` is an image: uint8 of shape
[3, size, size], or [size, size] if it is grey, or the bytes of the original file. `labels` are not
shifted."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("row_group", pa.int32()),
        pa.field("row", pa.int32()),
        pa.field("num_tokens", pa.int32()),
        pa.field("num_supervised", pa.int32()),
        pa.field("num_images", pa.int32()),
        pa.field("num_truncated", pa.int32()),
    ]
)
"""Schema of `index.parquet`, one row per sample in shard order. `row` counts within the row group,
and `num_truncated` is the number of text tokens that were cut off."""

NUM_TILES = "num_tiles"
TILED_INDEX_SCHEMA = INDEX_SCHEMA.append(pa.field(NUM_TILES, pa.int32()))
"""Schema of `index.parquet` where images are cut into tiles; `num_tiles` counts those of all images
of a sample."""

_TEXT_HASH = pa.binary(TEXT_HASH_BYTES)

CONTENT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("image_hashes", pa.list_(pa.binary(IMAGE_HASH_BYTES))),
        pa.field("question_hashes", pa.list_(_TEXT_HASH)),  # one per user turn
        pa.field("answer_hashes", pa.list_(_TEXT_HASH)),  # one per assistant turn
        pa.field("sample_hash", _TEXT_HASH),
    ]
)
"""Schema of `content.parquet`, one row per sample in index order. `row` is the position in the
source, from 0. `sample_hash` is of the pixels and words of a sample: duplicates have equal ones."""

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""Schema of `quarantine.parquet`, one row per rejected sample. `row` is the position in the source,
from 0."""

MAX_DETAIL = 400
"""Maximum number of characters of a quarantined sample's id or detail, which may hold an image."""


def quarantine_row(source: str, row: int, id: str, error: SampleError) -> QuarantineRow:
    """Return a row of `QUARANTINE_SCHEMA` with its texts shortened and lone surrogates escaped."""
    return {
        "source": source,
        "row": row,
        "id": shorten(id),
        "reason": error.reason,
        "detail": shorten(error.detail),
    }


def shorten(text: str) -> str:
    """Return a text of at most `MAX_DETAIL` characters; a longer one says how long it was.

    Lone surrogates, which no file can hold, become escapes.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= MAX_DETAIL:
        return text
    middle = f" ... ({len(text):,} characters) ... "
    end = 40
    return text[: MAX_DETAIL - len(middle) - end] + middle + text[-end:]
