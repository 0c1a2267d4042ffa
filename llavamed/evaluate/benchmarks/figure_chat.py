"""Questions about figures that a judge scores: the form of LLaVA-Med's chat evaluation.

A JSON line is `{"id", "image", "question", "reference", "type", "domain", ...}` as `llavamed corpus
questions` writes it, or has the published names `question_id`, `text` and `gpt4_answer`. The scores
of rules say little of such answers; `llavamed evaluate judge` compares them with the references.
"""

from collections.abc import Iterator
from typing import Any

from llavamed.data.sources.json_rows import JsonFolder
from llavamed.data.sources.records import require
from llavamed.evaluate.benchmarks.benchmark import Benchmark, open_question
from llavamed.evaluate.chat import domain_of
from llavamed.evaluate.questions import Question, words_of

_FILES = ("questions.jsonl", "llava_med_eval_qa50_qa.jsonl")
_PLAIN = {"question_id": "id", "text": "question", "gpt4_answer": "reference"}


class FigureChatItems(JsonFolder):
    """Questions about figures."""

    def __init__(self, path: str, split: str) -> None:
        del split  # there is one
        super().__init__(path, _FILES, ("images",))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows under their plain names. Raises: DataError."""
        for row in super().rows():
            plain = {_PLAIN.get(name, name): value for name, value in row.items()}
            yield {**plain, "id": str(plain.get("id", ""))}

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError."""
        text, reference, image = require(row, "question", "reference", "image")
        domain = domain_of(row.get("domain"), row["id"])
        return open_question(
            row["id"],
            words_of(text),
            (reference,),
            images=(image,),
            question_type=str(row.get("type") or ""),
            modality=domain,
            domain=domain,
            language="en",
        )


BENCHMARK = Benchmark(
    name="figure-chat",
    version=1,
    splits=("test",),
    open=FigureChatItems,
    data="a folder with questions.jsonl and images",
    licence="that of each figure's article",
)
