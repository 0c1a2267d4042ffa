"""The backends of the service: the model of this process, or an engine such as vLLM.

Both say the same: what is new of each answer, and how many tokens it took. So the rest of the
service (tokens, limits, errors, metrics, page) does not know which of them it talks to.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from llavamed.config.serving import Serving
from llavamed.errors import RequestError
from llavamed.llm.answer import GIVEN_UP
from llavamed.llm.request import Image, Message
from llavamed.model.continuation import Sampling, TokenLogprobs
from llavamed.model.generation import Generator
from llavamed.serve.engine import BatchEngine, PartialAnswer
from llavamed.serve.openai import ChatRequest, Choice, TokenCounts, token_logprob
from llavamed.serve.prompt import encode_messages
from llavamed.serve.spelling import Spelling

ReadMessages = Callable[[], Awaitable[list[Message]]]
"""Reads the messages of a request and fetches their images. It is called once there is room for the
request, so that a full queue fetches nothing."""
_SEED_RANGE = 2**63
_LONGEST_LINE = 2**22
"""Bytes of the longest line of a stream that is read: aiohttp reads up to twice its buffer."""


@dataclass(frozen=True)
class Update:
    """The new parts of the answers to one request."""

    choices: Sequence[Choice]
    usage: TokenCounts
    """Tokens so far."""


class Backend(Protocol):
    """Answers requests."""

    def answer(self, request: ChatRequest, read: ReadMessages) -> AsyncGenerator[Update]:
        """Answer a request, whose messages `read` returns. Raises: RequestError."""
        ...

    def load(self) -> tuple[int, int]:
        """Return the requests that wait, and the answers that are being generated."""
        ...

    def check(self) -> None:
        """Raise RequestError if requests cannot be answered."""
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...


class LocalBackend:
    """Answers with a model in this process."""

    def __init__(self, generator: Generator, serving: Serving) -> None:
        self._generator, self._serving = generator, serving
        self._spelling = Spelling(generator.tokenizer)
        self._engine = BatchEngine(
            generator, max_batch_size=serving.max_batch_size, max_waiting=serving.max_waiting
        )

    async def answer(self, request: ChatRequest, read: ReadMessages) -> AsyncGenerator[Update]:
        """Answer a request; see `Backend`."""
        with self._engine.place(request.n or 1):
            prompt, room = await asyncio.to_thread(
                encode_messages,
                await read(),
                self._generator,
                max_new_tokens=request.max_tokens,
                default=self._serving.limits.default_max_tokens,
            )
        shown = [""] * (request.n or 1)
        said = [0] * len(shown)
        ended: set[int] = set()
        async for news in self._engine.answer(prompt, _samplings(request, room)):
            usage = TokenCounts(len(prompt.input_ids), sum(each.num_tokens for each in news))
            choices = []
            for each in news:
                if each.index in ended:
                    continue
                choices.append(self._choice(each, shown[each.index], said[each.index]))
                shown[each.index], said[each.index] = each.text, len(each.logprobs)
                if each.finish_reason is not None:
                    ended.add(each.index)
            yield Update(choices, usage)

    def load(self) -> tuple[int, int]:
        """Return the requests that wait, and the answers that are being generated."""
        return self._engine.num_waiting, self._engine.batch_size

    def check(self) -> None:
        """Raise RequestError if the model has stopped."""
        if not self._engine.is_alive:
            raise RequestError(
                "model: has stopped, or fails every request; start the service again",
                code="model_stopped",
                status=503,
            )

    async def close(self) -> None:
        """End the thread of the model."""
        await asyncio.to_thread(self._engine.close)

    def _choice(self, each: PartialAnswer, shown: str, said: int) -> Choice:
        logprobs = [self._logprob(found) for found in each.logprobs[said:]]
        return Choice(
            each.index, each.text[len(shown) :], each.finish_reason, logprobs if logprobs else None
        )

    def _logprob(self, found: TokenLogprobs) -> Any:
        spell = self._spelling.spell
        likeliest = [(spell(token), logprob) for token, logprob in found.likeliest]
        return token_logprob(spell(found.token), found.logprob, likeliest)


def _samplings(request: ChatRequest, max_new_tokens: int) -> list[Sampling]:
    """Return how each answer is drawn. Without a temperature, it is the likeliest one."""
    return [
        Sampling(
            max_new_tokens,
            temperature=request.drawing_temperature,
            top_p=request.top_p or 1.0,
            seed=None if request.seed is None else (request.seed + number) % _SEED_RANGE,
            stop=tuple(request.stop),
            num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
        for number in range(request.n or 1)
    ]


class EngineBackend:
    """Passes requests on to an OpenAI-compatible engine. Images are sent as data, never as URLs."""

    def __init__(self, serving: Serving, key: str | None) -> None:
        assert serving.engine_url is not None
        self._serving, self._url = serving, serving.engine_url.rstrip("/")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None
        self._num_running = 0

    async def answer(self, request: ChatRequest, read: ReadMessages) -> AsyncGenerator[Update]:
        """Answer a request; see `Backend`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(sock_read=self._serving.engine_timeout_seconds),
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0),  # `max_waiting` is the limit
                read_bufsize=_LONGEST_LINE // 2,
            )
        if self._num_running >= self._serving.max_batch_size + self._serving.max_waiting:
            raise RequestError(
                f"queue: {self._num_running} requests are being answered already; try again later",
                code="queue_full",
                status=429,
                retry_after=2,
            )
        self._num_running += 1
        try:
            body = self._body(request, await read())
            async with self._session.post(f"{self._url}/chat/completions", json=body) as answer:
                if answer.status != 200:
                    raise await _refusal(answer)
                usage, ended = TokenCounts(0, 0), set[int]()
                async for chunk in _chunks(answer):
                    usage, choices = _usage(chunk) or usage, _choices(chunk)
                    if GIVEN_UP & {each.finish_reason for each in choices}:
                        raise _failed("gave an answer up")
                    ended |= {each.index for each in choices if each.finish_reason is not None}
                    yield Update(choices, usage)
                if len(ended) < (request.n or 1):
                    raise _failed("ended in the middle of an answer")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise RequestError(
                f"engine_url: the engine cannot be reached: {type(error).__name__}; try later",
                code="engine_unreachable",
                status=503,
                retry_after=5,
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _failed("sends something that is not an answer") from error
        finally:
            self._num_running -= 1

    def load(self) -> tuple[int, int]:
        """Return no queue, which the engine has itself, and the requests it is answering."""
        return 0, self._num_running

    def check(self) -> None:
        """Do nothing: a request finds out whether the engine answers."""

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _body(self, request: ChatRequest, messages: list[Message]) -> dict[str, Any]:
        names = {"seed", "n", "stop", "logprobs", "top_logprobs"} | (
            {"top_p"} if request.top_p else set()
        )
        body = request.model_dump(exclude_none=True, include=names)
        limit = request.max_tokens or self._serving.limits.default_max_tokens
        return body | {
            "model": self._serving.name,
            "messages": [_message(each) for each in messages],
            "max_tokens": limit,
            "temperature": request.drawing_temperature,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }


def _message(message: Message) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": _data_url(part)}}
        if isinstance(part, Image)
        else {"type": "text", "text": part}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _data_url(image: Image) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def _choices(chunk: dict[str, Any]) -> list[Choice]:
    return [
        Choice(
            int(choice["index"]),
            (choice.get("delta") or {}).get("content") or "",
            choice.get("finish_reason"),
            (choice.get("logprobs") or {}).get("content"),
        )
        for choice in chunk.get("choices", [])
    ]


def _usage(chunk: dict[str, Any]) -> TokenCounts | None:
    told = chunk.get("usage")
    return TokenCounts(told["prompt_tokens"], told["completion_tokens"]) if told else None


async def _chunks(answer: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any]]:
    """Yield the chunks of a stream, which some engines end without `[DONE]`.

    Raises:
        RequestError: The engine reports an error.
    """
    async for line in answer.content:
        text = line.decode().strip()
        if text == "data: [DONE]":
            return
        if text.startswith("data:"):
            chunk = json.loads(text.removeprefix("data:"))
            if "error" in chunk:
                raise _failed("failed in the middle of an answer")
            yield chunk


def _failed(how: str) -> RequestError:
    return RequestError(
        f"engine_url: the engine {how}; try again", code="engine_failed", status=502
    )


async def _refusal(answer: aiohttp.ClientResponse) -> RequestError:
    """Return the refusal of the engine as ours. What no client can change has status 502."""
    code = "engine_refused"
    try:
        body = await answer.json()
        error = body.get("error", body)  # older engines have its fields at the top
        # An engine may quote the image that it cannot read.
        message = re.sub(r"data:[^\s'\"]{99,}", "data:...", str(error["message"]))[:500]
        if isinstance(error.get("code"), str):  # vLLM repeats the status there
            code = error["code"]
    except (aiohttp.ClientError, ValueError, LookupError, TypeError, AttributeError):
        message = f"status {answer.status}"
    status = answer.status if answer.status in {400, 413, 422, 429, 503} else 502
    return RequestError(
        f"engine_url: the engine refuses the request: {message}; correct it",
        code=code,
        status=status,
        retry_after=2 if status in {429, 503} else None,
    )
