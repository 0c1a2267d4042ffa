"""A language model judges answers to questions about figures against reference answers.

The judge sees caption, mentions, question and both answers, but not which model gave which. It
reads every pair in both orders, because judges tend to prefer one position. An item counts when
both orders were judged. Its relative score is the candidate's score divided by the reference's, and
the mean over items, in percent, is what LLaVA-Med's table shows.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from llavamed.config.endpoint import Endpoint
from llavamed.errors import EndpointError
from llavamed.evaluate.chat import ChatItem
from llavamed.evaluate.statistics import Estimate, cluster_indices, cluster_key, mean_intervals
from llavamed.llm.answer import EndpointAnswer
from llavamed.llm.client import EndpointClient, ask
from llavamed.llm.cost import NO_TOKENS, Usage
from llavamed.llm.request import Message, Request

Order = Literal["reference_first", "candidate_first"]
ORDERS: tuple[Order, ...] = ("reference_first", "candidate_first")
LEAST, MOST = 1, 10
"""Bounds of a score."""
_HIGHEST_RATIO = MOST / LEAST

_INSTRUCTIONS = (
    "You compare two answers to a question about a biomedical figure. You do not see the figure. "
    "Take its caption and the sentences that refer to it as the truth about it; they were not "
    "shown to those who answered. Judge each answer by how correct it is, how much of the question "
    "it answers, how precise it is, and whether it claims what the truth does not support. Length "
    f"is no merit. Give each answer a whole number from {LEAST} (useless or wrong) to {MOST} "
    "(correct and complete), after one sentence that says why. The place of an answer means "
    "nothing."
)
_QUESTION = (
    "Caption:\n{caption}\n\nSentences that refer to the figure:\n{mentions}\n\n"
    "Question:\n{question}\n\nFirst answer:\n{first}\n\nSecond answer:\n{second}"
)
PROMPT_HASH = hashlib.sha256(f"{_INSTRUCTIONS}\n{_QUESTION}".encode()).hexdigest()[:16]
"""Hash of the prompt; scores of different prompts are not comparable."""

Score = Annotated[int, Field(ge=LEAST, le=MOST, strict=True)]


class Verdict(BaseModel):
    """The verdict of the judge, with its fields in this order."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    first: Score
    second: Score


@dataclass(frozen=True, slots=True)
class Judged:
    """An item as the judge saw it.

    Attributes:
        item: The item.
        outcomes: Outcome of the request in each order.
        reference: The reference's score, mean of both orders. None unless both were judged.
        candidate: The candidate's score, likewise.
        lead: How much higher an answer scores in the first place than in the second.
        reasons: Reasons of the judge by order.
    """

    item: ChatItem
    outcomes: dict[Order, str]
    reference: float | None = None
    candidate: float | None = None
    lead: float | None = None
    reasons: dict[Order, str] = field(default_factory=dict)

    @property
    def relative(self) -> float | None:
        """The candidate's score divided by the reference's, None unless both orders were judged."""
        if self.candidate is None or self.reference is None:
            return None
        return self.candidate / self.reference


@dataclass
class Judgement:
    """All verdicts and what they cost."""

    items: list[Judged]
    models: Counter[str]
    """Number of answers by the model name that the endpoint returned."""
    outcomes: Counter[str]
    """Number of requests by outcome; `malformed` ones broke the schema twice."""
    num_repaired: int
    """Number of requests whose first answer broke the schema."""
    usage: Usage
    cost: float | None
    first_at: str
    """Time of the first answer, ISO 8601 in UTC."""
    last_at: str


@dataclass(frozen=True, slots=True)
class Relative:
    """The relative score of a group of items."""

    name: str
    num_judged: int
    num_items: int
    estimate: Estimate | None
    """None if no item was judged."""


def judge(items: Sequence[ChatItem], endpoint: Endpoint, cache: str, max_tokens: int) -> Judgement:
    """Judge every item in both orders. Cached verdicts are not requested again.

    Args:
        endpoint: The judge, with its limits; `max_cost` bounds what it may cost.
        cache: URI of the folder of raw answers.
        max_tokens: Maximum number of tokens of a verdict.

    Raises:
        EndpointError: The endpoint refuses every request, is down, or `max_cost` is reached.
            Verdicts that came are kept in the cache.
        ConfigError: The environment variable of the key is not set, or `openai` is missing.
    """
    return asyncio.run(_judge(items, endpoint, cache, max_tokens))


def requests_of(items: Iterable[ChatItem], max_tokens: int) -> Iterator[Request]:
    """Yield the two requests of each item, the reference first in the first of them."""
    for item in items:
        for order in ORDERS:
            yield _request(item, order, max_tokens)


async def _judge(
    items: Sequence[ChatItem], endpoint: Endpoint, cache: str, max_tokens: int
) -> Judgement:
    found: dict[Request, EndpointAnswer] = {}
    async with EndpointClient(endpoint, cache) as client:
        # Equal requests are asked once, as items that repeat have the same answer.
        async for request, answer in ask(client, dict.fromkeys(requests_of(items, max_tokens))):
            found[request] = answer
    failures = [answer for answer in found.values() if answer.outcome == "failed"]
    if failures and len(failures) == len(found):
        raise EndpointError(
            f"judge={endpoint.model}: all {len(failures)} requests to {endpoint.url} failed "
            f"({failures[0].detail}); nothing is judged; start the same command again when it "
            "answers"
        )
    pairs = [
        {order: found[_request(item, order, max_tokens)] for order in ORDERS} for item in items
    ]
    answers = list(found.values())
    times = sorted(answer.received_at for answer in answers if answer.received_at)
    return Judgement(
        items=[_judged(item, pair) for item, pair in zip(items, pairs, strict=True)],
        models=Counter(answer.model for answer in answers if answer.model),
        outcomes=Counter(answer.outcome for answer in answers),
        num_repaired=sum(answer.is_repaired for answer in answers),
        usage=sum((answer.usage for answer in answers), NO_TOKENS),
        cost=sum(answer.cost or 0.0 for answer in answers) if endpoint.prices else None,
        first_at=times[0] if times else "",
        last_at=times[-1] if times else "",
    )


def _request(item: ChatItem, order: Order, max_tokens: int) -> Request:
    answers = (item.reference, item.candidate)
    first, second = answers if order == "reference_first" else reversed(answers)
    question = _QUESTION.format(
        caption=item.caption.strip() or "(none)",
        mentions="\n".join(f"- {each.strip()}" for each in item.mentions) or "(none)",
        question=item.question,
        first=first.strip() or "(no answer)",
        second=second.strip() or "(no answer)",
    )
    turns = (Message("system", (_INSTRUCTIONS,)), Message("user", (question,)))
    return Request(turns, max_tokens, temperature=0.0, schema=Verdict)


def _judged(item: ChatItem, answers: Mapping[Order, EndpointAnswer]) -> Judged:
    outcomes: dict[Order, str] = {order: answer.outcome for order, answer in answers.items()}
    verdicts: dict[Order, Verdict] = {
        order: answer.value
        for order, answer in answers.items()
        if answer.outcome == "answered" and isinstance(answer.value, Verdict)
    }
    reasons = {order: verdict.reason for order, verdict in verdicts.items()}
    if len(verdicts) < len(ORDERS):
        return Judged(item, outcomes, reasons=reasons)
    ahead, behind = verdicts["reference_first"], verdicts["candidate_first"]
    return Judged(
        item,
        outcomes,
        reference=(ahead.first + behind.second) / 2,
        candidate=(ahead.second + behind.first) / 2,
        lead=(ahead.first - behind.second + behind.first - ahead.second) / 2,
        reasons=reasons,
    )


def relative_scores(judged: Sequence[Judged]) -> dict[str, list[Relative]]:
    """Return relative scores of all items, by type and by domain, with intervals by image."""
    found = {"all": [_relative("all", judged)]}
    for by, label in (("type", "kind"), ("domain", "domain")):
        groups: dict[str, list[Judged]] = {}
        for each in judged:
            groups.setdefault(getattr(each.item, label), []).append(each)
        if set(groups) != {""}:
            found[by] = [_relative(name, groups[name]) for name in sorted(groups)]
    return found


def _relative(name: str, judged: Sequence[Judged]) -> Relative:
    counted = [(each.relative, each.item) for each in judged if each.relative is not None]
    if not counted:
        return Relative(name, 0, len(judged), None)
    ratios = np.array([[ratio for ratio, _ in counted]], dtype=float)
    images = [cluster_key(item.image, item.id) for _, item in counted]
    bounds = (1 / _HIGHEST_RATIO, _HIGHEST_RATIO)
    [estimate] = mean_intervals(ratios, cluster_indices(images), bounds=bounds)
    return Relative(name, len(counted), len(judged), estimate)
