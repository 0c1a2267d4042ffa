"""Group the members of a tar shard into samples, by their names and order alone.

The ending of a member is the part after the last dot of its name if it begins with a letter:
`7.jpg` and `a/2.5mm.png` have one, a DICOM file `1.2.840.113` has none. The rest is its stem.
WebDataset's own rule, to cut at the first dot, would merge all DICOM UIDs into one sample. So the
key of a sample is found among consecutive images and texts:

1. A stem that two of them share is a key: `1.2.840.7.jpg`, `1.2.840.7.txt`.
2. Otherwise a member belongs to the longest neighbouring stem that its own extends by a dot:
   `7.left.jpg`, `7.right.jpg`, `7.json`.
3. Otherwise words after a dot are not part of the key: `7.image.jpg`, `7.caption.txt`. Numbers
   are: an image `1.2.840.7.jpg` without its text is a sample of its own.

Members with other endings follow the same rules but do not affect them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

# fmt: off
IMAGES = frozenset({
    "apng", "bmp", "gif", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx",
    "mpo", "pbm", "pfm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp",
})
# fmt: on
"""Endings of the image formats that can be decoded."""
TEXTS = frozenset({"json", "txt"})
NO_ENDING = "endingless"
"""Kind of a member without an ending."""
LINK = "link"
"""Kind of a member that is not a file, such as a link."""

_NAME = re.compile(r"(?P<stem>(?:.*/)?[^./][^/]*?)(?:\.(?P<kind>[^\W\d_][^./]*))?", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """A file in an archive: `start` and `size` in bytes, `kind` its ending in lower case."""

    stem: str
    kind: str
    start: int
    size: int

    @property
    def is_read(self) -> bool:
        """Whether it is an image or a text."""
        return self.kind in IMAGES | TEXTS


def read_name(name: str) -> tuple[str, str] | None:
    """Return stem and ending of a member's name, or None if it is hidden, as macOS's `._7.jpg`."""
    parts = _NAME.fullmatch(name)
    return (parts["stem"], (parts["kind"] or NO_ENDING).lower()) if parts else None


def group_samples(members: Iterable[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Yield the key and members of each sample, in the order of their first members.

    Only the members of one sample, or of samples that are not complete yet, are held in memory.
    """
    held: list[Member] = []
    stems: Counter[str] = Counter()
    for member in members:
        if held and _is_of_another(member.stem, held[-1].stem, stems):
            yield from _resolve(held, stems)
            held, stems = [], Counter()
        held.append(member)
        stems[member.stem] += member.is_read
    yield from _resolve(held, stems)


def _is_of_another(stem: str, last: str, stems: Counter[str]) -> bool:
    """Return whether a following stem cannot belong to any sample that is held."""
    if _cut(stem)[0] != _cut(last)[0]:
        return True
    return stems[last] > 1 and last not in _cut(stem)


def _resolve(held: list[Member], stems: Counter[str]) -> Iterator[tuple[str, list[Member]]]:
    samples: dict[str, list[Member]] = {}
    for member in held:
        samples.setdefault(_key(member.stem, stems), []).append(member)
    yield from samples.items()


def _key(stem: str, stems: Counter[str]) -> str:
    if stems[stem] > 1:
        return stem
    *above, _ = cuts = _cut(stem)
    for shorter in reversed(above):
        if stems[shorter]:
            return _key(shorter, stems)
    while len(cuts) > 1 and not cuts[-1].rpartition(".")[2][:1].isdigit():
        cuts.pop()
    return cuts[-1]


def _cut(stem: str) -> list[str]:
    """Return the stem up to each dot of its name, and whole: `a/1.2` -> `a/1`, `a/1.2`."""
    folder, slash, name = stem.rpartition("/")
    return [folder + slash + part for part in accumulate(name.split("."), "{}.{}".format)]
