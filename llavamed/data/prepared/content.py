"""Hash the images and texts of a sample so that copies, and modified copies, can be found.

A sample is a copy of another if their pixels and words are equal. For modified copies, images are
hashed by appearance: re-encoded, resized or slightly cropped copies differ in a few of
256 bits, different images in about half of them. Flipped or rotated copies are not found. Texts are
hashed without case, punctuation, spacing and variants of Unicode. All arithmetic is exact, so every
machine computes the same bits.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from llavamed.data.record import IMAGE_HASH_BYTES, TEXT_HASH_BYTES, ContentHashes
from llavamed.processor.image_files import Pixels
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn

Words = npt.NDArray[np.uint64]
"""uint64 array of shape [images, 4]: the 256 bits of each image hash."""

MAX_DISTANCE = 40
"""Default for the maximum number of bits in which two copies of an image differ. No two of 60 real
radiology images differ in fewer than 75 bits. A copy differs in up to 9 bits after JPEG at quality
50, at half the size or with 10 % more brightness, and in up to 35 bits after a crop of 2 %."""

_SIDE, _FREQUENCIES = 64, 16
_ANGLES = np.pi / _SIDE * np.outer(np.arange(_FREQUENCIES), np.arange(_SIDE) + 0.5)
# Sums of whole numbers in float64 are exact up to 2^53 in any order; the largest here is below
# 2^44.
_COSINES = np.rint(4096 * np.cos(_ANGLES))
_BLOCK_DISTANCES = 1 << 20


def hash_image(pixels: Pixels) -> bytes:
    """Return the signs of the 16 x 16 lowest DCT frequencies of the grey image: 256 bits.

    Source: the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions" (2010), with the sign instead of the comparison with the median.

    Args:
        pixels: uint8 array of shape [height, width, 3].
    """
    grey = Image.fromarray(pixels).convert("L")
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    return np.packbits(_COSINES @ small @ _COSINES.T > 0).tobytes()


def fold(text: str) -> str:
    """Return a text without case, punctuation, image placeholders and variants of Unicode.

    Folding is idempotent. Source: Unicode's NFKC_Casefold (UAX 31 and chapter 3.13).
    """
    text = text.replace(IMAGE_PLACEHOLDER, " ")
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    for _ in range(2):
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    kept = (" " if unicodedata.category(letter)[0] in "PZC" else letter for letter in text)
    return " ".join("".join(kept).split())


def hash_text(text: str) -> bytes:
    """Return the hash of a text after `fold`."""
    return _digest(fold(text).encode(errors="surrogatepass"))


NO_TEXT = hashlib.blake2b(digest_size=TEXT_HASH_BYTES).digest()
"""The hash of a text without any word; two such texts are not a match."""


def hash_pixels(pixels: Pixels) -> bytes:
    """Return the hash of the values and the shape of an image, which only equal images share.

    Args:
        pixels: uint8 array of shape [height, width, 3].
    """
    return _digest(str(pixels.shape).encode() + pixels.tobytes())


def hash_content(
    turns: Sequence[Turn], image_hashes: list[bytes], pixel_hashes: list[bytes]
) -> ContentHashes:
    """Return the hashes of a sample under the names of `CONTENT_SCHEMA`.

    Args:
        image_hashes: `hash_image` of each image.
        pixel_hashes: `hash_pixels` of each image.
    """
    questions = [hash_text(turn.text) for turn in turns if turn.role == "user"]
    answered = [turn for turn in turns if turn.role == "assistant"]
    answers = [hash_text(turn.text) for turn in answered]
    untrained = [number for number, turn in enumerate(answered) if not turn.trained]
    # The counts tell apart samples that have the same hashes in a row, such as of other roles.
    counts = str([len(image_hashes), len(questions), *untrained]).encode()
    systems = [hash_text(turn.text) for turn in turns if turn.role == "system"]
    return {
        "image_hashes": image_hashes,
        "question_hashes": questions,
        "answer_hashes": answers,
        "sample_hash": _digest(b"".join([counts, *pixel_hashes, *questions, *answers, *systems])),
    }


def as_words(hashes: pa.FixedSizeBinaryArray) -> Words:
    """Convert image hashes to a uint64 array of shape [images, 4]."""
    width = IMAGE_HASH_BYTES // 8
    return np.frombuffer(b"".join(hashes.to_pylist()), dtype=np.uint64).reshape(-1, width)


def near(these: Words, those: Words, max_distance: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Find all pairs of hashes that differ in at most `max_distance` bits.

    Blocks bound the memory of the comparison.

    Args:
        these: uint64 array of shape [n, 4].
        those: uint64 array of shape [m, 4].
        max_distance: Maximum distance, in bits.

    Returns:
        For each pair, its position in `these`, its position in `those` and its distance in bits, as
        three int64 arrays sorted by position.
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
