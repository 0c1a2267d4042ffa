"""Files of the Batch API: written, answered by anybody, read into the cache."""

import json
from collections import Counter

import pytest

from llavamed.config.endpoint import Endpoint, Prices
from llavamed.errors import DataError, EndpointError
from llavamed.llm import batch_file
from llavamed.llm.batch_file import read_batch, write_batches
from llavamed.llm.request import Message, Request
from tests.support.llm_answers import answers

PLACE = Endpoint(url="http://127.0.0.1:1/v1", model="judge")
REQUESTS = [Request((Message("user", (f"<{number}>",)),), 16) for number in range(12)]


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def lines_of(folder, names):
    return [json.loads(line) for name in names for line in (folder / name).open()]


def run_batch(endpoint, lines):
    """Answer a file as the Batch API and `vllm run-batch` do, last line first."""
    for line in reversed(lines):
        body = endpoint.completion(line["body"]) | {"created": 1_700_000_000}
        response = {"status_code": 200, "request_id": "r", "body": body}
        yield {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None}


def write_lines(file, lines):
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    return str(file)


def test_what_a_batch_answered_is_never_asked_again(endpoint, tmp_path, cache):
    names = write_batches([*REQUESTS, *REQUESTS], PLACE, str(tmp_path), cache)
    lines = lines_of(tmp_path, names)
    assert [line["custom_id"] for line in lines] == [request.key(PLACE) for request in REQUESTS]
    assert [line["body"] for line in lines] == [request.body(PLACE) for request in REQUESTS]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}

    output = write_lines(tmp_path / "output.jsonl", run_batch(endpoint, lines))
    assert read_batch(output, cache) == {"answered": 12}
    assert write_batches(REQUESTS, PLACE, str(tmp_path), cache) == []

    prices = Prices(input=1e6, output=1e6, batch=0.5)
    found = answers(endpoint, cache, *REQUESTS, prices=prices)
    assert endpoint.bodies == []
    assert {(answer.outcome, answer.is_cached, answer.cost) for answer in found} == {
        ("answered", True, 6)
    }
    assert {answer.received_at for answer in found} == {"2023-11-14T22:13:20+00:00"}


@pytest.mark.parametrize("limit", ["MAX_REQUESTS", "MAX_BYTES"])
def test_files_stay_within_the_limits_of_the_api(tmp_path, cache, monkeypatch, limit):
    most = {"MAX_REQUESTS": 5, "MAX_BYTES": 1000}
    monkeypatch.setattr(batch_file, limit, most[limit])
    names = write_batches(REQUESTS, PLACE, str(tmp_path), cache)
    assert len(names) > 1
    for name in names:
        data = (tmp_path / name).read_bytes()
        size = {"MAX_REQUESTS": data.count(b"\n"), "MAX_BYTES": len(data)}[limit]
        assert 0 < size <= most[limit]
    assert len(lines_of(tmp_path, names)) == 12


def test_lines_without_an_answer_are_counted_and_asked_again(endpoint, tmp_path, cache):
    names = write_batches(REQUESTS, PLACE, str(tmp_path), cache)
    good, *rest = run_batch(endpoint, lines_of(tmp_path, names))
    rest[0]["response"] |= {"status_code": 400, "body": {"error": {"code": "too_long"}}}
    rest[1]["response"] |= {"status_code": 500, "body": "<html>"}
    rest[2] |= {"response": None, "error": {"code": "batch_expired", "message": "Too late."}}
    rest[3]["response"]["body"] = {"object": "list"}
    rest[4]["custom_id"] = "request-5"
    rest[5] |= {"response": "lost", "error": "lost"}
    file = write_lines(tmp_path / "output.jsonl", [good, *rest[:6], 7])
    with open(file, "ab") as handle:
        handle.write(b'{"custom_id": "cut')
    kinds = ["answered", "too_long", "500", "batch_expired", "body", "foreign", "foreign", "failed"]
    assert read_batch(file, cache) == Counter([*kinds, "not_json"])
    (again,) = write_batches(REQUESTS, PLACE, str(tmp_path), cache)
    assert len(lines_of(tmp_path, [again])) == 11


def test_a_batch_that_could_pass_the_budget_is_not_written(tmp_path, cache):
    prices = Prices(input=1e6, output=1e6, batch=0.5)
    most = sum(request.most_prompt_tokens(PLACE) + 16 for request in REQUESTS) / 2
    enough = PLACE.model_copy(update={"prices": prices, "max_cost": most + 1})
    assert write_batches(REQUESTS, enough, str(tmp_path / "enough"), cache)
    less = enough.model_copy(update={"max_cost": most - 1})
    with pytest.raises(EndpointError, match=r"max_cost=.*; raise max_cost"):
        write_batches(REQUESTS, less, str(tmp_path / "less"), cache)
    assert not (tmp_path / "less").exists()


def test_a_file_that_is_not_there_is_missed(tmp_path, cache):
    with pytest.raises(DataError, match=r"output.jsonl: no such file; check the path"):
        read_batch(str(tmp_path / "output.jsonl"), cache)
