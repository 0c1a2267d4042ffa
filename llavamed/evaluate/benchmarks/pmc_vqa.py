"""PMC-VQA: questions with four options about figures of articles.

Papers report `test_clean`, the 2,000 questions that people have checked; some kits report `test_2`.
The two do not compare.
"""

from typing import Any

from llavamed.data.sources.archives import open_folder
from llavamed.data.sources.pmc_vqa import LICENCE, PmcVqaFile, read_choices
from llavamed.evaluate.benchmarks.benchmark import BY_LETTER, Benchmark, question_of
from llavamed.evaluate.questions import Question

_SECOND_VERSION = "_2"


class PmcVqaItems(PmcVqaFile):
    """Questions of one file."""

    def __init__(self, path: str, split: str) -> None:
        folder = open_folder(path)
        images = "images_2" if split.endswith(_SECOND_VERSION) else "images"
        super().__init__(folder / f"{split}.csv", folder / images)

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError, as `parse` does."""
        text, choices = read_choices(row)
        return question_of(self.parse(row), options=choices, text=text, language="en")


BENCHMARK = Benchmark(
    name="pmc-vqa",
    version=1,
    splits=("test_clean", "test", "test_2", "train", "train_2"),
    open=PmcVqaItems,
    data="a folder with test_clean.csv, test.csv and images; test_2.csv and images_2; or with "
    "Parquet files of these",
    licence=LICENCE,
    choice_instruction=BY_LETTER,
    is_on_hub=True,
)
