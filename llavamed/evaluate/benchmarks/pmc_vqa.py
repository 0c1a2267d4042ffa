"""PMC-VQA: questions with four options about figures of articles.

Papers report `test_clean`, the 2,000 questions that people have checked; some kits report `test_2`.
The two do not compare.
"""

from typing import Any

from llavamed.config.sources import PmcVqa
from llavamed.data.sources.pmc_vqa import LICENCE, PmcVqaSource, read_choices
from llavamed.evaluate.benchmarks.benchmark import BY_LETTER, Benchmark, question_of
from llavamed.evaluate.questions import Question

_SECOND_VERSION = "_2"


class PmcVqaItems(PmcVqaSource):
    """Questions of one file."""

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError, as `parse` does."""
        text, choices = read_choices(row)
        return question_of(self.parse(row), options=choices, text=text, language="en")


def _open(path: str, split: str) -> PmcVqaItems:
    folder = path.rstrip("/")
    images = "images_2" if split.endswith(_SECOND_VERSION) else "images"
    return PmcVqaItems(
        PmcVqa(source="pmc_vqa", path=f"{folder}/{split}.csv", image_folder=f"{folder}/{images}")
    )


BENCHMARK = Benchmark(
    name="pmc-vqa",
    version=1,
    splits=("test_clean", "test", "test_2", "train", "train_2"),
    open=_open,
    data="a folder with test_clean.csv, test.csv and images; test_2.csv and images_2",
    licence=LICENCE,
    choice_instruction=BY_LETTER,
)
