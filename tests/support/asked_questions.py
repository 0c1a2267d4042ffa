"""Questions in memory, and a model that notes what it is asked: `python -m` answers and waits."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llavamed.evaluate.candidate import Reply
from llavamed.evaluate.conditions import CONDITIONS
from llavamed.evaluate.generate import Task, answer_here
from llavamed.evaluate.questions import Question, QuestionImage
from llavamed.processor.turns import Turn

CHUNK = 10


def picture(number: int) -> QuestionImage:
    pixels = np.random.default_rng(number).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    return QuestionImage.from_pixels(pixels)


def question(number: int, **facts: Any) -> Question:
    """Two questions in a row are about one picture."""
    text = facts.pop("question", f"Is there lesion {number}?")
    known: dict[str, Any] = {
        "references": ("yes" if number % 3 else "no",),
        "options": None,
        "answer_type": "CLOSED",
        "modality": ("CT", "MR")[number // 2 % 2],
        "pictures": (picture(number // 2),),
    }
    turns = (Turn("user", f"<image>\n{text}"),)
    return Question(**({"id": f"q{number}", "question": text, "turns": turns} | known | facts))


@dataclass(frozen=True)
class Made:
    """Questions that are made when they are read."""

    number: int

    @property
    def num_chunks(self) -> int:
        return -(-self.number // CHUNK)

    def read(self, chunk: int, *, with_pictures: bool = True) -> list[Question]:
        numbers = range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.number))
        return [question(number) for number in numbers]


@dataclass(frozen=True)
class NotingCandidate:
    """Answers with what it sees, and writes a line for each question."""

    log: str
    fingerprint: str = "a"
    template: str = "t"
    name: str = "noting"
    kind: str = "transformers"
    seconds: float = 0.0
    fails: frozenset[str] = field(default_factory=frozenset)

    def load(self) -> "NotingCandidate":
        return self

    def answer(self, questions: Sequence[Question], max_new_tokens: int) -> list[Reply | None]:
        replies: list[Reply | None] = []
        with Path(self.log).open("a") as log:
            for each in questions:
                time.sleep(self.seconds)
                log.write(f"{each.id}\n")
                log.flush()
                seen = " ".join(shown.sha256[:8] for shown in each.pictures)
                text = f"{each.turns[-1].text} {seen}"
                replies.append(None if each.id in self.fails else Reply(text, 3, "answered", 0.1))
        return replies

    def close(self) -> None:
        """Hold nothing."""


def asked(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


if __name__ == "__main__":
    log, folder, number = sys.argv[1:]
    candidate = NotingCandidate(log, seconds=0.02)
    task = Task(Made(int(number)), dict.fromkeys(list(CONDITIONS)[:1], candidate), 4, folder)
    list(answer_here(task))
