"""An engine that speaks as vLLM does: what it is asked, and what becomes of its errors."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llavamed.serve.backend import EngineBackend
from tests.support.running_service import (
    RunningService,
    content,
    data_url,
    png,
    run_application,
    run_service,
    settings,
)


class Engine:
    """What it was asked last, and what it answers."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.refusal: Response | None = None
        self.lines: list[bytes] = []

    async def chat(self, request: Request) -> Response:
        self.asked = await request.json()
        if self.refusal is not None:
            return self.refusal

        async def stream() -> AsyncIterator[bytes]:
            for line in self.lines:
                yield line

        return StreamingResponse(stream(), media_type="text/event-stream")


def event(body: Any) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def chunk(delta: dict[str, Any], end: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
    usage = {"prompt_tokens": 31, "completion_tokens": 1, "total_tokens": 32}
    return event({"object": "chat.completion.chunk", "choices": [choice], "usage": usage})


START, WORD = chunk({"role": "assistant", "content": ""}), chunk({"content": "Yes"})
END, DONE = chunk({"content": "."}, "stop"), b"data: [DONE]\n\n"


@contextmanager
def before(engine: Engine) -> Iterator[RunningService]:
    app = Starlette(routes=[Route("/v1/chat/completions", engine.chat, methods=["POST"])])
    with run_application(app) as url:
        serving = settings(f"engine_url={url}/v1")
        with run_service(serving, EngineBackend(serving, None)) as service:
            yield service


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def service(engine: Engine) -> Iterator[RunningService]:
    with before(engine) as service:
        yield service


@pytest.fixture(autouse=True)
def _healthy(engine: Engine) -> None:
    engine.refusal, engine.lines = None, [START, WORD, b": comment\n\n", END, DONE]


def test_the_engine_gets_the_request_with_the_image_as_data(
    engine: Engine, service: RunningService
) -> None:
    status, body = service.chat(content("Why?", png()), stop="x", seed=3, top_p=0.5, n=1)
    assert (status, body["choices"][0]["message"]["content"]) == (200, "Yes.")
    assert body["usage"] == {"prompt_tokens": 31, "completion_tokens": 1, "total_tokens": 32}
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(png())}},
        {"type": "text", "text": "Why?"},
    ]
    assert engine.asked == {
        "model": "llavamed",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 512,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 3,
        "n": 1,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([START, WORD, END], "Yes."),  # as `transformers serve` ends
        ([START, WORD, chunk({}, "length"), DONE], "Yes"),
        ([START, chunk({"content": "No " * 500_000}, "stop"), DONE], ("No " * 500_000).strip()),
        ([START, WORD.replace(b"data: ", b"data:").replace(b"\n", b"\r\n"), END, DONE], "Yes."),
    ],
)
def test_whole_answers_are_passed_on_however_they_come(
    engine: Engine, service: RunningService, lines: list[bytes], text: str
) -> None:
    engine.lines = lines
    status, body = service.chat("Why?")
    assert (status, body["choices"][0]["message"]["content"].strip()) == (200, text)


def error(status: int, **fields: Any) -> Response:
    given = {"message": "too long", "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": given | fields}, status_code=status)


@pytest.mark.parametrize(
    ("refusal", "status", "code", "message"),
    [
        (error(400), 400, "engine_refused", "the engine refuses the request: too long; correct"),
        (error(400, code="context_length"), 400, "context_length", "too long"),
        (JSONResponse({"object": "error", "message": "old", "code": 40303}, 400), 400, "", "old"),
        (error(404, message="no such model"), 502, "engine_refused", "no such model"),
        (error(401), 502, "engine_refused", "too long"),
        (error(429), 429, "engine_refused", "too long"),
        (error(503), 503, "engine_refused", "too long"),
        (error(500), 502, "engine_refused", "too long"),
        (Response("<html>", 502), 502, "engine_refused", "status 502"),
        (JSONResponse(["no"], 400), 400, "engine_refused", "status 400"),
        (error(400, message=f"bad {data_url(png())}"), 400, "engine_refused", "bad data:...;"),
    ],
)
def test_a_refusal_of_the_engine_is_passed_on(
    engine: Engine, service: RunningService, refusal: Response, status: int, code: str, message: str
) -> None:
    engine.refusal = refusal
    found, body = service.chat("Why?")
    assert (found, body["error"]["code"]) == (status, code or "engine_refused")
    assert message in body["error"]["message"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([START, WORD], "the engine ended in the middle of an answer; try again"),
        ([START, event({"error": {"message": "x", "code": 500}}), DONE], "failed in the middle"),
        ([b"data: {\n\n"], "the engine sends something that is not an answer; try again"),
        ([event(["no"])], "the engine sends something that is not an answer; try again"),
        ([event({"choices": [{"delta": {}}]})], "the engine sends something that is not an answer"),
        ([], "the engine ended in the middle of an answer"),
        ([START, WORD, DONE], "the engine ended in the middle of an answer"),
        ([START, WORD, chunk({}, "abort"), DONE], "the engine gave an answer up; try again"),
        ([START, WORD, chunk({}, "error"), DONE], "the engine gave an answer up; try again"),
    ],
)
def test_an_engine_that_fails_in_an_answer_is_told(
    engine: Engine, service: RunningService, lines: list[bytes], message: str
) -> None:
    engine.lines = lines
    status, body = service.chat("Why?")
    assert (status, body["error"]["code"]) == (502, "engine_failed")
    assert message in body["error"]["message"]
