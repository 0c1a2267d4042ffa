"""The clients of others work against the service, and get the answers of the evaluation."""

import base64
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image as Picture

from llavamed.config.load import load_section
from llavamed.config.serving import Serving
from llavamed.errors import ConfigError
from llavamed.model.generation import Generator, Prompt
from llavamed.model.running_batch import RunningBatch
from llavamed.processor.images import to_pixels
from llavamed.processor.turns import Turn
from llavamed.serve.backend import EngineBackend, LocalBackend
from llavamed.serve.export import open_export
from llavamed.serve.launch import make_backend, serve
from llavamed.storage.location import locate
from tests.support.dicom_files import dicom_file
from tests.support.running_service import TOKEN, RunningService, run_service, settings

QUESTIONS = ("Where?", "What is shown?", "Why?", "Is there an effusion on the left?")


@pytest.fixture(scope="module")
def generator(tiny_export: Path) -> Generator:
    return open_export(locate(str(tiny_export)), device="cpu")


@pytest.fixture(scope="module")
def running(generator: Generator) -> Iterator[RunningService]:
    serving = settings("max_waiting=4", "limits.image_pixels=1000000", "limits.body_bytes=500000")
    with run_service(serving, LocalBackend(generator, serving)) as service:
        yield service


@pytest.fixture
def client(running: RunningService) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0)


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


def expected(generator: Generator, question: str, *images: bytes, limit: int = 12) -> str:
    pixels = [to_pixels(each, generator.images) for each in images]
    prompt = Prompt([Turn("user", "<image>\n" * len(images) + question)], pixels)
    return generator.answer([prompt], max_new_tokens=limit)[0]


def ask(client: openai.OpenAI, said: Any, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": said}]
    fields = {"max_tokens": 12} | fields
    return client.chat.completions.create(model="llavamed", messages=messages, **fields)


def test_the_openai_client_gets_the_answer_of_the_evaluation(
    client: openai.OpenAI, generator: Generator
) -> None:
    answer = ask(client, content("What is shown?", png()))
    assert answer.choices[0].message.content == expected(generator, "What is shown?", png())
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage.prompt_tokens > generator.num_image_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert [model.id for model in client.models.list()] == ["llavamed"]
    assert client.models.retrieve("llavamed").id == "llavamed"


def test_a_stream_adds_up_to_the_same_answer(client: openai.OpenAI, generator: Generator) -> None:
    chunks = list(
        ask(
            client,
            content("Why?", png(30)),
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    told = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in told)
    assert text == expected(generator, "Why?", png(30))
    assert [choice.finish_reason for choice in told if choice.finish_reason] in (
        ["stop"],
        ["length"],
    )
    num_logprobs = sum(len(c.logprobs.content) for c in told if c.logprobs)
    assert num_logprobs == chunks[-1].usage.completion_tokens


def test_sampling_fields_do_what_they_say(client: openai.OpenAI, generator: Generator) -> None:
    whole = expected(generator, "Where?")
    letter = whole[len(whole) // 2]
    stopped = ask(client, "Where?", stop=[letter])
    assert stopped.choices[0].message.content == whole.split(letter)[0].strip()
    assert stopped.choices[0].finish_reason == "stop"
    drawn = [ask(client, "Where?", temperature=1.5, seed=5, n=3) for _ in range(2)]
    texts = [[choice.message.content for choice in each.choices] for each in drawn]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1
    told = ask(client, "Where?", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert all(len(each.top_logprobs) == 2 for each in told)
    assert all(each.logprob == each.top_logprobs[0].logprob for each in told)
    newer = ask(client, "Where?", max_tokens=12, max_completion_tokens=2)
    assert newer.usage.completion_tokens == 2


def test_langchain_works_unchanged(running: RunningService, generator: Generator) -> None:
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, model="llavamed", max_tokens=12)
    asked = [HumanMessage(content=content("What is shown?", png()))]
    wanted = expected(generator, "What is shown?", png())
    assert model.invoke(asked).content == wanted
    assert "".join(str(chunk.content) for chunk in model.stream(asked)) == wanted


def test_many_clients_at_once_get_what_each_gets_alone(
    client: openai.OpenAI, generator: Generator
) -> None:
    def one(number: int) -> tuple[str, str]:
        images = [png(20 * number + 10)] * (number % 2)
        question = QUESTIONS[number % 4]
        retrying = client.with_options(max_retries=9)
        answer = ask(retrying, content(question, *images)).choices[0].message.content
        return answer, expected(generator, question, *images)

    with ThreadPoolExecutor(8) as pool:
        for answer, wanted in pool.map(one, range(12)):
            assert answer == wanted


def test_a_dicom_file_and_several_turns_are_answered(running: RunningService) -> None:
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    first = content("What is shown?", dicom_file(pixels))
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": first},
        {"role": "assistant", "content": [{"type": "text", "text": "An image."}]},
        {"role": "user", "content": "Where?"},
    ]
    body = {"model": "llavamed", "messages": messages, "max_tokens": 4, "user": "x", "new": 1}
    status, answer = running.send("/v1/chat/completions", body)
    assert (status, answer["object"]) == (200, "chat.completion")


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
    (content("Why?", bomb()), {}, 400, "image_too_large", "pixels or more, at most 1000000"),
    (content("Why?", png(size=1200)), {}, 400, "image_too_large", "1200x1200 pixels"),
    (content("Why?", *[png()] * 5), {}, 400, "too_many_images", "5 images are sent, at most 4"),
    (url_part("file:///etc/passwd"), {}, 400, "invalid_image_url", "must be a data URL"),
    (url_part("/etc/passwd"), {}, 400, "invalid_image_url", "must be a data URL"),
    (url_part("data:image/png;base64,###"), {}, 400, "invalid_image_url", "no valid base64"),
    (url_part("data:image/png"), {}, 400, "invalid_image_url", "no valid data URL"),
    (url_part("http://169.254.169.254/x.png"), {}, 400, "image_host_refused", "not fetched from"),
    ("a </s> b", {}, 400, "special_token", "spells the special token </s>"),
    ("half \ud83e", {}, 400, "invalid_text", "holds half a character"),
    ("word " * 9000, {}, 400, "context_length_exceeded", "do not fit the context of"),
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
    assert running.send("/v1/completions", {})[0] == 404
    assert running.send("/v1/models/other")[1]["error"]["code"] == "model_not_found"
    assert running.send("/feedback", {})[1]["error"]["code"] == "not_found"
    assert running.send("/page/../service.py", token=None)[0] == 404


def test_a_body_that_never_arrives_is_not_waited_for(generator: Generator) -> None:
    serving = settings("limits.read_seconds=0.2")
    with run_service(serving, LocalBackend(generator, serving)) as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}"
            connection.sendall(f"{head}\r\nContent-Length: 99\r\n\r\n{{".encode())
            assert b"408" in connection.recv(100)
        assert service.chat("Why?", max_tokens=1)[0] == 200


def test_a_signal_lets_a_running_answer_end(tiny_export: Path) -> None:
    command = [sys.executable, "-m", "llavamed", "serve", str(tiny_export), "port=0"]
    environment = {name: each for name, each in os.environ.items() if "SERVE_TOKEN" not in name}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address, token = process.stdout.readline().split()[1].split("#token=")
        client = openai.OpenAI(base_url=f"{address}v1", api_key=token.strip(), max_retries=0)
        stream = ask(client, "Where?", stream=True, temperature=2, seed=0, max_tokens=400)
        chunks = [next(iter(stream))]
        process.terminate()
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
        assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(openai.APIConnectionError):
        ask(client, "Where?")


def test_headers_protect_and_name_the_request(running: RunningService) -> None:
    assert running.send("/health", token=None)[1] == {"status": "ok"}
    running.send("/", token=None)
    assert "default-src 'none'" in running.headers["content-security-policy"]
    running.chat("Why?", max_tokens=1)
    assert running.headers["x-content-type-options"] == "nosniff"
    assert len(running.headers["x-request-id"]) == 32
    assert "access-control-allow-origin" not in running.headers


class Gate:
    """Holds the model before its next token until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, step = threading.Event(), RunningBatch.step

        def held(batch: RunningBatch) -> None:
            assert self.opened.wait(60)
            step(batch)

        monkeypatch.setattr(RunningBatch, "step", held)


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_refuses_and_says_when_to_come_again(
    running: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, backend = Gate(monkeypatch), running.service.backend
    with ThreadPoolExecutor(12) as pool:
        held = [pool.submit(running.chat, "Why?", max_tokens=3) for _ in range(12)]
        wait_until(lambda: backend.load()[0] == 4)
        status, body = running.chat("Why?")
        gate.opened.set()
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert body["error"]["type"] == "rate_limit_error"
        assert int(running.headers["retry-after"]) >= 1
        statuses = [each.result()[0] for each in held]
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 5  # one in the batch, and four that waited
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


def test_records_hold_numbers_and_content_only_where_asked(
    generator: Generator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "llavamed")
    for with_content in (False, True):
        log = tmp_path / f"audit-{with_content}.jsonl"
        opinions = tmp_path / f"opinions-{with_content}.jsonl"
        keep = f"log_content={str(with_content).lower()}"
        serving = settings(f"audit_log={log}", keep, f"feedback_file={opinions}")
        with run_service(serving, LocalBackend(generator, serving)) as service:
            service.chat(content("A secret question?", png()), max_tokens=3)
            service.chat("", model="other")
            metrics = service.send("/metrics", token=None)[1].decode()
            opinion = {"consent": True, "rating": "up", "model": "llavamed", "answer_id": "1"}
            assert service.send("/feedback", opinion) == (200, {"kept": True})
            for wrong in ({**opinion, "consent": False}, {**opinion, "image": "x"}, {}):
                assert service.send("/feedback", wrong)[0] == 400
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert lines[0]["completion_tokens"] == 3 or lines[0]["finish_reasons"] == ["stop"]
        assert (lines[0]["images"], lines[0]["status"]) == (1, 200)
        assert (lines[1]["status"], lines[1]["code"]) == (404, "model_not_found")
        assert TOKEN not in log.read_text()
        assert ("A secret question?" in log.read_text()) is with_content
        assert json.loads(opinions.read_text())["rating"] == "up"
        assert 'llavamed_serve_requests_total{status="200"} 1.0' in metrics
        assert 'llavamed_serve_refused_total{code="model_not_found"} 1.0' in metrics
        assert "llavamed_serve_first_token_seconds_count 1.0" in metrics
        assert "llavamed_serve_tokens_total 3.0" in metrics or "stop" in lines[0]["finish_reasons"]
    assert "secret" not in caplog.text


def test_traces_reach_mlflow_without_what_was_said(generator: Generator, tmp_path: Path) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    serving = settings(f"tracking_uri={uri}")
    with run_service(serving, LocalBackend(generator, serving)) as service:
        assert service.chat("A secret question?", max_tokens=3)[0] == 200
        service.chat("", model="other")
    experiment = mlflow.MlflowClient(uri).get_experiment_by_name("llavamed-serve")
    found = mlflow.MlflowClient(uri).search_traces(locations=[experiment.experiment_id])
    spans = {trace.info.state: trace.data.spans[0] for trace in found}
    assert spans["OK"].attributes["finish_reasons"] in (["length"], ["stop"])
    assert spans["ERROR"].attributes["code"] == "model_not_found"
    assert "secret" not in str([span.to_dict() for span in spans.values()])


def test_an_engine_answers_behind_the_same_service(
    running: RunningService, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", TOKEN)
    serving = settings(f"engine_url={running.url}/v1", "engine_key_env=ENGINE_KEY")
    backend = make_backend(None, serving)
    assert isinstance(backend, EngineBackend)
    with run_service(serving, backend, ("another-long-token",)) as front:
        client = openai.OpenAI(
            base_url=f"{front.url}/v1", api_key="another-long-token", max_retries=0
        )
        wanted = expected(generator, "What is shown?", png())
        whole = ask(client, content("What is shown?", png()))
        assert whole.choices[0].message.content == wanted
        assert whole.usage.completion_tokens > 0
        chunks = list(ask(client, content("What is shown?", png()), stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == wanted
        with pytest.raises(openai.BadRequestError, match="the engine refuses the request: mess"):
            ask(client, "a </s> b")
    gone = settings("engine_url=http://127.0.0.1:9/v1")
    with run_service(gone, make_backend(None, gone)) as front:
        status, body = front.chat("Why?")
        assert (status, body["error"]["code"]) == (503, "engine_unreachable")


def test_settings_that_do_not_fit_are_refused(
    tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: RunningService
) -> None:
    def start(export: str | None, *words: str) -> None:
        serve(export, load_section("config", None, Serving, words), lambda _: None)

    export, short = str(tiny_export), tmp_path / "tokens"
    short.write_text("short\n")
    port = running.url.rpartition(":")[2]
    for words, text in (
        (["open_access=true", "host=0.0.0.0"], "open_access=true: host=0.0.0.0 is reached from"),
        (["log_content=true"], "log_content=true: nothing would hold them"),
        ([f"token_file={short}"], "must hold tokens of at least 16 letters"),
        ([f"token_file={tmp_path}/none"], "cannot be read as text; write a token a line"),
        ([f"port={port}"], rf"port={port}: cannot listen there at host=127.0.0.1"),
        (["port=0", "engine_url=http://x/v1"], "name an export or the address of an engine"),
        (["limits.imges=3"], "limits.imges: unknown key; did you mean 'images'"),
    ):
        with pytest.raises(ConfigError, match=text):
            start(export, *words)
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ConfigError, match="engine_key_env=NO_KEY: is not set in the environment"):
        start(None, "port=0", "engine_url=http://x/v1", "engine_key_env=NO_KEY")
