"""Find near-duplicates among texts of which only small signatures are kept.

Source: Broder, "On the Resemblance and Containment of Documents" (1997), with the banding of Indyk
and Motwani (1998). A text takes 1 KB, so that 100,000 dialogues take 100 MB.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from llavamed.data.prepared.content import fold

_SHINGLE_WORDS = 3
_NUM_BANDS, _BAND_ROWS = 32, 4
"""Two texts with a similarity of 0.7 share a band with a probability of 0.9998."""
_RANDOM = np.random.default_rng(0)
_FACTORS = _RANDOM.integers(1, 2**63, _NUM_BANDS * _BAND_ROWS, dtype=np.uint64) * np.uint64(2) + 1
_OFFSETS = _RANDOM.integers(0, 2**63, _NUM_BANDS * _BAND_ROWS, dtype=np.uint64)

Signature = npt.NDArray[np.uint32]
"""uint32 array of shape [bands x rows]: the smallest hash of the text's shingles by each function.
"""


class Repeats:
    """Texts by name; each is compared with those before it."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._signatures: list[Signature] = []
        self._bands: dict[bytes, list[int]] = {}

    def add(self, name: str, text: str, similarity: float) -> str | None:
        """Return the name of an earlier text that is as similar, or None and keep this one.

        Args:
            name: What the text is called if a later one repeats it.
            text: Compared as `fold` has it, by its runs of three words.
            similarity: Share of the runs of both that the two have in common, estimated with a
                standard error of at most 0.045.
        """
        signature = _signature(text)
        bands = [
            bytes([number]) + band.tobytes()
            for number, band in enumerate(signature.reshape(_NUM_BANDS, _BAND_ROWS))
        ]
        for other in sorted({each for band in bands for each in self._bands.get(band, ())}):
            if np.mean(self._signatures[other] == signature) >= similarity:
                return self._names[other]
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._names))
        self._names.append(name)
        self._signatures.append(signature)
        return None


def _signature(text: str) -> Signature:
    words = fold(text).split()
    last = max(1, len(words) - _SHINGLE_WORDS + 1)
    shingles = {" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(last)}
    hashes = np.array(
        [
            int.from_bytes(hashlib.blake2b(each.encode(), digest_size=8).digest())
            for each in shingles
        ],
        dtype=np.uint64,
    )
    mixed = hashes[:, None] * _FACTORS + _OFFSETS  # modulo 2^64; the upper half is well mixed
    return (mixed >> np.uint64(32)).min(axis=0).astype(np.uint32)
