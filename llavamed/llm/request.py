"""A question to a language model as a value, and the hash by which its answer is kept.

What is hashed is what is sent, with every image as its own hash: whatever can change an answer
changes the key. The address of the endpoint is not part of it, so that a model may move.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from llavamed.config.endpoint import Endpoint

BYTES_PER_TOKEN = 4
"""Of English text, in estimates."""


@dataclass(frozen=True)
class Image:
    """An encoded picture and its media type, such as `image/png`."""

    data: bytes
    media_type: str

    @property
    def sha256(self) -> str:
        """Return the hash of the encoded picture."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def data_uri(self) -> str:
        """Return the picture as a URI that holds it."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Message:
    """One turn: texts and pictures in their order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Image, ...]


@dataclass(frozen=True)
class Request:
    """What one answer is asked for with. What is None is left to the endpoint.

    Attributes:
        messages: The conversation, which ends with the turn to be answered.
        max_tokens: Maximum number of tokens of the answer.
        temperature: 0 asks for the likeliest answer. Only the cache makes it the same every time.
        top_p: Share of the probability that tokens are drawn from.
        seed: Seed for endpoints that have one.
        schema: Form of the answer, a class of pydantic.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float | None = 0.0
    top_p: float | None = None
    seed: int | None = None
    schema: type[BaseModel] | None = None

    def body(self, endpoint: Endpoint) -> dict[str, Any]:
        """Return the body of the HTTP request for chat completions."""
        return self._body(endpoint, lambda image: image.data_uri)

    def key(self, endpoint: Endpoint) -> str:
        """Return the SHA-256 of the body as canonical JSON, with hashes instead of images."""
        return hashlib.sha256(self._hashed(endpoint)).hexdigest()

    def most_prompt_tokens(self, endpoint: Endpoint) -> int:
        """Return a bound on the tokens of the prompt: no token is shorter than a byte."""
        return len(self._hashed(endpoint)) + self._image_tokens(endpoint)

    def prompt_tokens(self, endpoint: Endpoint) -> int:
        """Return an estimate of the tokens of the prompt."""
        return len(self._hashed(endpoint)) // BYTES_PER_TOKEN + self._image_tokens(endpoint)

    def _image_tokens(self, endpoint: Endpoint) -> int:
        images = sum(isinstance(part, Image) for turn in self.messages for part in turn.parts)
        return images * endpoint.tokens_per_image

    def _hashed(self, endpoint: Endpoint) -> bytes:
        return canonical_json(self._body(endpoint, lambda image: f"sha256:{image.sha256}"))

    def _body(self, endpoint: Endpoint, image_url: Callable[[Image], str]) -> dict[str, Any]:
        turns = self.messages
        options: dict[str, Any] = {
            "temperature": None
            if self.temperature is None or not endpoint.takes_temperature
            else float(self.temperature),
            "top_p": None if self.top_p is None else float(self.top_p),
            "seed": self.seed,
        }
        if self.schema and endpoint.json_schema:
            form = {"name": self.schema.__name__, "strict": True, "schema": strict(self.schema)}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self.schema:
            form_text = canonical_json(strict(self.schema)).decode()
            order = f"Answer with one JSON object and nothing else. Its JSON schema is {form_text}"
            turns = (*turns[:-1], Message(turns[-1].role, (*turns[-1].parts, f"\n\n{order}")))
        return {
            "model": endpoint.model,
            "messages": [_message(turn, image_url) for turn in turns],
            endpoint.limit_key: self.max_tokens,
            **{name: value for name, value in options.items() if value is not None},
        }


def canonical_json(value: Any) -> bytes:
    """Return the only JSON of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def strict(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a class as endpoints constrain answers to it.

    They want every property required, no other allowed, and no defaults.
    """

    def close(node: Any) -> Any:
        if isinstance(node, list):
            return [close(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return {"$ref": node["$ref"]}  # which may have no neighbours
        closed = {key: close(value) for key, value in node.items() if key != "default"}
        if isinstance(properties := node.get("properties"), dict):
            # Names of properties are not keywords, and one may be called default.
            closed["properties"] = {name: close(value) for name, value in properties.items()}
            closed |= {"required": list(properties), "additionalProperties": False}
        return closed

    definition: dict[str, Any] = close(schema.model_json_schema())
    return definition


def _message(turn: Message, image_url: Callable[[Image], str]) -> dict[str, Any]:
    """Return the turn as JSON; as plain text if it has no picture, because many endpoints know no
    parts."""
    if all(isinstance(part, str) for part in turn.parts):
        return {"role": turn.role, "content": "".join(map(str, turn.parts))}
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": image_url(part)}}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": parts}
