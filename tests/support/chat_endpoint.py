"""An OpenAI-compatible endpoint on this machine, which fails as real ones do, on request."""

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.http_server import serving

ERRORS = {
    "400": (400, "context_length_exceeded", "This model takes 4096 tokens."),
    "401": (401, "invalid_api_key", "Incorrect API key provided: {key}."),
    "402": (402, "payment_required", "No credit is left."),
    "403": (403, "forbidden", "Not in your country."),
    "404": (404, "model_not_found", "There is no such model."),
    "408": (408, "timeout", "Too slow."),
    "filter": (400, "content_filter", "The prompt was filtered."),
    "flagged": (403, 403, "Your input was flagged."),
    "413": (413, "too_large", "The body is too large."),
    "422": (422, "unprocessable", "One field is wrong."),
    "425": (425, "too_early", "Too early."),
    "429": (429, "rate_limit_exceeded", "Slow down."),
    "no quota": (429, "insufficient_quota", "You exceeded your quota."),
    "no balance": (429, None, "The account is suspended."),
    "provider": (400, 400, "Provider returned error"),
    "no max_tokens": (400, "unsupported_parameter", "Use 'max_completion_tokens' instead."),
    "no temperature": (400, "unsupported_value", "Only the default (1) is supported."),
    "any temperature": (400, "unsupported_parameter", "'temperature' is not supported."),
    "500": (500, "server_error", "Something went wrong."),
    "503": (503, "overloaded", "Try again later."),
}
MAY_PASS = ("408", "425", "429", "500", "500 html", "503", "200 html", "hang", "cut", "reset")


@dataclass
class ChatEndpoint:
    """What it says, its faults, and what it was asked."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    """Bodies as JSON, by the number of whole answers to each."""
    most_in_flight: int = 0
    retry_after: str | None = None
    say: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: {}
    """What an answer has beside or instead of the usual, by the body of the request."""
    barrier: threading.Barrier | None = None
    """Where it is set, an answer waits until so many requests are in flight."""
    hold: Callable[[str], bool] = lambda text: False
    """Whether a request is left without an answer until the endpoint ends."""
    _faults: list[str | None] = field(default_factory=list)
    _in_flight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: threading.Event = field(default_factory=threading.Event)

    def fail(self, *faults: str | None, times: int = 1) -> None:
        """The next requests meet these faults, one each; None is an answer."""
        self._faults += [*faults] * times

    def enter(self, body: dict[str, Any], headers: dict[str, str]) -> str | None:
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            return self._faults.pop(0) if self._faults else None

    def leave(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        said = {"content": "Yes.", "finish_reason": "stop", "refusal": None} | self.say(body)
        message = {"role": "assistant", "content": said["content"], "refusal": said["refusal"]}
        message |= {name: said[name] for name in said.keys() & {"reasoning", "reasoning_content"}}
        usage = said.get("usage", {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12})
        return {
            "id": f"chatcmpl-{len(self.bodies)}",
            "object": "chat.completion",
            "model": f"{body['model']}-2026",
            "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "message": message, "finish_reason": said["finish_reason"]}],
            **({"usage": usage} if usage else {}),
        }


@contextmanager
def chat_endpoint() -> Iterator[ChatEndpoint]:
    endpoint = ChatEndpoint()
    handler = type("Handler", (_Handler,), {"endpoint": endpoint})
    with serving(handler) as url:
        endpoint.url = f"{url}/v1"
        yield endpoint
        endpoint._end.set()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: ChatEndpoint

    def do_POST(self) -> None:
        there = self.endpoint
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = there.enter(body, {name.lower(): value for name, value in self.headers.items()})
        try:
            if there.barrier is not None:
                there.barrier.wait(timeout=60)
            text = json.dumps(body, sort_keys=True)
            if fault == "hang" or there.hold(text):
                there._end.wait(60)
                fault = "reset"
            answer = json.dumps(there.completion(body)).encode()
        finally:
            there.leave()  # before the answer, after which the client may send another
        if fault in ERRORS:
            self._send_error(fault)
        elif fault in {"500 html", "200 html"}:
            self._send(int(fault[:3]), b"<html>Bad gateway</html>", "text/html")
        elif fault == "reset":
            self._reset()
        else:
            if fault is None:
                there.answered[text] += 1
            self._send(200, answer, cut=fault == "cut")

    def _send_error(self, fault: str) -> None:
        status, code, message = ERRORS[fault]
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        error = {"message": message.format(key=key), "type": "error", "param": None, "code": code}
        if fault == "no balance":
            error["type"] = "exceeded_current_quota_error"
        if fault == "provider":
            error["metadata"] = {"raw": "the schema is too deep", "provider_name": "X"}
        if fault == "flagged":
            error["metadata"] = {"reasons": ["gore"], "flagged_input": "a wound"}
        self._send(status, json.dumps({"error": error}).encode())

    def _send(
        self, status: int, data: bytes, kind: str = "application/json", *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if status in {429, 503} and self.endpoint.retry_after is not None:
            self.send_header("Retry-After", self.endpoint.retry_after)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut or self.close_connection

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()
