"""Requests as files of OpenAI's Batch API, which `vllm run-batch` reads too, and their answers.

A line's `custom_id` is the key of its request. Once the answers are in the cache, `Client.answer`
finds them there: what follows does not know that they came as a file.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from io import BufferedReader, RawIOBase
from itertools import islice
from typing import Any, cast

from llavamed.config.endpoint import Endpoint
from llavamed.errors import DataError
from llavamed.llm.answer import AnswerCache, CacheEntry, entry_of, is_completion, is_given_up
from llavamed.llm.cost import Budget
from llavamed.llm.request import Request
from llavamed.storage.location import locate

MAX_REQUESTS = 50_000
"""Of a file. Source: OpenAI's guide of the Batch API."""
MAX_BYTES = 200_000_000
"""Of a file; the guide says 200 MB."""
NUM_THREADS = 16
"""Number of answers written to the cache at once, because an object store takes a while for
each."""

_KEY = re.compile(r"[0-9a-f]{64}")


def write_batches(
    requests: Iterable[Request], endpoint: Endpoint, folder: str, cache: str
) -> list[str]:
    """Write the requests that have no answer yet, and return the names of the files.

    Args:
        requests: Equal ones are written once.
        endpoint: Whose model and dialect the bodies have.
        folder: URI of the folder to write `requests-00000.jsonl`, ... to.
        cache: URI of the folder of raw answers.

    Raises:
        EndpointError: At the batch price, all could cost more than `max_cost`. The files that are
            written by then cost less.
        StorageError: The folder cannot be written.
    """
    names = []
    for number, lines in enumerate(_files(_lines(requests, endpoint, AnswerCache(cache)))):
        names.append(f"requests-{number:05d}.jsonl")
        (locate(folder) / names[-1]).write_bytes(b"".join(lines))
    return names


def read_batch(file: str, cache: str) -> Counter[str]:
    """Keep the answers of an output or error file, and count its lines by kind.

    `answered` lines are in the cache. The others are not, so that their requests are asked again;
    they count by the endpoint's code, or as `not_json`, `foreign` (of a request that is not ours)
    or `body` (no chat completion).

    Args:
        file: URI of the file, whose lines may have any order.
        cache: URI of the folder of raw answers.

    Raises:
        DataError: There is no such file.
        StorageError: The file cannot be read, or the cache not written.
    """
    answers = AnswerCache(cache)

    def keep(line: bytes) -> str:
        kind, key, completion = _read_line(line)
        if completion is not None:
            answers.write(key, completion)
        return kind

    counts: Counter[str] = Counter()
    try:
        with locate(file).open() as raw, ThreadPoolExecutor(NUM_THREADS) as pool:
            lines = (line for line in BufferedReader(cast("RawIOBase", raw)) if line.strip())
            while some := list(islice(lines, 16 * NUM_THREADS)):
                counts.update(pool.map(keep, some))
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; check the path") from error
    return counts


def _lines(
    requests: Iterable[Request], endpoint: Endpoint, answers: AnswerCache
) -> Iterator[bytes]:
    budget = Budget(endpoint, is_batch=True)
    written: set[bytes] = set()
    for request in requests:
        key = request.key(endpoint)
        if bytes.fromhex(key) in written or answers.read(key) is not None:
            continue
        written.add(bytes.fromhex(key))
        budget.reserve(request)
        call = {"method": "POST", "url": "/v1/chat/completions"}
        line = {"custom_id": key, **call, "body": request.body(endpoint)}
        yield json.dumps(line).encode() + b"\n"


def _files(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Deal the lines into files within the limits."""
    file: list[bytes] = []
    size = 0
    for line in lines:
        if file and (len(file) == MAX_REQUESTS or size + len(line) > MAX_BYTES):
            yield file
            file, size = [], 0
        file.append(line)
        size += len(line)
    if file:
        yield file


def _read_line(line: bytes) -> tuple[str, str, CacheEntry | None]:
    """Return the kind of a line, its key, and the entry of the cache where it has an answer."""
    try:
        row = json.loads(line)
    except ValueError:
        return "not_json", "", None
    row = _mapping(row)
    key = row.get("custom_id")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        return "foreign", "", None
    response = _mapping(row.get("response"))
    body = _mapping(response.get("body"))
    if response.get("status_code") != 200:
        error = _mapping(row.get("error")) or _mapping(body.get("error"))
        return str(error.get("code") or response.get("status_code") or "failed"), key, None
    if not is_completion(body):
        return "body", key, None
    if is_given_up(body):
        return "given_up", key, None
    created, moment = body.get("created"), datetime.now(UTC)
    if isinstance(created, int) and 0 < created < 2**32:
        moment = datetime.fromtimestamp(created, UTC)
    entry = entry_of(body, received_at=moment.isoformat(), attempts=1, is_batch=True)
    return "answered", key, entry


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
