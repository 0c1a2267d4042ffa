"""Write the questions of a chat evaluation, about figures that are held out of training.

The set has the form of LLaVA-Med's: short questions and one request to describe the image about
each figure, with caption and mentions for a judge, and reference answers that a language model
wrote from these without seeing the image. A folder of it is a benchmark: its pictures are copies,
and it needs the corpus no longer.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from llavamed.config.corpus import ChatQuestions
from llavamed.config.endpoint import Endpoint
from llavamed.config.run import RunConfig
from llavamed.corpus.dialogues.choose import choose
from llavamed.corpus.dialogues.prompt import notes
from llavamed.corpus.figures import FigureRow, iter_kept
from llavamed.corpus.pairs import load_prompts
from llavamed.corpus.samples import caption_of, draw, remove_others
from llavamed.corpus.shipped import load_shipped
from llavamed.errors import ConfigError, DataError, LlavaMedError
from llavamed.llm.answer import EndpointAnswer
from llavamed.llm.client import EndpointClient, ask
from llavamed.llm.cost import CostEstimate, estimate
from llavamed.llm.request import Message, Request, strict
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.lease import Lease, hold_lease
from llavamed.storage.location import MANIFEST, Location, locate
from llavamed.storage.manifest import Manifest, find, write

QUESTIONS = "questions.jsonl"
IMAGES = "images"
CONVERSATION = "conversation"
DESCRIPTION = "detailed_description"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QuestionPrompt(_Part):
    """Instructions, with a place for the number of questions."""

    system: str


class WrittenQuestion(_Part):
    """A question about an image and the answer to it."""

    # Endpoints show the docstrings of an answer's form to the model.

    question: str
    answer: str


class WrittenQuestions(_Part):
    """Questions about an image with their answers, and a description of the image."""

    questions: tuple[WrittenQuestion, ...]
    description: str


class QuestionsManifest(Manifest):
    """A set of questions for a chat evaluation."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "run `llavamed corpus questions` again, which pays for no answer twice"

    generator: str
    """The model as it was asked for."""
    prompt_hash: str
    """Hash of the prompt and of the form of its answer."""
    num_figures: int
    """Figures that were asked about."""
    outcomes: dict[str, int]
    """Figures by how the request ended."""
    types: dict[str, int]
    """Questions by type."""
    domains: dict[str, int]
    """Questions by the modality of the figure."""
    cost: float | None
    """Price of all answers when they were paid for, None without prices."""
    questions_fingerprint: str
    """Hash of the questions."""


def held_out_figures(step: Location, settings: ChatQuestions) -> list[FigureRow]:
    """Return the figures to ask about: the first one of an article, as many of each modality.

    Args:
        step: Folder of the selection.
        settings: Their number and the seed.
    """
    firsts: dict[str, tuple[str, str]] = {}
    for figure in iter_kept(step):
        firsts.setdefault(figure.pmcid, (figure.id, figure.modality))
    names = choose(firsts.values(), settings.num_figures, settings.seed)
    wanted = set(names)
    chosen = {figure.id: figure for figure in iter_kept(step) if figure.id in wanted}
    return [chosen[name] for name in names]


def held_out_articles(config: RunConfig) -> frozenset[str]:
    """Return the articles that training leaves out; none where no questions are written.

    They are those that would be asked about now, and those of the questions that are there already:
    an update of the corpus or another selection may choose others.
    """
    if config.corpus is None or config.corpus.questions is None:
        return frozenset()
    corpus = locate(config.corpus_directory)
    figures = held_out_figures(corpus / "select", config.corpus.questions)
    chosen = frozenset(figure.pmcid for figure in figures)
    if find(QuestionsManifest, corpus / "questions") is None:
        return chosen
    lines = (corpus / "questions" / QUESTIONS).read_bytes().splitlines()
    return chosen.union(json.loads(line)["pmcid"] for line in lines)


class QuestionJob:
    """The questions of one corpus."""

    def __init__(self, config: RunConfig) -> None:
        """Read the settings, the prompt and the figures.

        Raises:
            ConfigError: The settings name no model.
            DataError: No figure is selected.
        """
        self._settings, self._endpoint = _settings(config)
        self._corpus = locate(config.corpus_directory)
        self.folder = self._corpus / "questions"
        self._figures = held_out_figures(self._corpus / "select", self._settings)
        if not self._figures:
            raise DataError(
                f"corpus.directory={self._corpus}: no figure is selected; run `llavamed corpus "
                "select` first, and read its counts of refusals"
            )
        prompt = load_shipped(
            QuestionPrompt,
            None,
            package="llavamed.corpus",
            key="questions",
            verdict="is not a prompt",
            parts="system",
        )
        number = str(self._settings.num_questions)
        self._system = prompt.system.replace("{num_questions}", number)

    def estimate(self) -> CostEstimate:
        """Say what the questions take. Nothing is asked."""
        return estimate(map(self._request, self._figures), self._endpoint)

    def run(self) -> QuestionsManifest:
        """Ask about every figure, and write the questions with the pictures.

        Raises:
            EndpointError: The endpoint refuses every request, is down or would pass its budget.
                What was answered is kept.
            LeaseError: Another process writes the questions of this corpus.
            StorageError: A file cannot be read or written.
        """
        with hold_lease(self.folder, hint="set corpus.directory to another folder") as lease:
            answers = asyncio.run(self._ask())
            return self._write(answers, lease)

    def _request(self, figure: FigureRow) -> Request:
        shown = notes(caption_of(figure), figure.mentions)
        return Request(
            (Message("system", (self._system,)), Message("user", (shown,))),
            max_tokens=self._settings.max_tokens,
            schema=WrittenQuestions,
        )

    async def _ask(self) -> dict[Request, EndpointAnswer]:
        requests = dict.fromkeys(map(self._request, self._figures))
        async with EndpointClient(self._endpoint, str(self._corpus / "answers")) as client:
            found = {request: answer async for request, answer in ask(client, requests)}
        return {request: found[request] for request in requests}  # not in the order they came

    def _write(self, answers: dict[Request, EndpointAnswer], lease: Lease) -> QuestionsManifest:
        rows: list[dict[str, Any]] = []
        for figure in self._figures:
            written = answers[self._request(figure)].value
            if isinstance(written, WrittenQuestions):
                picture = self._copy_picture(figure)
                rows += self._rows(figure, written, picture)
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
        prices = self._endpoint.prices
        manifest = QuestionsManifest(
            generator=self._endpoint.model,
            prompt_hash=fingerprint([self._system, strict(WrittenQuestions)]),
            num_figures=len(self._figures),
            outcomes=dict(Counter(answer.outcome for answer in answers.values())),
            types=dict(Counter(row["type"] for row in rows)),
            domains=dict(Counter(row["domain"] for row in rows)),
            cost=sum(answer.cost or 0.0 for answer in answers.values()) if prices else None,
            questions_fingerprint=hashlib.sha256(text).hexdigest()[:16],
        )
        lease.check()
        (self.folder / MANIFEST).remove()
        (self.folder / QUESTIONS).write_bytes(text)
        remove_others(self.folder / IMAGES, "", {row["image"] for row in rows})
        write(self.folder, manifest)
        return manifest

    def _copy_picture(self, figure: FigureRow) -> str:
        """Copy the picture of a figure next to the questions, and return its name there."""
        source = self._corpus / figure.pictures[0].path
        name = f"{figure.id}.{figure.pictures[0].format or 'png'}"
        (self.folder / IMAGES / name).write_bytes(source.read_bytes())
        return name

    def _rows(
        self, figure: FigureRow, written: WrittenQuestions, picture: str
    ) -> Iterator[dict[str, Any]]:
        prompts = load_prompts()["detailed"]
        describe = prompts[draw(self._settings.seed, figure.id, "description", len(prompts))]
        asked: Sequence[tuple[str, str, str]] = [
            *((each.question, each.answer, CONVERSATION) for each in written.questions),
            (describe, written.description, DESCRIPTION),
        ]
        for number, (question, answer, kind) in enumerate(asked):
            if question.strip() and answer.strip():
                yield {
                    "id": f"{figure.id}-{number}",
                    "image": picture,
                    "question": question.strip(),
                    "reference": answer.strip(),
                    "caption": caption_of(figure),
                    "mentions": list(figure.mentions),
                    "domain": figure.modality,
                    "type": kind,
                    "pmcid": figure.pmcid,
                    "licence": figure.licence,
                }


def _settings(config: RunConfig) -> tuple[ChatQuestions, Endpoint]:
    corpus = config.corpus
    settings = None if corpus is None else corpus.questions
    if corpus is None or settings is None:
        raise ConfigError(
            "corpus.questions: must be set; give it num_figures, and a language model by "
            "corpus.questions.endpoint.url and .model"
        )
    endpoint = settings.endpoint or (corpus.dialogues.endpoint if corpus.dialogues else None)
    if endpoint is None:
        raise ConfigError(
            "corpus.questions.endpoint: must be set where there are no dialogues; name a language "
            "model by its url and model"
        )
    return settings, endpoint
