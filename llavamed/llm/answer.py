"""What an endpoint answers: kept as it came, and read into one of five outcomes.

Reading is pure, so that answers are read again, by other rules, without being paid for again.
"""

import posixpath
import re
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ValidationError

from llavamed.config.endpoint import Endpoint
from llavamed.llm.cost import NO_TOKENS, Usage, cost
from llavamed.llm.request import BYTES_PER_TOKEN, Request
from llavamed.storage.location import Location, locate

Outcome = Literal["answered", "refused", "cut_off", "malformed", "failed"]
"""`refused` by the model or a filter; `cut_off` by `max_tokens`; `malformed` is empty or breaks its
schema; `failed` never came."""

GIVEN_UP = frozenset({"abort", "error", "insufficient_system_resource"})
"""Reasons for which vLLM, Mistral and DeepSeek end an answer that is not whole."""
_CUT_OFF = frozenset({"length", "model_length", "max_tokens"})
_FILTERED = frozenset(
    {"content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "refusal"}
)
"""Reasons of filters; Gemini's endpoint passes its own on, in capitals or after a colon."""

_THOUGHT = "</think>"
"""End of a model's thoughts, which an endpoint without a parser for them leaves in the answer."""
_FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class EndpointAnswer:
    """One row: how a request ended.

    Attributes:
        key: Hash of the request, by which the raw answer is kept.
        outcome: How it ended.
        text: What the model said, also where that is refused, cut off or malformed.
        value: The text as an instance of the request's schema, where it has one and fits.
        detail: Why there is no usable answer, in words.
        status: HTTP status of the last attempt, None where no answer came.
        code: The endpoint's or our word for a failure.
        attempts: Number of requests sent for it, now or when it was first asked.
        usage: Tokens of the answer, and of the one that it repairs.
        cost: Price of these tokens when they were paid for, None without prices.
        is_cached: The answer was there, and nothing was sent now.
        is_repaired: The first answer was malformed, and the model was asked once more.
        model: The model's name as the endpoint answered it.
        system_fingerprint: The endpoint's word for its state, where it has one.
        response_id: The endpoint's name for the answer.
        received_at: Time of the answer, ISO 8601 in UTC.
    """

    key: str
    outcome: Outcome
    text: str = ""
    value: BaseModel | None = None
    detail: str = ""
    status: int | None = None
    code: str | None = None
    attempts: int = 0
    usage: Usage = NO_TOKENS
    cost: float | None = None
    is_cached: bool = False
    is_repaired: bool = False
    model: str | None = None
    system_fingerprint: str | None = None
    response_id: str | None = None
    received_at: str | None = None


class CacheEntry(TypedDict):
    """What the cache keeps of an answer: the answer as it came, and how it came."""

    completion: dict[str, Any]
    received_at: str
    attempts: int
    is_batch: bool


class AnswerCache:
    """Raw answers below a folder at any URI, one file each, named by the hash of the request."""

    def __init__(self, folder: str) -> None:
        self._folder = locate(folder)

    def read(self, key: str) -> CacheEntry | None:
        """Return the entry, or None when there is none. Raises: StorageError."""
        try:
            entry: CacheEntry = self._place(key).read_json()
        except FileNotFoundError:
            return None
        return entry

    def write(self, key: str, entry: CacheEntry) -> None:
        """Keep an entry, whole or not at all. Raises: StorageError."""
        self._place(key).write_json(entry)

    def keys(self) -> set[str]:
        """Return the keys of all entries, by one listing. Raises: StorageError."""
        names = (posixpath.basename(path) for path in self._folder.list_files())
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    def remove(self, key: str) -> None:
        """Forget an entry and its repair, if there are any. Raises: StorageError."""
        for each in (key, repair_of(key)):
            self._place(each).remove()

    def _place(self, key: str) -> Location:
        return self._folder / key[:2] / f"{key}.json"


def repair_of(key: str) -> str:
    """Return the key of the answer by which the model repaired another."""
    return f"{key}-repair"


def entry_of(
    completion: dict[str, Any], *, received_at: str, attempts: int, is_batch: bool = False
) -> CacheEntry:
    """Return the entry of an answer."""
    return {
        "completion": completion,
        "received_at": received_at,
        "attempts": attempts,
        "is_batch": is_batch,
    }


def is_completion(body: Any) -> bool:
    """Whether the body of a response is a chat completion with at least one choice."""
    try:
        return isinstance(body["choices"][0]["message"], dict)
    except (TypeError, KeyError, IndexError):
        return False


def is_given_up(completion: dict[str, Any]) -> bool:
    """Whether an engine ended an answer without finishing it, as vLLM says with status 200."""
    return completion["choices"][0].get("finish_reason") in GIVEN_UP


def read_answer(
    key: str, entry: CacheEntry, request: Request, endpoint: Endpoint, *, is_cached: bool
) -> EndpointAnswer:
    """Read an entry of the cache as the answer to its request."""
    completion = entry["completion"]
    choice = completion["choices"][0]
    text = _said(choice["message"], request)
    refusal = _text(choice["message"].get("refusal"))
    usage = usage_of(completion, request, endpoint)
    reason = str(choice.get("finish_reason")).lower().partition(":")[0]
    outcome: Outcome = "answered"
    value, detail = None, ""
    if refusal or reason in _FILTERED:
        outcome, detail = "refused", refusal or "the endpoint's content filter stopped it"
    elif reason in _CUT_OFF:
        outcome, detail = "cut_off", f"reached max_tokens={request.max_tokens}"
    elif not text.strip():
        outcome, detail = "malformed", "the answer is empty"
    elif request.schema:
        try:
            value = parse(text, request.schema)
        except ValidationError as error:
            outcome, detail = "malformed", problems(error)
    prices = endpoint.prices
    return EndpointAnswer(
        key=key,
        outcome=outcome,
        text=text or refusal,
        value=value,
        detail=detail,
        status=200,
        attempts=entry["attempts"],
        usage=usage,
        cost=None if prices is None else cost(usage, prices, is_batch=entry["is_batch"]),
        is_cached=is_cached,
        model=completion.get("model"),
        system_fingerprint=completion.get("system_fingerprint"),
        response_id=completion.get("id"),
        received_at=entry["received_at"],
    )


def parse(text: str, schema: type[BaseModel]) -> BaseModel:
    """Return the text as an instance of the schema.

    Thoughts before it, a fence of Markdown around it, and words outside of the fence are left out.

    Raises:
        ValidationError: It is not JSON, or breaks the schema.
    """
    if not text.lstrip().startswith("{"):
        text = text.rpartition(_THOUGHT)[2]
        fenced = _FENCED.search(text)
        text = fenced[1] if fenced else text
    return schema.model_validate_json(text)


def problems(error: ValidationError) -> str:
    """Say in one line what is wrong with an answer, without its words."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'the answer'}: {each['msg']}"
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    )


def usage_of(completion: dict[str, Any], request: Request, endpoint: Endpoint) -> Usage:
    """Return the tokens that the endpoint counted, or an estimate where it counted none."""
    said = completion.get("usage")
    if isinstance(said, dict):
        prompt, answer = said.get("prompt_tokens"), said.get("completion_tokens")
        if isinstance(prompt, int) and isinstance(answer, int):
            details = said.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else None
            return Usage(prompt, cached if isinstance(cached, int) else 0, answer)
    text = _text(completion["choices"][0]["message"].get("content"))
    length = -(-len(text.encode()) // BYTES_PER_TOKEN)
    return Usage(request.prompt_tokens(endpoint), 0, length, is_estimated=True)


def _said(message: dict[str, Any], request: Request) -> str:
    """Return the text of a message.

    An endpoint that constrains the answer before a model has ended its thoughts has it among them.
    """
    text = _text(message.get("content"))
    if request.schema and not text.strip():
        thoughts = (_text(message.get(name)) for name in ("reasoning_content", "reasoning"))
        text = next((each for each in thoughts if each.lstrip().startswith("{")), text)
    return text


def _text(content: Any) -> str:
    """Return the text of a message. Half a pair of surrogates, which JSON can hold, becomes `?`."""
    if isinstance(content, list):
        content = "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""
