"""The service on this machine, in a thread of the test, with what a client needs to reach it."""

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai
import uvicorn
from PIL import Image as Picture

from llavamed.config.load import load_section
from llavamed.config.serving import Serving
from llavamed.serve.backend import Backend
from llavamed.serve.service import Service

TOKEN = "a-token-of-the-tests"


@dataclass
class RunningService:
    """A service and its address."""

    service: Service
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def send(
        self, path: str, body: Any = None, *, token: str | None = TOKEN, method: str | None = None
    ) -> tuple[int, Any]:
        """Send a request; return its status and the body of the answer."""
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, raw, self.headers = answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            status, raw, self.headers = error.code, error.read(), dict(error.headers)
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw

    def chat(self, content: Any, **fields: Any) -> tuple[int, Any]:
        """Ask one question."""
        body = {"model": "llavamed", "messages": [{"role": "user", "content": content}], **fields}
        return self.send("/v1/chat/completions", body)


EXPORT = "runs/demo/stages/vqa/export"
"""The export that the page names."""


def settings(*overrides: str) -> Serving:
    """Settings of a service, with overrides."""
    return load_section("config", None, Serving, ["limits.requests_per_minute=100000", *overrides])


@contextmanager
def run_service(
    serving: Serving, backend: Backend, tokens: tuple[str, ...] = (TOKEN,)
) -> Iterator[RunningService]:
    """Run a service until the end of the block."""
    running = RunningService(Service(serving, backend, tokens, EXPORT))
    with run_application(running.service.app()) as running.url:
        yield running


@contextmanager
def run_application(app: Any) -> Iterator[str]:
    """Run an application until the end of the block, and yield its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def png(shade: int = 90, size: int = 24) -> bytes:
    pixels = np.full((size, size, 3), shade, dtype=np.uint8)
    pixels[: size // 2] = 255 - shade
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def content(question: str, *images: bytes) -> Any:
    parts = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in images]
    return [*parts, {"type": "text", "text": question}]


def ask(client: openai.OpenAI, said: Any, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": said}]
    fields = {"max_tokens": 12} | fields
    return client.chat.completions.create(model="llavamed", messages=messages, **fields)
