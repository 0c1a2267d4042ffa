"""The clients of others work against the service, and get the answers of the evaluation."""

import asyncio
import gzip
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from llavamed.errors import RequestError, TrackingError
from llavamed.model.generation import Generator, Prompt
from llavamed.processor.dicom import read_dicom
from llavamed.processor.images import to_pixels
from llavamed.processor.turns import Turn
from llavamed.serve.backend import EngineBackend, LocalBackend, Update
from llavamed.serve.export import open_export
from llavamed.serve.launch import make_backend, page_address
from llavamed.serve.openai import Choice, TokenCounts
from llavamed.serve.traces import Traces
from llavamed.storage.location import locate
from tests.support.dicom_files import dicom_file
from tests.support.running_service import (
    TOKEN,
    RunningService,
    ask,
    content,
    png,
    run_service,
    settings,
)

QUESTIONS = ("Where?", "What is shown?", "Why?", "Is there an effusion on the left?")


@pytest.fixture(scope="module")
def generator(tiny_export: Path) -> Generator:
    return open_export(locate(str(tiny_export)), device="cpu")


@pytest.fixture(scope="module")
def running(generator: Generator) -> Iterator[RunningService]:
    serving = settings()
    with run_service(serving, LocalBackend(generator, serving)) as service:
        yield service


@pytest.fixture
def client(running: RunningService) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0)


def expected(generator: Generator, question: str, *images: bytes, limit: int = 12) -> str:
    pixels = [to_pixels(each, generator.images) for each in images]
    prompt = Prompt([Turn("user", "<image>\n" * len(images) + question)], pixels)
    return generator.answer([prompt], max_new_tokens=limit)[0]


def test_the_openai_client_gets_the_answer_of_the_evaluation(
    client: openai.OpenAI, generator: Generator
) -> None:
    answer = ask(client, content("What is shown?", png()))
    assert answer.choices[0].message.content == expected(generator, "What is shown?", png())
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage.prompt_tokens > generator.tiling.num_tile_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert [model.id for model in client.models.list()] == ["llavamed"]
    assert client.models.retrieve("llavamed").id == "llavamed"
    assert client.get("/models/", cast_to=dict[str, object])["object"] == "list"


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
    # As documented: the usage is in every chunk, and null in all but the last.
    assert [chunk.model_dump(exclude_unset=True)["usage"] for chunk in chunks[:-1]] == [None] * (
        len(chunks) - 1
    )


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


def test_a_dicom_file_is_shown_as_the_model_gets_it(running: RunningService) -> None:
    scan = dicom_file(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    assert running.send("/preview", scan) == (200, read_dicom(scan))
    assert running.headers["content-type"] == "image/png"
    for data, code in ((png(), "no_dicom"), (scan[:-10], "corrupt_image")):
        status, body = running.send("/preview", data)
        assert (status, body["error"]["code"]) == (400, code)
    assert running.send("/preview", scan, token=None)[0] == 401


def test_a_signal_lets_a_running_answer_end(tiny_export: Path) -> None:
    command = [sys.executable, "-m", "llavamed", "serve", str(tiny_export), "port=0"]
    environment = {name: each for name, each in os.environ.items() if "SERVE_TOKEN" not in name}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address, token = process.stdout.readline().split()[1].split("#token=")
        client = openai.OpenAI(base_url=f"{address}v1", api_key=token.strip(), max_retries=0)
        stream = ask(client, "Where?", stream=True, temperature=2, seed=0, max_tokens=400)
        chunks = [next(iter(stream))]
        process.terminate()
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
        assert process.wait(60) == 128 + signal.SIGTERM
        said = process.stderr.read()
        assert "signal=SIGTERM: the service has stopped; the same command starts it again" in said
    with pytest.raises(openai.APIConnectionError):
        ask(client, "Where?")


class Slow:
    """Says something, or fails, after a while."""

    is_open = False

    async def answer(self, request: Any, read: Any) -> Any:
        messages = await read()
        self.is_open = True
        try:
            await asyncio.sleep(float(messages[-1].parts[0]))
            if request.n == 2:
                raise RequestError("model: failed; try again", code="x", status=500)
            yield Update([Choice(0, "late", None)], TokenCounts(1, 1))
            await asyncio.sleep(float(messages[-1].parts[0]))
            yield Update([Choice(0, " too", "stop")], TokenCounts(1, 2))
        finally:
            self.is_open = False

    def load(self) -> tuple[int, int]:
        return 0, 0

    def check(self) -> None:
        """Always well."""

    async def close(self) -> None:
        """Nothing to free."""


def test_a_stream_is_never_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("service", "stream"):
        monkeypatch.setattr(f"llavamed.serve.{name}.SILENT_SECONDS", 0.05)
    backend: Any = Slow()
    with run_service(settings(), backend) as service:
        status, body = service.chat("0.2", stream=True)
        assert status == 200
        opening, first = body.split(b"data: ")[:2]
        assert opening.count(b": waiting\n\n") >= 2
        assert b'"role": "assistant"' in first
        assert body.endswith(b"data: [DONE]\n\n")
        assert body.split(b'"late"')[1].count(b": waiting\n\n") >= 2
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=TOKEN, max_retries=0)
        chunks = list(ask(client, "0.1", stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "late too"
        assert service.chat("0.2")[1]["choices"][0]["message"]["content"] == "late too"
        assert service.chat("0", stream=True, n=2)[0] == 500  # soon enough for a status
        status, body = service.chat("0.2", stream=True, n=2)
        assert status == 200
        assert b'data: {"error": {"message": "model: failed; try again"' in body
        with pytest.raises(openai.APITimeoutError):
            list(ask(client.with_options(timeout=0.02), "60", stream=True))
        for _ in range(500):
            if not backend.is_open:
                break
            time.sleep(0.01)
        assert not backend.is_open


def test_the_address_that_is_told_is_one_that_a_browser_opens() -> None:
    told = {
        host: page_address(host, 8) for host in ("0.0.0.0", "localhost", "::", "::1", "10.0.0.7")
    }
    assert told == {
        "0.0.0.0": "http://127.0.0.1:8",
        "localhost": "http://127.0.0.1:8",
        "::": "http://[::1]:8",
        "::1": "http://[::1]:8",
        "10.0.0.7": "http://10.0.0.7:8",
    }


def test_a_compressed_body_is_refused_as_such(running: RunningService) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip"}
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"))
    connection.request("POST", "/v1/chat/completions", gzip.compress(b"{}"), headers)
    answer = connection.getresponse()
    assert answer.status == 415
    message = json.loads(answer.read())["error"]["message"]
    assert message == "Content-Encoding=gzip: bodies are read uncompressed; send it as it is"


def test_a_page_of_an_allowed_origin_may_send_what_its_client_sends(generator: Generator) -> None:
    serving = settings("origins=[https://page.example]")
    sent = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    with run_service(serving, LocalBackend(generator, serving)) as service:
        for origin, status in (("https://page.example", 200), ("https://other.example", 400)):
            connection = http.client.HTTPConnection(service.url.removeprefix("http://"))
            asked = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": sent,
            }
            connection.request("OPTIONS", "/v1/chat/completions", headers=asked)
            answer = connection.getresponse()
            assert answer.status == status
            is_allowed = status == 200
            assert (answer.getheader("Access-Control-Allow-Origin") == origin) is is_allowed
            assert answer.getheader("Access-Control-Allow-Credentials") is None
            if is_allowed:
                assert answer.getheader("Access-Control-Allow-Headers") == sent
            connection.close()


def test_headers_protect_and_name_the_request(running: RunningService) -> None:
    assert running.send("/health", token=None)[1] == {"status": "ok"}
    running.send("/", token=None)
    assert "default-src 'none'" in running.headers["content-security-policy"]
    running.chat("Why?", max_tokens=1)
    assert running.headers["x-content-type-options"] == "nosniff"
    assert len(running.headers["x-request-id"]) == 32
    assert "access-control-allow-origin" not in running.headers


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


def test_a_wrong_address_of_mlflow_is_told_at_the_start() -> None:
    with pytest.raises(
        TrackingError, match=r"^tracking_uri=ftp://x: is not an address that MLflow"
    ):
        Traces("ftp://x")


def test_an_engine_answers_behind_the_same_service(
    running: RunningService, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", f"{TOKEN}\n")
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
