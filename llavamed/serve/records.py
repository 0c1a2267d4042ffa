"""Records of requests: metrics for Prometheus, and lines of the audit log."""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llavamed.errors import ConfigError

logger = logging.getLogger(__name__)

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, float("inf"))


class Metrics:
    """The numbers that `/metrics` shows."""

    def __init__(self, load: Callable[[], tuple[int, int]]) -> None:
        """Begin to count.

        Args:
            load: Tells the requests that wait, and the answers that are being generated.
        """
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "llavamed_serve_requests", "Requests by how they ended.", ["status"], registry=registry
        )
        self.cancelled = Counter(
            "llavamed_serve_cancelled", "Requests that clients gave up.", registry=registry
        )
        self.refused = Counter(
            "llavamed_serve_refused",
            "Requests that were refused, by code.",
            ["code"],
            registry=registry,
        )
        self.first_token = Histogram(
            "llavamed_serve_first_token_seconds",
            "Seconds from the request to the first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.duration = Histogram(
            "llavamed_serve_request_seconds",
            "Seconds from the request to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "llavamed_serve_prompt_tokens",
            "Tokens of prompts, with those of images.",
            registry=registry,
        )
        self.tokens = Counter(
            "llavamed_serve_tokens", "Tokens that were generated.", registry=registry
        )
        self.image_bytes = Counter(
            "llavamed_serve_image_bytes", "Bytes of encoded images.", registry=registry
        )
        waiting = Gauge("llavamed_serve_waiting", "Requests that wait.", registry=registry)
        waiting.set_function(lambda: load()[0])
        batch = Gauge(
            "llavamed_serve_batch_size", "Answers that are being generated.", registry=registry
        )
        batch.set_function(lambda: load()[1])

    def text(self) -> bytes:
        """Return the numbers in Prometheus' form."""
        return generate_latest(self._registry)


@dataclass
class RequestRecord:
    """The facts about one request, until it has ended."""

    request_id: str
    began: float = field(default_factory=time.monotonic)
    client: str = ""
    model: str = ""
    is_stream: bool = False
    num_images: int = 0
    num_image_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_seconds: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    status: int = 200
    code: str | None = None
    is_cancelled: bool = False
    questions: list[str] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Return the seconds since it came."""
        return time.monotonic() - self.began

    def count(self, metrics: Metrics) -> None:
        """Add it to the metrics."""
        metrics.requests.labels("cancelled" if self.is_cancelled else str(self.status)).inc()
        if self.is_cancelled:
            metrics.cancelled.inc()
        if self.code is not None:
            metrics.refused.labels(self.code).inc()
        if self.first_token_seconds is not None:
            metrics.first_token.observe(self.first_token_seconds)
            metrics.duration.observe(self.seconds)
        metrics.prompt_tokens.inc(self.prompt_tokens)
        metrics.tokens.inc(self.completion_tokens)
        metrics.image_bytes.inc(self.num_image_bytes)

    def line(self, *, with_content: bool) -> dict[str, Any]:
        """Return it as a line of the audit log, with or without what was said."""
        content = {
            "questions": self.questions,
            "answers": [text for _, text in sorted(self.answers.items())],
        }
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": self.request_id,
            "client": self.client,
            "model": self.model,
            "stream": self.is_stream,
            "status": self.status,
            "code": self.code,
            "cancelled": self.is_cancelled,
            "images": self.num_images,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "finish_reasons": self.finish_reasons,
            "first_token_seconds": self.first_token_seconds,
            "seconds": round(self.seconds, 4),
            **(content if with_content else {}),
        }


class LineFile:
    """A file to which JSON lines are added, each whole."""

    def __init__(self, path: str, setting: str) -> None:
        """Make the file.

        Args:
            path: Where it is.
            setting: What names it in the config.

        Raises:
            ConfigError: It cannot be written.
        """
        self._path, self._lock = Path(path), threading.Lock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            self._path.open("a").close()
        except OSError as error:
            raise ConfigError(
                f"{setting}={path}: cannot be written ({error.strerror}); name another file"
            ) from error

    def add(self, line: dict[str, Any]) -> None:
        """Add a line. A full disk is logged, and no request fails by it."""
        text = json.dumps(line, ensure_ascii=False) + "\n"
        try:
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            logger.warning("%s: a line could not be written: %s", self._path, error.strerror)
