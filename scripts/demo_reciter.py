"""A language model that recites: an OpenAI-compatible endpoint that needs no weights.

It turns the phantoms' captions into dialogues. As real models do, it now and then asks to wait,
answers no JSON, or speaks of the caption, so that the demo shows what happens then.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

_FOUND = re.compile(
    r"image: (?P<what>.+?) that shows an? (?P<size>\w+) (?P<kind>\w+) on the (?P<side>\w+)"
)
_TEXTS = (
    ("What kind of image is this?", "Which modality is it?", "How was this image made?"),
    ("{what}.", "This is what a {what} looks like.", "It was made as {what}."),
    ("What is found?", "Is anything abnormal to be seen?", "Describe the finding, please."),
    ("A {size} {kind}.", "There is a {kind}, and it is {size}.", "One finding, a {size} {kind}."),
    ("On which side is it?", "Where does it lie?", "Which half of the image holds it?"),
    ("The {side} one.", "It lies on the {side} side.", "{side}, as the viewer sees it."),
)
"""Questions and answers in turn, each in several wordings."""


@contextmanager
def reciter() -> Iterator[str]:
    """Serve on a free port of this machine, and yield the address of the API."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        try:
            yield f"http://{host!s}:{port}/v1"
        finally:
            server.shutdown()


def recite(asked: str, number: int) -> str:
    """Return a dialogue as JSON for the notes of a phantom; every tenth answer has a fault."""
    found = _FOUND.search(asked)
    if found is None or number % 10 == 9:
        return "Here is a dialogue about the image."
    words = Random(number)
    texts = [words.choice(each).format(**found.groupdict()) for each in _TEXTS]
    if number % 10 == 4:
        texts += ["How do you know?", "The caption says so."]
    speakers = ("user", "assistant")
    turns = [{"speaker": speakers[n % 2], "text": text} for n, text in enumerate(texts)]
    return json.dumps({"turns": turns})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    _lock = threading.Lock()
    _count = 0

    def do_POST(self) -> None:
        """Answer a request for a chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self._lock:
            number = type(self)._count
            type(self)._count += 1
        if number % 20 == 7:
            error = {"message": "Slow down.", "code": "rate_limit_exceeded"}
            self._send(429, {"error": error})
            return
        text = recite(body["messages"][-1]["content"], number)
        message = {"role": "assistant", "content": text}
        prompt = sum(len(turn["content"]) for turn in body["messages"]) // 4
        self._send(
            200,
            {
                "id": f"recited-{number}",
                "object": "chat.completion",
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": prompt, "completion_tokens": len(text) // 4},
            },
        )

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
