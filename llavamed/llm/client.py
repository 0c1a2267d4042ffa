"""Ask an OpenAI-compatible endpoint: each request is paid for once, and fails as a row.

The `openai` package carries the requests and is known to this file only. Its own retries are off:
they know no budget and do not hold the other requests back. The headers in which it describes this
machine are not sent, nor the key and accounts that it takes from variables of its own.

Three things go wrong. What may pass (429, 5xx, a cut connection) is tried again. What is wrong
with one request, or does not pass, is an `Answer` whose outcome is `failed`. What is wrong with
all requests (the key, the model's name, the budget, an endpoint that is down) is an EndpointError.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from llavamed.config.endpoint import Endpoint
from llavamed.errors import ConfigError, EndpointError
from llavamed.llm.answer import (
    AnswerCache,
    CacheEntry,
    EndpointAnswer,
    entry_of,
    is_completion,
    is_given_up,
    read_answer,
    repair_of,
    usage_of,
)
from llavamed.llm.cost import Budget, cost
from llavamed.llm.pace import Pace, retry_after_seconds
from llavamed.llm.request import Message, Request

WAIT = wait_random_exponential(multiplier=1, max=60)
"""Between attempts: any time from 0 to 1, 2, 4, ... 60 seconds, so that clients come one by one."""
MOST_WAIT_SECONDS = 600.0
"""An endpoint that asks for a longer wait has failed."""
DOWN_AFTER = 20
"""Requests in a row that fail, with no answer between, show that the endpoint is down."""

_OF_THIS_MACHINE = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
_UNSENT_HEADERS = [
    *(f"X-Stainless-{name}" for name in _OF_THIS_MACHINE),
    *("OpenAI-Organization", "OpenAI-Project"),
]
"""What `openai` sends about this machine, and reads from variables for another endpoint."""
_MAY_PASS = {408, 409, 425, 429}
_NO_QUOTA = ("insufficient_quota", "exceeded_current_quota_error", "usage_limit_reached")
"""Codes and types by which OpenAI, Moonshot and others mark a 429 that waiting does not end."""
_OF_ALL_REQUESTS: dict[int | str, str] = {
    401: "check the key in the environment variable that api_key_env names",
    402: "the account cannot pay; add to its balance",
    403: "check what the key and its account allow",
    404: "check url, which ends in the API's version, and model",
    **dict.fromkeys(_NO_QUOTA, "add to the account's balance or limits"),
    "unsupported_parameter": "where that is max_tokens, set limit_key to max_completion_tokens; "
    "where that is temperature, set takes_temperature to false",
    "unsupported_value": "where that is temperature, set takes_temperature to false",
}
_FILTER_CODES = frozenset(
    {"content_filter", "content_policy_violation", "data_inspection_failed", "invalid_prompt"}
)
"""Codes by which OpenAI, Azure and Alibaba refuse a prompt that a filter has stopped."""
_MESSAGE_LENGTH = 300

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _TryError(Exception):
    """One attempt without an answer.

    Attributes:
        detail: What went wrong, in words.
        code: The endpoint's or our word for it.
        status: HTTP status, None where no answer came.
        wait_seconds: How long the endpoint asks to wait.
        may_pass: The same may succeed later.
        is_lost: The endpoint may have answered, and be paid.
    """

    detail: str
    code: str | None
    status: int | None = None
    wait_seconds: float = 0.0
    may_pass: bool = True
    is_lost: bool = False
    attempts: int = 1


class EndpointClient:
    """One endpoint, its limits and the cache of its answers. Use it as an async context manager.

    Any number of tasks of one event loop may ask it. Equal requests of one client are paid for
    once; two clients that ask the same at the same moment both pay.
    """

    def __init__(self, endpoint: Endpoint, cache: str) -> None:
        """Connect to nothing yet.

        Args:
            endpoint: Where to ask, within which limits.
            cache: URI of the folder of raw answers. Any number of clients may share it.

        Raises:
            ConfigError: The environment variable of the key is not set, or `openai` is missing.
        """
        try:
            import openai
        except ImportError as error:
            raise ConfigError(
                f"url={endpoint.url}: needs the package openai, which is not installed; install "
                "llavamed[llm]"
            ) from error
        self.endpoint = endpoint
        self.budget = Budget(endpoint)
        self._cache = AnswerCache(cache)
        self._key = _api_key(endpoint)
        self._headers = {
            **dict.fromkeys(_UNSENT_HEADERS, openai.Omit()),
            "Authorization": f"Bearer {self._key}" if self._key else openai.Omit(),
        }
        self._api = openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=endpoint.timeout_seconds,
        )
        self._pace = Pace(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._slots = asyncio.Semaphore(endpoint.max_in_flight)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failed_in_a_row = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._api.close()

    async def answer(self, request: Request) -> EndpointAnswer:
        """Return the answer to one request: from the cache, or asked for and kept there.

        An answer that breaks the request's schema is shown to the model once, to be repaired.

        Raises:
            EndpointError: The endpoint refuses every request, is down, or `max_cost` is reached.
            StorageError: The cache cannot be read or written.
        """
        first = await self._answer_once(request)
        if first.outcome != "malformed" or request.schema is None:
            return first
        complaint = (
            f"That is not the JSON object that was asked for ({first.detail}). "
            "Answer again with the JSON object and nothing else."
        )
        # Endpoints refuse an empty turn.
        shown = Message("assistant", (first.text if first.text.strip() else "{}",))
        turns = (*request.messages, shown, Message("user", (complaint,)))
        second = await self._answer_once(replace(request, messages=turns), repair_of(first.key))
        return replace(
            second,
            key=first.key,
            attempts=first.attempts + second.attempts,
            usage=first.usage + second.usage,
            cost=None if first.cost is None else first.cost + (second.cost or 0.0),
            is_cached=first.is_cached and second.is_cached,
            is_repaired=True,
        )

    async def _answer_once(self, request: Request, key: str = "") -> EndpointAnswer:
        """Ask without repair. Equal requests wait for one another, so that one of them is sent."""
        key = key or request.key(self.endpoint)
        async with self._locks.setdefault(key, asyncio.Lock()):
            entry = await asyncio.to_thread(self._cache.read, key)
            is_cached = entry is not None
            if entry is None:
                try:
                    entry = await self._ask(request, key)
                except _TryError as failure:
                    return self._failed(key, failure)
        return read_answer(key, entry, request, self.endpoint, is_cached=is_cached)

    async def _ask(self, request: Request, key: str) -> CacheEntry:
        """Return an answer that is kept in the cache, after as many attempts as it takes."""
        body = request.body(self.endpoint)
        attempts = 0

        async def attempt() -> CacheEntry:
            nonlocal attempts
            attempts += 1
            async with self._slots:
                completion = await self._send_within_limits(request, body)
                entry = entry_of(
                    completion, received_at=datetime.now(UTC).isoformat(), attempts=attempts
                )
                await asyncio.to_thread(self._cache.write, key, entry)
            self._failed_in_a_row = 0
            return entry

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, _TryError) and error.may_pass),
            stop=stop_after_attempt(self.endpoint.attempts),
            wait=lambda state: _failure(state).wait_seconds + WAIT(state),
            before_sleep=self._warn,
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except _TryError as failure:
            failure.attempts = attempts
            raise

    async def _send_within_limits(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        """Send the request once it may go, and count what it costs."""
        tokens = request.prompt_tokens(self.endpoint) + request.max_tokens
        await asyncio.sleep(self._pace.take(tokens))
        reserved = self.budget.reserve(request)
        spent = 0.0
        try:
            completion = await self._send(body)
            usage, prices = usage_of(completion, request, self.endpoint), self.endpoint.prices
            # Where the endpoint does not count, what was set aside is the only bound.
            spent = cost(usage, prices) if prices and not usage.is_estimated else reserved
            return completion
        except _TryError as failure:
            spent = reserved if failure.is_lost else 0.0
            self._pace.hold(failure.wait_seconds)
            raise
        finally:
            self.budget.settle(reserved, spent)

    async def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return the chat completion, as it came."""
        import openai

        try:
            async with asyncio.timeout(self.endpoint.timeout_seconds):
                response = await self._api.chat.completions.with_raw_response.create(
                    **body, extra_headers=self._headers
                )
        except openai.APIStatusError as error:
            raise self._refusal(error) from error
        except (openai.APITimeoutError, TimeoutError) as error:
            detail = f"no complete answer in {self.endpoint.timeout_seconds:g} s"
            raise _TryError(detail, "timeout", is_lost=True) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            was_sent = type(cause).__name__ != "ConnectError"
            detail = f"{type(cause).__name__}: {cause}"
            raise _TryError(detail, "connection", is_lost=was_sent) from error
        except UnicodeEncodeError as error:
            raise _TryError(f"its text is not Unicode: {error}", "text", may_pass=False) from error
        try:
            completion = json.loads(response.content)
        except ValueError:
            completion = None
        if not is_completion(completion):
            detail = f"the body is not a chat completion: {self._without_key(response.text)}"
            raise _TryError(detail, "body", status=200, is_lost=True)
        if is_given_up(completion):
            raise _TryError("the engine gave the answer up", "given_up", status=200, is_lost=True)
        return dict(completion)

    def _refusal(self, error: Any) -> "_TryError | EndpointError":
        """Read a response whose status is an error, an `openai.APIStatusError`."""
        status = error.status_code
        body = error.body if isinstance(error.body, dict) else {}
        metadata = body.get("metadata")  # OpenRouter's: what is flagged, what its provider said
        metadata = metadata if isinstance(metadata, dict) else {}
        said = metadata.get("raw") or body.get("message") or error.response.text
        detail = self._without_key(str(said))
        if error.code in _FILTER_CODES or "flagged_input" in metadata:
            return _TryError(detail, "content_filter", status, may_pass=False)
        marks = (status, str(error.code), str(error.type))
        advice = next((_OF_ALL_REQUESTS[each] for each in marks if each in _OF_ALL_REQUESTS), "")
        if advice:
            return EndpointError(
                f"url={self.endpoint.url}: model {self.endpoint.model} answers {status} ({detail}) "
                f"to every request; {advice}"
            )
        may_pass = status >= 500 or status in _MAY_PASS
        wait = retry_after_seconds(error.response.headers) if may_pass else 0.0
        if wait > MOST_WAIT_SECONDS:
            detail = f"asks to wait {wait:.0f} s, longer than {MOST_WAIT_SECONDS:.0f}; {detail}"
            wait, may_pass = 0.0, False
        return _TryError(detail, error.code, status, wait, may_pass)

    def _without_key(self, text: str) -> str:
        """Return what an endpoint said in one short line; some repeat the key."""
        line = " ".join(text.split())
        return (line.replace(self._key, "***") if self._key else line)[:_MESSAGE_LENGTH]

    def _failed(self, key: str, failure: _TryError) -> EndpointAnswer:
        """Return the row of a request that failed, unless too many do."""
        is_filtered = failure.code == "content_filter"  # which shows that the endpoint is up
        self._failed_in_a_row += not is_filtered
        if self._failed_in_a_row >= DOWN_AFTER:
            raise EndpointError(
                f"url={self.endpoint.url}: {self._failed_in_a_row} requests in a row failed, the "
                f"last by: {failure.detail}; check the endpoint and start again, which pays for no "
                "answer twice"
            )
        return EndpointAnswer(
            key=key,
            outcome="refused" if is_filtered else "failed",
            detail=failure.detail,
            status=failure.status,
            code=failure.code,
            attempts=failure.attempts,
        )

    def _warn(self, state: RetryCallState) -> None:
        failure = _failure(state)
        logger.warning(
            "%s: %s: attempt %d of %d failed, the next comes in %.1f s",
            *(self.endpoint.url, failure.detail),
            *(state.attempt_number, self.endpoint.attempts, state.upcoming_sleep),
        )


async def ask(
    client: EndpointClient, requests: Iterable[Request]
) -> AsyncIterator[tuple[Request, EndpointAnswer]]:
    """Yield each request with its answer, as they come, and keep none of them.

    Args:
        client: Whom to ask.
        requests: Read as places become free, so that any number of them needs no memory.

    Raises:
        EndpointError: See `Client.answer`. What was being asked is answered and yielded before.
    """
    waiting = iter(requests)
    running: dict[asyncio.Task[EndpointAnswer], Request] = {}
    stop: EndpointError | None = None
    # Twice as many as may be in flight: some of them wait for another attempt or for the cache.
    width = 2 * client.endpoint.max_in_flight
    try:
        while True:
            while stop is None and len(running) < width:
                if (request := next(waiting, None)) is None:
                    break
                running[asyncio.create_task(client.answer(request))] = request
            if not running:
                break
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                request = running.pop(task)
                if isinstance(error := task.exception(), EndpointError):
                    stop = stop or error
                else:
                    yield request, task.result()
        if stop is not None:
            raise stop
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _api_key(endpoint: Endpoint) -> str | None:
    """Return the key that the environment holds, None where the endpoint needs none."""
    if endpoint.api_key_env is None:
        return None
    if not (key := os.environ.get(endpoint.api_key_env, "").strip()):
        raise ConfigError(
            f"api_key_env={endpoint.api_key_env}: this environment variable is not set; set it to "
            "the key, or remove api_key_env where the endpoint needs none"
        )
    return key


def _failure(state: RetryCallState) -> _TryError:
    assert state.outcome is not None
    failure = state.outcome.exception()
    assert isinstance(failure, _TryError)
    return failure
