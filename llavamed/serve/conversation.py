"""A conversation with a model in this process: its turns, its images, and what it may hold next."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from llavamed.errors import RequestError
from llavamed.llm.request import Image, Message
from llavamed.model.continuation import Sampling
from llavamed.model.generation import Generator
from llavamed.serve.prompt import encode_messages, read_image
from llavamed.storage.location import locate

NOTICE = "For research only. This is not a medical device, and its answers may be wrong."
DEFAULT_MAX_TOKENS = 512
"""Maximum number of tokens of an answer if the request sets none."""


@dataclass(frozen=True)
class Settings:
    """How the answers of a conversation are generated; None leaves it to the conversation."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Conversation:
    """Turns with one model. A question that cannot be answered leaves it as it was."""

    def __init__(self, generator: Generator, settings: Settings) -> None:
        self._generator, self._settings = generator, settings
        self._messages: list[Message] = []
        self._waiting: list[Image] = []

    def attach(self, source: str) -> None:
        """Put an image before the next question.

        Args:
            source: A path or URI of a picture or DICOM file.

        Raises:
            RequestError: It cannot be read as an image.
            StorageError: It cannot be read.
        """
        try:
            data = locate(source).without_retries().read_bytes()  # somebody waits for it
        except FileNotFoundError as error:
            raise RequestError(
                f"image={source}: there is no such file; check the path", code="no_image"
            ) from error
        read_image(data, self._generator.images, f"image={source}")
        self._waiting.append(Image(data, "application/octet-stream"))

    def ask(self, question: str) -> Iterator[str]:
        """Ask a question, and yield the pieces of its answer as they come.

        Raises:
            RequestError: The question breaks a rule, or does not fit the context.
        """
        asked = Message("user", (*self._waiting, question))
        prompt, room = encode_messages(
            [*self._messages, asked],
            self._generator,
            max_new_tokens=self._settings.max_tokens,
            default=DEFAULT_MAX_TOKENS,
        )
        given = self._settings
        shown = ""
        for answer in self._generator.stream(
            prompt, Sampling(room, given.temperature, given.top_p, given.seed)
        ):
            text = answer.text
            yield text[len(shown) :]
            shown = text
        self._messages += [asked, Message("assistant", (shown,))]
        self._waiting = []

    def reset(self) -> None:
        """Forget all turns and images."""
        self._messages, self._waiting = [], []

    def save(self, target: str, model: str) -> None:
        """Write the conversation as JSON, with the hash of each image in its place.

        Args:
            target: The file to write, at any URI.
            model: What answered.

        Raises:
            StorageError: It cannot be written.
        """
        messages = [
            {
                "role": message.role,
                "content": [
                    {"type": "image", "sha256": hashlib.sha256(part.data).hexdigest()}
                    if isinstance(part, Image)
                    else {"type": "text", "text": part}
                    for part in message.parts
                ],
            }
            for message in self._messages
        ]
        body = {"notice": NOTICE, "model": model, "messages": messages}
        text = json.dumps(body, ensure_ascii=False, indent=2) + "\n"
        locate(target).write_bytes(text.encode())
