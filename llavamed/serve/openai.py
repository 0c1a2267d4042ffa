"""OpenAI's chat completions: what a request may say, and the form of answers and errors.

Fields that clients send unasked are accepted at their defaults. What would change an answer and is
not supported is refused, and unknown fields are ignored.
"""

import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from llavamed.errors import RequestError

logger = logging.getLogger(__name__)

MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    # Those of vLLM and others, which people set in the clients of OpenAI, too.
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "best_of": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "echo": (False,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "allowed_token_ids": ([],),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "documents": ([],),
    "typical_p": (1,),
    "mirostat": (0,),
    "prompt_logprobs": (),
    "chat_template": (),
    "grammar": (),
    "regex": (),
    "ebnf": (),
    "json_schema": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
}
"""Fields that change an answer and are not supported, with the values that change nothing."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


class TextPart(_Model):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Model):
    """Where an image is. Its `detail` makes no difference to a tower that sees it at one size."""

    url: str


class ImagePart(_Model):
    """An image. Some clients send its URL without an object around it."""

    type: Literal["image_url"]
    image_url: Annotated[
        ImageUrl, BeforeValidator(lambda given: {"url": given} if isinstance(given, str) else given)
    ]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _as_parts(content: Any) -> Any:
    """Return a text as the list of parts that it stands for."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(_Model):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]


class StreamOptions(_Model):
    """The last chunk of a stream."""

    include_usage: bool | None = None


class ChatRequest(_Model):
    """The body of a request for chat completions."""

    # The constraint makes pydantic refuse half characters, which no refusal could repeat.
    model: Annotated[str, StringConstraints(min_length=1)]
    messages: list[ChatMessage]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[
        list[Annotated[str, StringConstraints(min_length=1)]],
        Field(max_length=MAX_STOPS),
        BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
    ] = Field(default_factory=list)
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def drawing_temperature(self) -> float:
        """Temperature at which tokens are drawn. By default, and where `top_p` is 0, the likeliest
        token is taken."""
        return 0.0 if self.top_p == 0 else self.temperature or 0.0


def parse_request(data: bytes) -> ChatRequest:
    """Read the body of a request.

    Raises:
        RequestError: It is not JSON, lacks a field, or asks for what is not supported.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            "body: is not valid JSON; correct it", code="invalid_json", param=None
        ) from error
    if not isinstance(body, dict):
        raise RequestError("body: must be a JSON object; correct it", code="invalid_json")
    for name, neutral in _DEFAULTS.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise RequestError(
                f"{name}: is not supported; leave it out", code="unsupported", param=name
            )
    # Clients send null for what they leave to the service.
    given = {name: value for name, value in body.items() if value is not None}
    if given.get("top_logprobs") and not given.get("logprobs"):
        raise RequestError(
            "top_logprobs: is only told with logprobs; set logprobs to true",
            code="invalid_value",
            param="top_logprobs",
        )
    if unknown := sorted(given.keys() - _KNOWN):
        logger.debug("fields that are ignored: %r", [name[:40] for name in unknown[:20]])
    try:
        return ChatRequest.model_validate(given)
    except ValidationError as error:
        raise _refuse(error) from None  # the error holds what was sent


def _refuse(error: ValidationError) -> RequestError:
    """Return the first broken rule, without the value that breaks it, which may be an image."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    names = list(fault["loc"])
    if names[2:3] == ["content"]:
        del names[4:5]  # the kind of a part, which pydantic puts there
    key = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names)[1:]
    said = fault["msg"].replace(" after validation", "")
    rule = _RULES.get(fault["type"]) or re.sub("^(Input|String|List) should", "must", said)
    if fault["type"] == "list_type" and names[-1] in {"content", "stop"}:
        rule = "must be a text or a list"
    return RequestError(
        f"{key}: {rule[0].lower()}{rule[1:]}; correct it",
        code="invalid_value",
        param=str(names[0]) if names else None,
    )


_RULES = {
    "missing": "is missing",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a text",
    "string_unicode": "holds half a character (a lone surrogate)",
    "union_tag_not_found": "must have a type, `text` or `image_url`",
    "union_tag_invalid": "must be of type `text` or `image_url`",
}
"""The rules that pydantic tells in terms of Python."""
_KNOWN = {*ChatRequest.model_fields, "max_completion_tokens", *_DEFAULTS}


def error_body(error: RequestError) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status)
    if kind is None:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "param": error.param,
            "code": error.code,
        }
    }


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of a request and of all its answers."""

    prompt_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, int]:
        """Return the counts in OpenAI's form."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class Choice:
    """One answer, or what is new of it."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: Sequence[dict[str, Any]] | None = None
    """The `token_logprob` entry of each token, or None if not requested."""

    def _logprobs(self) -> dict[str, Any] | None:
        return None if self.logprobs is None else {"content": list(self.logprobs), "refusal": None}

    def whole(self) -> dict[str, Any]:
        """Return it as a choice of a whole answer."""
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": self.text, "refusal": None},
            "logprobs": self._logprobs(),
            "finish_reason": self.finish_reason,
        }

    def delta(self) -> dict[str, Any]:
        """Return it as a choice of one chunk of a stream."""
        return {
            "index": self.index,
            "delta": {"content": self.text} if self.text or not self.finish_reason else {},
            "logprobs": self._logprobs(),
            "finish_reason": self.finish_reason,
        }


@dataclass(frozen=True)
class SpelledToken:
    """A token as text, and as bytes: a token may be a part of a character."""

    text: str
    data: list[int] | None


def token_logprob(
    token: SpelledToken, logprob: float, likeliest: Sequence[tuple[SpelledToken, float]]
) -> Any:
    """Return the probability of a token in OpenAI's form."""

    def entry(token: SpelledToken, logprob: float) -> dict[str, Any]:
        return {"token": token.text, "logprob": max(logprob, -9999.0), "bytes": token.data}

    return {**entry(token, logprob), "top_logprobs": [entry(*each) for each in likeliest]}


@dataclass(frozen=True)
class ResponseHead:
    """Fields that all parts of the answer to one request share."""

    id: str
    model: str
    created: int

    @classmethod
    def to(cls, request_id: str, model: str) -> "ResponseHead":
        """Return the reply to a request that has come now."""
        return cls(f"chatcmpl-{request_id}", model, int(time.time()))

    def whole(self, choices: Sequence[Choice], usage: TokenCounts) -> dict[str, Any]:
        """Return the body of a whole answer."""
        return self._body("chat.completion", [each.whole() for each in choices]) | {
            "usage": usage.body()
        }

    def opening(self, index: int) -> dict[str, Any]:
        """Return the first chunk of a stream."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._body("chat.completion.chunk", [choice])

    def chunk(self, choice: Choice) -> dict[str, Any]:
        """Return a further chunk of a stream."""
        return self._body("chat.completion.chunk", [choice.delta()])

    def closing(self, usage: TokenCounts) -> dict[str, Any]:
        """Return the chunk that tells the usage of a stream."""
        return self._body("chat.completion.chunk", []) | {"usage": usage.body()}

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def event(body: dict[str, Any] | str) -> bytes:
    """Return a server-sent event."""
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


DONE = event("[DONE]")
