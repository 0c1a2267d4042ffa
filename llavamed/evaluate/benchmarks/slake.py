"""SLAKE in English and Chinese: the same images, with questions of their own in each language."""

from functools import partial
from typing import Any, Literal

from llavamed.config.sources import Slake
from llavamed.data.sources.slake import LICENCE, SlakeSource
from llavamed.evaluate.benchmarks.benchmark import Benchmark, question_of
from llavamed.evaluate.questions import Question


class SlakeItems(SlakeSource):
    """Questions of one split in one language."""

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError, as `parse` does."""
        return question_of(
            self.parse(row),
            organ=str(row.get("location") or ""),
            modality=str(row.get("modality") or ""),
            language=str(row["q_lang"]),
        )


def _open(language: Literal["en", "zh"], path: str, split: Any) -> SlakeItems:
    return SlakeItems(Slake(source="slake", path=path, split=split, languages=(language,)))


BENCHMARKS = tuple(
    Benchmark(
        name=f"slake-{language}",
        version=1,
        splits=("test", "validation", "train"),
        open=partial(_open, language),
        data="a folder with test.json, validate.json, train.json and imgs",
        licence=LICENCE,
        language=language,
        is_on_hub=language == "en",
    )
    for language in ("en", "zh")
)
