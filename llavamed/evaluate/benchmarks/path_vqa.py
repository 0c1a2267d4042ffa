"""PathVQA: questions about pathology images, made from the captions of textbooks."""

from typing import Any

from llavamed.config.sources import PathVqa
from llavamed.data.sources.path_vqa import LICENCE, PathVqaSource
from llavamed.evaluate.benchmarks.benchmark import Benchmark, question_of
from llavamed.evaluate.questions import Question


class PathVqaItems(PathVqaSource):
    """Questions of one split."""

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError, as `parse` does."""
        record = self.parse(row)
        words = record.turns[0].text.split()
        kind = words[1].lower() if len(words) > 1 else ""
        return question_of(record, question_type=kind, modality="pathology", language="en")


def _open(path: str, split: Any) -> PathVqaItems:
    return PathVqaItems(PathVqa(source="path_vqa", path=path, split=split))


BENCHMARK = Benchmark(
    name="path-vqa",
    version=1,
    splits=("test", "validation", "train"),
    open=_open,
    data="a folder with qas and images, or with the Parquet files of Hugging Face in data",
    licence=LICENCE,
)
