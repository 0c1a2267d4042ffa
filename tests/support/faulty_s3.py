"""A proxy in front of the tests' S3 server, which fails as real ones do, on request.

Tests that use the fixture `faulty` get S3 through it, with the client's own tries switched off:
those take seconds, and what is tested is ours.
"""

import http.client
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest
import s3fs

from llavamed.storage import location as storage
from tests.support.http_server import serving

Fault = Literal["500", "503", "reset", "lost", "hang", "cut", "wrong", "403"]
"""`lost` answers after the work is done, by a reset; `cut` sends half of the body it announced;
`wrong` sends other bytes, as many; `403` does not pass."""

OF_ANY_REQUEST: tuple[Fault, ...] = ("500", "503", "reset", "lost", "hang")
OF_A_BODY: tuple[Fault, ...] = ("cut", "wrong")
FOR_EVER = 1_000_000
_PATIENCE_SECONDS = 1.5  # a busy machine may take half a second to answer without a fault
_CODES = {"500": (500, "InternalError"), "503": (503, "SlowDown"), "403": (403, "AccessDenied")}


@dataclass
class _Rule:
    fault: Fault
    path: str
    method: str
    left: int

    def fits(self, method: str, path: str) -> bool:
        return self.left > 0 and self.path in path and method.startswith(self.method)


@dataclass
class FaultyS3:
    """Its faults and what was asked of it. Requests are told from each other by method and path."""

    upstream: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    num_faults: int = 0
    _rules: list[_Rule] = field(default_factory=list)
    _chance: tuple[float, random.Random, tuple[Fault, ...]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, fault: Fault, path: str = "", *, times: int = 1, method: str = "") -> None:
        """The next `times` requests whose path holds `path` meet the fault."""
        self._rules.append(_Rule(fault, path, method, times))

    def fail_at_random(self, probability: float, faults: tuple[Fault, ...], seed: int) -> None:
        """Any request meets one of the faults with this probability."""
        self._chance = (probability, random.Random(seed), faults)

    def heal(self) -> None:
        """No more faults; what was counted is forgotten."""
        self._rules.clear()
        self._chance = None
        self.requests.clear()
        self.num_faults = 0

    def count(self, path: str = "", method: str = "") -> int:
        """Requests so far whose path holds `path`."""
        return sum(path in there and how.startswith(method) for how, there in self.requests)

    def _next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            fault: Fault | None = None
            if rule := next((rule for rule in self._rules if rule.fits(method, path)), None):
                rule.left -= 1
                fault = rule.fault
            elif self._chance:
                probability, generator, faults = self._chance
                fault = generator.choice(faults) if generator.random() < probability else None
            self.num_faults += fault is not None
            return fault


@contextmanager
def proxy_to_s3() -> Iterator[FaultyS3]:
    """Lead S3's clients of this process through a proxy."""
    proxy = FaultyS3(os.environ["AWS_ENDPOINT_URL"])
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with serving(handler) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        patch.setattr(s3fs.S3FileSystem, "read_timeout", _PATIENCE_SECONDS)
        patch.setattr(storage, "UNRETRIED_TIMEOUT_SECONDS", _PATIENCE_SECONDS)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyS3

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy._next_fault(self.command, unquote(self.path))
        if fault == "hang":
            time.sleep(3 * _PATIENCE_SECONDS)
        if fault in {"hang", "reset"}:
            return self._reset()
        if fault in _CODES:
            status, code = _CODES[fault]
            error = f"<Error><Code>{code}</Code><Message>Please try again.</Message></Error>"
            head = [("Content-Type", "application/xml"), ("Content-Length", str(len(error)))]
            return self._send(status, head, error.encode())
        answer, data = self._forward(body)
        if fault == "lost":
            return self._reset()
        if fault == "wrong":
            data = bytes(255 - byte for byte in data)
        self._send(answer.status, answer.getheaders(), data, cut=fault == "cut")
        return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=30)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _send(
        self, status: int, head: list[tuple[str, str]], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in head:
            if name.lower() not in {"connection", "transfer-encoding"}:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def _reset(self) -> None:
        """Close without a word, so that the other side sees a reset connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()
