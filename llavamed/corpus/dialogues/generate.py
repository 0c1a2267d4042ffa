"""Ask a language model for dialogues, judge what it says, and write both down.

One process asks: limits of rate and cost hold for one client, and the endpoint takes the time, not
this machine. What resumes is the cache of raw answers. A run that was killed starts again, finds
them, and asks for the rest; so do changed filters, which need nothing else.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence, Set
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
from PIL import Image as Picture

from llavamed.config.corpus import Dialogues
from llavamed.config.endpoint import Endpoint
from llavamed.corpus.dialogues.check import MAX_TOKENS, DialogueScores, check_request
from llavamed.corpus.dialogues.filters import Filters, load_filters
from llavamed.corpus.dialogues.gone import article_of
from llavamed.corpus.dialogues.prompt import (
    DialoguePrompt,
    SpokenTurn,
    WrittenDialogue,
    load_prompt,
    notes,
)
from llavamed.corpus.dialogues.repeats import Repeats
from llavamed.corpus.dialogues.table import DIALOGUE_SCHEMA, DialoguesManifest, Tally
from llavamed.corpus.figures import FigureRow
from llavamed.corpus.samples import SAMPLE_SCHEMA, caption_of, make_sample, remove_others
from llavamed.errors import ConfigError, DataError
from llavamed.llm.answer import AnswerCache, EndpointAnswer
from llavamed.llm.client import EndpointClient, ask
from llavamed.llm.cost import CostEstimate, Usage, cost, estimate
from llavamed.llm.request import Image, Request
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import MANIFEST, Location
from llavamed.storage.manifest import write

Figures = Callable[[], Iterable[FigureRow]]
"""Reads the chosen figures from the start, in the same order each time."""
Row = dict[str, Any]
"""A row of `DIALOGUE_SCHEMA`."""

_SENT_AS_IT_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif"}


@dataclass(frozen=True)
class Places:
    """Where dialogues are written."""

    answers: str
    """URI of the folder of raw answers."""
    dialogues: Location
    samples: Location


@dataclass(frozen=True)
class Writer:
    """Everything besides the figure that a request or a verdict depends on."""

    settings: Dialogues
    prompt: DialoguePrompt
    filters: Filters
    corpus: Location
    """Folder of the corpus, below which the pictures lie."""

    @classmethod
    def load(cls, settings: Dialogues, corpus: Location) -> "Writer":
        """Read the prompt and the rules. Raises: ConfigError."""
        prompt, filters = load_prompt(settings.prompt), load_filters(settings.filters)
        return cls(settings, prompt, filters, corpus)

    def request(self, figure: FigureRow) -> Request:
        """Return the request for a figure's dialogue."""
        settings = self.settings
        image = None
        if settings.send_image:
            image = _image((self.corpus / figure.pictures[0].path).read_bytes())
        return self.prompt.request(
            caption_of(figure),
            figure.mentions,
            figure.modality,
            num_examples=settings.num_examples,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
            image=image,
        )


@dataclass(frozen=True)
class Plan:
    """Work and cost that remain, before the first request."""

    num_figures: int
    num_answered: int
    """Figures whose answer is in the cache."""
    writing: CostEstimate
    checking: CostEstimate | None


def plan_dialogues(figures: Figures, writer: Writer, answers: str) -> Plan:
    """Say what the dialogues take. Nothing is asked.

    Args:
        figures: The chosen ones.
        writer: Makes the requests.
        answers: URI of the folder of raw answers.
    """
    known = AnswerCache(answers).keys()
    endpoint = writer.settings.endpoint
    counts = {"figures": 0, "answered": 0}

    def unanswered() -> Iterator[Request]:
        for figure in figures():
            counts["figures"] += 1
            request = writer.request(figure)
            if request.key(endpoint) in known:
                counts["answered"] += 1
            else:
                yield request

    writing = estimate(unanswered(), endpoint)
    return Plan(counts["figures"], counts["answered"], writing, _checking(figures, writer))


def check_cost(plan: Plan, settings: Dialogues) -> None:
    """Refuse a run that its budget cannot finish, before it costs anything.

    Raises:
        ConfigError: An estimate passes the `max_cost` of its endpoint.
    """
    limits = [("endpoint", settings.endpoint, plan.writing, plan.num_answered)]
    if settings.checker is not None and plan.checking is not None:
        limits.append(("checker", settings.checker, plan.checking, 0))  # it counts all figures
    for key, endpoint, needed, num_free in limits:
        most = endpoint.max_cost
        if most is not None and needed.cost is not None and needed.cost > most:
            fitting = int(needed.num_requests * most / needed.cost)
            raise ConfigError(
                f"dialogues.{key}.max_cost={most:g}: {needed.num_requests} requests may cost "
                f"{needed.cost:.6g}; raise it, or ask about {num_free + fitting} figures "
                "by dialogues.num_dialogues"
            )


async def write_dialogues(figures: Figures, writer: Writer, places: Places) -> DialoguesManifest:
    """Ask about every figure, judge the answers and write them with the samples.

    Raises:
        EndpointError: The endpoint refuses every request, is down or would pass its budget. What
            was answered is kept.
        StorageError: A file cannot be written.
    """
    settings = writer.settings
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(EndpointClient(settings.endpoint, places.answers))
        checker = None
        if settings.checker is not None:
            checker = await stack.enter_async_context(
                EndpointClient(settings.checker, places.answers)
            )

        async def answered() -> AsyncIterator[list[Row]]:
            waiting = iter(figures())
            while part := list(islice(waiting, settings.dialogues_per_file)):
                rows = [row async for row in _written(client, writer, part)]
                if checker is not None:
                    await _check(checker, rows)
                order = {figure.id: number for number, figure in enumerate(part)}
                yield sorted(rows, key=lambda row, order=order: order[row["figure_id"]])  # type: ignore[misc]

        return await _judge_and_write(answered(), writer, places)


def judge_again(writer: Writer, places: Places, left_out: Set[str]) -> DialoguesManifest:
    """Judge the dialogues that are there by the rules as they are now. Nothing is asked.

    Args:
        writer: Has the rules.
        places: Where the dialogues lie.
        left_out: Articles, with or without their version, whose dialogues are dropped.

    Raises:
        DataError: There are none.
    """
    from llavamed.data.sources.files import find_files

    if not places.dialogues.exists():
        raise DataError(
            f"{places.dialogues}: no dialogue was written; run `llavamed corpus dialogues` first"
        )
    files = find_files(str(places.dialogues), ".parquet")

    async def again() -> AsyncIterator[list[Row]]:
        for file in files:
            rows = file.read_table().to_pylist(maps_as_pydicts="strict")
            yield [
                row
                for row in rows
                if left_out.isdisjoint((row["pmcid"], article_of(row["figure_id"])))
            ]

    return asyncio.run(_judge_and_write(again(), writer, places))


async def _judge_and_write(
    parts: AsyncIterator[list[Row]], writer: Writer, places: Places
) -> DialoguesManifest:
    earlier, tally = _examples(writer.prompt), Tally()
    asked: list[str] = []
    names: list[str] = []
    async for rows in parts:
        for row in rows:
            _judge(row, writer.filters, earlier)
        tally.add(rows)
        asked += [row["figure_id"] for row in rows]
        samples = [_sample(row, writer.settings.seed) for row in rows if row["exchanges"]]
        if not names:
            (places.dialogues / MANIFEST).remove()
        names.append(f"{len(names):05d}.parquet")
        table = pa.Table.from_pylist(rows, DIALOGUE_SCHEMA)
        (places.dialogues / f"dialogues-{names[-1]}").write_table(table)
        table = pa.Table.from_pylist(samples, SAMPLE_SCHEMA)
        (places.samples / f"instruct-{names[-1]}").write_table(table)
    remove_others(places.dialogues, "dialogues-", [f"dialogues-{name}" for name in names])
    remove_others(places.samples, "instruct-", [f"instruct-{name}" for name in names])
    checker = writer.settings.checker
    manifest = DialoguesManifest(
        generator=writer.settings.endpoint.model,
        checker=None if checker is None else checker.model,
        prompt_hash=writer.prompt.hash,
        filters_hash=writer.filters.hash,
        selection=fingerprint(asked),
        **tally.facts(),
    )
    write(places.dialogues, manifest)
    return manifest


def _examples(prompt: DialoguePrompt) -> Repeats:
    """Return the examples as earlier dialogues: small models answer with one of them."""
    earlier = Repeats()
    for number, example in enumerate(prompt.examples):
        earlier.add(f"example {number}", " ".join(example.turns), 1.0)
    return earlier


async def _written(
    client: EndpointClient, writer: Writer, figures: Sequence[FigureRow]
) -> AsyncIterator[Row]:
    """Yield a row for each figure, without a verdict, as the answers come."""
    waiting: dict[str, list[FigureRow]] = {}

    def requests() -> Iterator[Request]:
        for figure in figures:
            request = writer.request(figure)
            waiting.setdefault(request.key(client.endpoint), []).append(figure)
            yield request

    async for _, answer in ask(client, requests()):
        figure = waiting[answer.key].pop(0)
        yield _row(figure, answer, client.endpoint, writer.prompt)


def _row(
    figure: FigureRow, answer: EndpointAnswer, endpoint: Endpoint, prompt: DialoguePrompt
) -> Row:
    turns = answer.value.turns if isinstance(answer.value, WrittenDialogue) else []
    return {
        "figure_id": figure.id,
        "pmcid": figure.pmcid,
        "pmid": figure.pmid,
        "licence": figure.licence,
        "modality": figure.modality,
        "image": figure.pictures[0].path,
        "notes": notes(caption_of(figure), figure.mentions),
        "outcome": answer.outcome,
        "detail": answer.detail,
        "turns": [turn.model_dump() for turn in turns],
        "scores": None,
        "generator": endpoint.model,
        "answered_by": answer.model,
        "prompt_hash": prompt.hash,
        "request_hash": answer.key,
        "response_id": answer.response_id,
        "system_fingerprint": answer.system_fingerprint,
        "received_at": answer.received_at,
        "attempts": answer.attempts,
        "is_repaired": answer.is_repaired,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "is_estimated": answer.usage.is_estimated,
        "cost": answer.cost,
        "checker": None,
        "checker_hash": None,
        "checker_cost": None,
    }


async def _check(checker: EndpointClient, rows: list[Row]) -> None:
    """Add the scores of the checking model to the rows that hold a dialogue."""
    waiting: dict[str, list[Row]] = {}

    def requests() -> Iterator[Request]:
        for row in rows:
            if row["turns"]:
                request = check_request([SpokenTurn(**each) for each in row["turns"]], row["notes"])
                waiting.setdefault(request.key(checker.endpoint), []).append(row)
                yield request

    async for _, answer in ask(checker, requests()):
        row = waiting[answer.key].pop(0)
        row["checker"] = checker.endpoint.model
        row["checker_hash"] = answer.key
        row["checker_cost"] = answer.cost
        if isinstance(answer.value, DialogueScores):
            row["scores"] = {key: float(value) for key, value in answer.value.model_dump().items()}


def _judge(row: Row, filters: Filters, earlier: Repeats) -> None:
    """Add the verdict to a row; one without a dialogue has nothing to judge."""
    row |= {"exchanges": [], "findings": [], "filters_hash": filters.hash}
    if not row["turns"]:
        return
    verdict = filters.judge(
        [SpokenTurn(**each) for each in row["turns"]],
        row["notes"],
        name=row["figure_id"],
        scores=row["scores"],
        earlier=earlier,
    )
    row["exchanges"] = [asdict(each) for each in verdict.kept]
    row["findings"] = [asdict(each) for each in verdict.findings]


def _sample(row: Row, seed: int) -> Row:
    return make_sample(
        [(each["question"], each["answer"]) for each in row["exchanges"]],
        seed,
        id=row["figure_id"],
        image=row["image"],
        domain=row["modality"],
        pmid=row["pmid"],
        licence=row["licence"],
    )


def _checking(figures: Figures, writer: Writer) -> CostEstimate | None:
    """Estimate the checks of all dialogues, by the longest that each can be.

    Which are checked already is not known: their words, which decide the request, are not read.
    """
    endpoint = writer.settings.checker
    if endpoint is None:
        return None
    prompts = sum(
        check_request((), notes(caption_of(figure), figure.mentions)).prompt_tokens(endpoint)
        + writer.settings.max_tokens
        for figure in figures()
    )
    count = sum(1 for _ in figures())
    usage = Usage(prompts, 0, MAX_TOKENS * count, is_estimated=True)
    price = None if endpoint.prices is None else cost(usage, endpoint.prices)
    return CostEstimate(count, usage.prompt_tokens, usage.completion_tokens, price)


def _image(data: bytes) -> Image:
    """Return a picture in a form that endpoints read."""
    with Picture.open(io.BytesIO(data)) as picture:
        if picture.format in _SENT_AS_IT_IS:
            return Image(data, _SENT_AS_IT_IS[picture.format])
        encoded = io.BytesIO()
        picture.convert("RGB").save(encoded, format="PNG")
    return Image(encoded.getvalue(), "image/png")
