"""What the service refuses, and that nothing else fails by it."""

import re
import socket
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from llavamed.config.load import load_section
from llavamed.config.serving import Serving
from llavamed.errors import ConfigError
from llavamed.model.generation import Generator
from llavamed.model.running_batch import RunningBatch
from llavamed.serve.backend import LocalBackend
from llavamed.serve.engine import MOST_FAILURES, BatchEngine
from llavamed.serve.export import open_export
from llavamed.serve.launch import serve
from llavamed.storage.location import locate
from tests.support.running_service import (
    TOKEN,
    RunningService,
    ask,
    content,
    png,
    run_service,
    settings,
)
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def generator(tiny_export: Path) -> Generator:
    return open_export(locate(str(tiny_export)), device="cpu")


@pytest.fixture(scope="module")
def running(generator: Generator) -> Iterator[RunningService]:
    serving = settings("max_waiting=4", "limits.image_pixels=1000000", "limits.body_bytes=500000")
    with run_service(serving, LocalBackend(generator, serving)) as service:
        yield service


def bomb() -> bytes:
    """A small PNG file that claims to be huge."""
    data = bytearray(png())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def url_part(url: Any) -> list[Any]:
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Why?"}]


BAD: list[tuple[Any, dict[str, Any], int, str, str]] = [
    ("<image> Why?", {}, 400, "image_count", "names <image> 1 times and it has 0 images"),
    (content("Why?", b"no image"), {}, 400, "corrupt_image", "cannot be read"),
    (content("Why?", png()[:60]), {}, 400, "corrupt_image", "image"),
    (content("Why?", bomb()), {}, 400, "image_too_large", "too many pixels, at most 1000000 are"),
    (content("Why?", png(size=1200)), {}, 400, "image_too_large", "1200x1200 pixels"),
    (content("Why?", *[png()] * 5), {}, 400, "too_many_images", "5 images are sent, at most 4"),
    (url_part("file:///etc/passwd"), {}, 400, "invalid_image_url", "must be a data URL"),
    (url_part("/etc/passwd"), {}, 400, "invalid_image_url", "must be a data URL"),
    (url_part("data:image/png;base64,###"), {}, 400, "invalid_image_url", "not valid base64"),
    (url_part("data:image/png"), {}, 400, "invalid_image_url", "not a valid data URL"),
    (url_part("http://169.254.169.254/x.png"), {}, 400, "image_host_refused", "not fetched from"),
    ("a </s> b", {}, 400, "special_token", "spells the special token </s>"),
    ("half \ud83e", {}, 400, "invalid_text", "holds half a character"),
    ("word " * 9000, {}, 400, "context_length_exceeded", "maximum context length is "),
    ("Why?", {"max_tokens": 5000}, 400, "invalid_value", "max_tokens=5000: at most 1024"),
    ("Why?", {"n": 9}, 400, "invalid_value", "n=9: at most 4 here"),
    ("Why?", {"temperature": 3}, 400, "invalid_value", "temperature: "),
    ("Why?", {"stop": ["a"] * 5}, 400, "invalid_value", "stop"),
    ("Why?", {"stop": ""}, 400, "invalid_value", "stop"),
    ("Why?", {"model": "gpt"}, 404, "model_not_found", "there is none of this name; use llavamed"),
    ("Why?", {"messages": []}, 400, "empty_messages", "holds no question"),
    ("Why?", {"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_value", "role"),
    ("Why?", {"messages": [{"role": "user"}]}, 400, "invalid_value", "content"),
    ("Why?", {"messages": [{"role": "user", "content": "x"}] * 101}, 400, "too_many_messages", ""),
    ("Why?", {"tools": [{"type": "function"}]}, 400, "unsupported", "tools: is not supported"),
    ("Why?", {"response_format": {"type": "json_object"}}, 400, "unsupported", "response_format"),
    ("Why?", {"logit_bias": {"5": 10}}, 400, "unsupported", "logit_bias"),
]


@pytest.mark.parametrize(("said", "fields", "status", "code", "text"), BAD)
def test_what_is_wrong_is_said_and_nothing_else_fails(
    running: RunningService, said: Any, fields: Any, status: int, code: str, text: str
) -> None:
    found, body = running.chat(said, **fields)
    assert (found, body["error"]["code"]) == (status, code)
    assert text in body["error"]["message"]
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert re.search("[A-Za-z0-9+/]{40}", body["error"]["message"]) is None  # no part of an image
    assert running.chat("Why?", max_tokens=1)[0] == 200


def test_bodies_and_tokens_that_are_refused(running: RunningService) -> None:
    path = "/v1/chat/completions"
    assert running.send(path, b"{")[1]["error"]["code"] == "invalid_json"
    assert running.send(path, b"[" * 100_000)[1]["error"]["code"] == "invalid_json"
    assert running.send(path, b"7")[1]["error"]["message"].startswith("body: must be a JSON object")
    status, body = running.send(path, b" " * 500_001)
    assert (status, body["error"]["code"]) == (413, "request_too_large")
    for token, code in ((None, "missing_token"), ("wrong", "invalid_token")):
        status, body = running.send(path, {}, token=token)
        assert (status, body["error"]["type"]) == (401, "authentication_error")
        assert body["error"]["code"] == code
        assert running.headers["www-authenticate"] == "Bearer"
    assert running.send("/v1/completions", {})[0] == running.send(f"{path}/", {})[0] == 404
    status, body = running.send(path, method="GET")
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")
    assert "GET: is not answered at this address; use POST" in body["error"]["message"]
    assert running.headers["allow"] == "POST"
    assert running.send("/v1/models/other")[1]["error"]["code"] == "model_not_found"
    assert running.send("/feedback", {})[1]["error"]["code"] == "not_found"
    assert running.send("/page/../service.py", token=None)[0] == 404


def test_a_body_that_never_arrives_is_not_waited_for(generator: Generator) -> None:
    serving = settings("limits.read_seconds=0.2")
    with run_service(serving, LocalBackend(generator, serving)) as service:
        with begun_request(service) as connection:
            assert b"408" in connection.recv(100)
        assert service.chat("Why?", max_tokens=1)[0] == 200


def begun_request(service: RunningService) -> socket.socket:
    """A connection over which a part of a request has been sent."""
    connection = socket.create_connection(("127.0.0.1", int(service.url.split(":")[-1])), 30)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}"
    connection.sendall(f"{head}\r\nContent-Length: 99\r\n\r\n{{".encode())
    return connection


def test_a_client_that_leaves_while_it_sends_is_no_failure(
    running: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = running.service.metrics.cancelled._value.get
    before, _ = cancelled(), begun_request(running).close()
    wait_until(lambda: cancelled() == before + 1)
    assert "failed" not in caplog.text


class Gate:
    """Holds the model before its next token until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, step = threading.Event(), RunningBatch.step

        def held(batch: RunningBatch) -> None:
            assert self.opened.wait(60)
            step(batch)

        monkeypatch.setattr(RunningBatch, "step", held)


def test_a_full_queue_refuses_and_says_when_to_come_again(
    running: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, backend = Gate(monkeypatch), running.service.backend
    with ThreadPoolExecutor(12) as pool:
        held = [pool.submit(running.chat, "Why?", max_tokens=3) for _ in range(12)]
        # Some are in the batch, which has room for eight, and four more wait.
        wait_until(lambda: sum(backend.load()) == 12)
        # Neither is an image read, nor a prompt made, of which there is no place.
        status, body = running.chat(url_part("data:image/png;base64,damaged"))
        gate.opened.set()
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert body["error"]["type"] == "rate_limit_error"
        assert int(running.headers["retry-after"]) >= 1
        statuses = [each.result()[0] for each in held]
    assert statuses == [200] * 12
    assert backend.load() == (0, 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_is_given_up_leaves_the_batch(
    running: RunningService, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    gate, backend = Gate(monkeypatch), running.service.backend
    before = running.service.metrics.cancelled._value.get()
    impatient = openai.OpenAI(
        base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0, timeout=0.5
    )
    with pytest.raises(openai.APITimeoutError):
        for _ in ask(impatient, "Where?", max_tokens=200, stream=stream):
            pass
    wait_until(lambda: running.service.metrics.cancelled._value.get() == before + 1)
    gate.opened.set()
    wait_until(lambda: backend.load() == (0, 0))


def test_only_those_in_the_batch_fail_with_the_model(
    running: RunningService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:

        def fail(_: RunningBatch) -> None:
            raise RuntimeError("out of memory")

        patch.setattr(RunningBatch, "step", fail)
        status, body = running.chat("A secret question?", max_tokens=3)
        assert (status, body["error"]["code"]) == (500, "model_failed")
        assert "failed with RuntimeError" in body["error"]["message"]
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0)
        with pytest.raises(openai.APIError, match="failed with RuntimeError"):
            list(ask(client, "Why?", stream=True))
    assert running.chat("Why?", max_tokens=3)[0] == 200
    assert "secret" not in caplog.text


def test_a_model_that_only_fails_counts_as_stopped_until_it_answers(
    running: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "join", fail)
        error: Exception = torch.OutOfMemoryError("a request that is too large")
        assert [running.chat("Why?")[0] for _ in range(MOST_FAILURES)] == [500] * MOST_FAILURES
        assert running.send("/health")[0] == 200
        error = RuntimeError("CUDA error: an illegal memory access was encountered")
        assert [running.chat("Why?")[0] for _ in range(MOST_FAILURES)] == [500] * MOST_FAILURES
        status, body = running.send("/health")
        assert (status, body["error"]["code"]) == (503, "model_stopped")
    assert running.chat("Why?", max_tokens=3)[0] == running.send("/health")[0] == 200


@pytest.mark.parametrize("step", ["_drop_given_up", "_publish"])
def test_no_client_waits_for_a_model_that_has_stopped(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    serving = settings()
    with run_service(serving, LocalBackend(generator, serving)) as service:
        assert service.send("/health", token=None)[0] == 200

        def stop(*_: Any) -> None:
            raise RuntimeError("no more")

        monkeypatch.setattr(BatchEngine, step, stop)
        status, body = service.chat("Why?", max_tokens=3)
        assert (status, body["error"]["message"]) == (503, "service: has stopped; try again")
        assert service.chat("Why?")[0] == 503
        status, body = service.send("/health", token=None)
        assert (status, body["error"]["code"]) == (503, "model_stopped")


def test_settings_that_do_not_fit_are_refused(
    tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: RunningService
) -> None:
    def start(export: str | None, *words: str) -> None:
        serve(export, load_section("config", None, Serving, words), lambda _: None)

    export, short = str(tiny_export), tmp_path / "tokens"
    short.write_text("short\n")
    port = running.url.rpartition(":")[2]
    for words, text in (
        (
            ["open_access=true", "host=0.0.0.0"],
            "open_access=true: host=0.0.0.0 is reachable from",
        ),
        (["log_content=true"], "log_content=true: there is no log for the texts"),
        (["tracking_uri=https://me:secret@mlflow.example"], "tracking_uri: holds a password"),
        ([f"token_file={short}"], "must hold tokens of at least 16 letters"),
        ([f"token_file={tmp_path}/none"], "cannot be read as text; write one token per line"),
        ([f"port={port}"], rf"port={port}: cannot listen there at host=127.0.0.1"),
        (["port=0", "engine_url=http://x/v1"], "export=.*: must be one of the two; name an export"),
        ([f"audit_log={short}/log"], "audit_log=.*: cannot be written .*; name another file"),
        ([f"feedback_file={tmp_path}"], "feedback_file=.*: cannot be written .Is a directory"),
        (["limits.imges=3"], "limits.imges: unknown key; did you mean 'images'"),
    ):
        with pytest.raises(ConfigError, match=text):
            start(export, *words)
    with pytest.raises(ConfigError, match="export=models:/rad: must be models:/NAME@ALIAS or"):
        start("models:/rad", "port=0")
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ConfigError, match="engine_key_env=NO_KEY: is not set in the environment"):
        start(None, "port=0", "engine_url=http://x/v1", "engine_key_env=NO_KEY")
