"""Evaluate a model behind an OpenAI-compatible endpoint; pictures are sent as data URIs."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llavamed.config.endpoint import Endpoint
from llavamed.evaluate.candidate import Answerer, Reply, shares
from llavamed.evaluate.questions import Question
from llavamed.llm.answer import EndpointAnswer
from llavamed.llm.client import EndpointClient, ask
from llavamed.llm.request import Image, Message, Request
from llavamed.processor.image_files import to_png
from llavamed.processor.turns import IMAGE_PLACEHOLDER
from llavamed.storage.fingerprint import fingerprint

_REFUSED_STATUS = {400, 413, 422}
"""HTTP statuses of a request that can never succeed, such as one that is too long."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndpointCandidate:
    """A model by its name at an endpoint, which makes the prompt itself."""

    endpoint: Endpoint
    cache: str
    """URI of the folder with the raw answers, so that none is paid for twice."""
    template: str = "the endpoint's own"
    template_name: None = None
    kind: Literal["endpoint"] = "endpoint"

    @property
    def name(self) -> str:
        """Return the model's name at the endpoint."""
        return self.endpoint.model

    @property
    def fingerprint(self) -> str:
        """Return a hash of the model's name; the weights behind it are unknown."""
        return fingerprint({"endpoint_model": self.endpoint.model})

    def load(self) -> Answerer:
        """Connect to nothing yet. Raises: ConfigError."""
        return EndpointAnswerer(self.endpoint, self.cache)


class EndpointAnswerer:
    """Ask an endpoint, with as many requests at once as it allows and one budget."""

    def __init__(self, endpoint: Endpoint, cache: str) -> None:
        self._runner = asyncio.Runner()
        self._client = EndpointClient(endpoint, cache)

    def answer(self, questions: Sequence[Question], max_new_tokens: int) -> list[Reply | None]:
        """Answer questions; a request that fails for now has no answer.

        Raises:
            EndpointError: The endpoint refuses every request, is down, or costs too much. What
                was answered before is in the cache, and is not paid for again.
        """
        started = time.monotonic()
        requests = [_request(question, max_new_tokens) for question in questions]
        answers = self._runner.run(self._ask(requests))
        tokens = [answers[id(request)].usage.completion_tokens for request in requests]
        seconds = shares(time.monotonic() - started, tokens)
        return [
            _reply(question, answers[id(request)], share)
            for question, request, share in zip(questions, requests, seconds, strict=True)
        ]

    async def _ask(self, requests: list[Request]) -> dict[int, EndpointAnswer]:
        return {id(request): answer async for request, answer in ask(self._client, requests)}

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.__aexit__(None, None, None))
        self._runner.close()


def _request(question: Question, max_new_tokens: int) -> Request:
    pictures = iter(question.pictures)
    messages = []
    for turn in question.turns:
        parts: list[str | Image] = []
        for number, text in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
            if number:
                parts.append(Image(to_png(next(pictures).pixels), "image/png"))
            if text.strip():
                parts.append(text.strip("\n"))
        messages.append(Message(turn.role, tuple(parts)))
    return Request(tuple(messages), max_tokens=max_new_tokens)


def _reply(question: Question, answer: EndpointAnswer, seconds: float) -> Reply | None:
    facts: dict[str, Any] = {"tokens": answer.usage.completion_tokens, "seconds": seconds}
    match answer.outcome:
        case "answered" | "malformed":  # without a schema only an empty answer is malformed
            return Reply(answer.text.strip(), outcome="answered", **facts)
        case "cut_off":
            return Reply(answer.text.strip(), outcome="cut_off", **facts)
        case "refused":
            return Reply(answer.text.strip(), outcome="refused", **facts)
    logger.warning("question %s: %s", question.id, answer.detail)
    if answer.status in _REFUSED_STATUS:
        return Reply("", outcome="refused", **facts)
    return None
