"""Read PathVQA as its authors or Hugging Face publish it.

- The authors' folder: `qas/{split}/{split}_qa.pkl`, each a pickled list of `{"image", "question",
  "answer"}`, with the image at `images/{split}/{image}.jpg`. The validation split is called `val`.
- Hugging Face's: `{split}-*.parquet`, in a folder `data` or not, with the columns `image`,
  `question`, `answer`.

There is no answer type, so questions answered by yes or no count as closed.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from llavamed.config.sources import PathVqa
from llavamed.data.record import Record
from llavamed.data.sources.archives import open_folder
from llavamed.data.sources.file_of_rows import FileOfRows
from llavamed.data.sources.files import damaged
from llavamed.data.sources.parquet import ParquetFiles
from llavamed.data.sources.records import question, require, yes_or_no
from llavamed.data.sources.safe_pickle import read_safe_pickle

LICENCE = "MIT"
_KEYS = ("image", "question", "answer")
_LARGEST = 1e18


class PathVqaSource:
    """Questions about pathology images, one per sample."""

    def __init__(self, read: PathVqa) -> None:
        self._path = read.path
        self._split = read.split

    @cached_property
    def _files(self) -> "_Pickle | ParquetFiles":
        folder = open_folder(self._path)
        names = folder.children()
        if "data" in names or any(name.endswith(".parquet") for name in names):
            return ParquetFiles(
                (folder / "data" if "data" in names else folder) / f"{self._split}-*.parquet",
                images=("image",),
                required=(("image",), ("question",), ("answer",)),
            )
        split = "val" if self._split == "validation" else self._split
        return _Pickle(folder / "qas" / split / f"{split}_qa.pkl", folder / "images" / split)

    def count(self) -> int:
        """Return the number of questions of the split."""
        return self._files.count()

    def content_hash(self) -> str:
        """Return the SHA-256 of the pickle, or of the Parquet files' footers."""
        return self._files.content_hash()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the questions of the split, or their places. Raises: DataError."""
        for number, row in enumerate(self._files.rows()):
            yield {**row, "id": f"path-vqa-{self._split}-{number}"}

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one row. Raises: SampleError."""
        values, images = self._files.read(row)
        text, answer = require(values, "question", "answer")
        image, *_ = images or require(values, "image")
        return question(
            row,
            image=image,
            text=text,
            answer=answer,
            answer_type=yes_or_no(answer),
            licence=LICENCE,
        )

    def load_image(self, reference: str) -> bytes:
        """Read an image by its name or its place.

        Raises:
            SampleError: `missing_image` or `unsafe_path`.
        """
        return self._files.load_image(reference)


class _Pickle(FileOfRows):
    def rows(self) -> Iterator[dict[str, Any]]:
        items = read_safe_pickle(self._file)
        if not isinstance(items, list):
            raise damaged(self._file, "a pickled list", f"it holds a {type(items).__name__}")
        for item in items:
            values = item if isinstance(item, dict) else {}
            yield {key: values[key] for key in _KEYS if _is_plain(values.get(key))}

    def read(self, row: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        return row, [f"{row['image']}.jpg"] if "image" in row else []


def _is_plain(value: Any) -> bool:
    """Return whether it is text or a number small enough to be written to JSON."""
    return isinstance(value, str) or (isinstance(value, int | float) and abs(value) < _LARGEST)
