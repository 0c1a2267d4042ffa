"""What a sample shows and says, as short hashes that survive what copying does to it.

Images are hashed by what they look like: re-encoded, resized or slightly cropped copies differ in a
few bits of 256, different images in about half of them. Flipped or turned copies are not found.
Texts are hashed without what typing them again changes: case, punctuation, spaces, Unicode forms.
Everything is computed in integers, so that every machine finds the same bits.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from llavamed.data.record import IMAGE_HASH_BYTES, TEXT_HASH_BYTES
from llavamed.processor.images import Pixels
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn

Words = npt.NDArray[np.uint64]
"""Image hashes, four words each: [images, 4]."""

Integers = npt.NDArray[np.int64]

MAX_DISTANCE = 40
"""Bits in which a copy of an image may differ. Between 60 real radiology images no two differ in
fewer than 75; a copy differs in up to 9 by JPEG at quality 50, half the size or 10 % of brightness,
and in up to 35 by a crop of 2 %."""

_SIDE, _FREQUENCIES = 64, 16
_ANGLES = np.pi / _SIDE * np.outer(np.arange(_FREQUENCIES), np.arange(_SIDE) + 0.5)
# In float64 whole numbers up to 2^53 are exact, in whatever order they are summed; the largest sum
# here is below 2^44.
_COSINES = np.rint(4096 * np.cos(_ANGLES))
_BLOCK_DISTANCES = 1 << 20


def hash_image(pixels: Pixels) -> bytes:
    """The signs of the 16 x 16 lowest frequencies of the grey image: 256 bits.

    Source: the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions" (2010), with signs in place of its median, which needs no order of all values.

    Args:
        pixels: Array of shape [height, width, 3], uint8.
    """
    grey = Image.fromarray(pixels).convert("L")
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    return np.packbits(_COSINES @ small @ _COSINES.T > 0).tobytes()


def fold(text: str) -> str:
    """The words of a text, without case, punctuation, image placeholders and ways to write them.

    Folding twice is folding once. Source: Unicode's NFKC_Casefold (UAX 31 and chapter 3.13).
    """
    text = text.replace(IMAGE_PLACEHOLDER, " ")
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    for _ in range(2):
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    kept = (" " if unicodedata.category(letter)[0] in "PZC" else letter for letter in text)
    return " ".join("".join(kept).split())


def hash_text(text: str) -> bytes:
    """Of the folded text; equal for texts that fold to the same."""
    return _digest(fold(text).encode(errors="surrogatepass"))


NO_TEXT = hashlib.blake2b(digest_size=TEXT_HASH_BYTES).digest()
"""The hash of a text without a word, which says nothing of what it is equal to."""


def hash_content(turns: Sequence[Turn], image_hashes: list[bytes]) -> dict[str, Any]:
    """The hashes of a sample, as `CONTENT_SCHEMA` names them."""
    questions = [hash_text(turn.text) for turn in turns if turn.role == "user"]
    answers = [hash_text(turn.text) for turn in turns if turn.role == "assistant"]
    counts = [len(image_hashes), len(questions)]
    answered = [turn for turn in turns if turn.role == "assistant"]
    counts += [number for number, turn in enumerate(answered) if not turn.trained]
    lengths = bytes(str(counts), "ascii")
    return {
        "image_hashes": image_hashes,
        "question_hashes": questions,
        "answer_hashes": answers,
        "sample_hash": _digest(b"".join([lengths, *image_hashes, *questions, *answers])),
    }


def as_words(hashes: pa.FixedSizeBinaryArray) -> Words:
    """Image hashes as words to count bits in. Returns: [images, 4], uint64."""
    width = IMAGE_HASH_BYTES // 8
    return np.frombuffer(b"".join(hashes.to_pylist()), dtype=np.uint64).reshape(-1, width)


def near(these: Words, those: Words, max_distance: int) -> tuple[Integers, Integers, Integers]:
    """All pairs of hashes that differ in few bits, compared in blocks of bounded memory.

    Returns:
        Of each pair its place in `these`, its place in `those` and its distance in bits, in order.
    """
    found = [np.empty((3, 0), dtype=np.int64)]
    block = max(1, _BLOCK_DISTANCES // max(1, len(those)))
    for start in range(0, len(these), block):
        differing = these[start : start + block, None] ^ those
        distances = np.bitwise_count(differing).sum(axis=-1, dtype=np.int64)
        rows, columns = np.nonzero(distances <= max_distance)
        found.append(np.stack([rows + start, columns, distances[rows, columns]]))
    rows, columns, distances = np.concatenate(found, axis=1)
    return rows, columns, distances


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=TEXT_HASH_BYTES).digest()
