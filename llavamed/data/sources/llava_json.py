"""LLaVA's JSON list and image folder, the form in which LLaVA-Med's sets were released.

One item: `{"id", "image": name or [names], "conversations": [{"from": "human"|"gpt", "value"}],
"domain": {name: bool}}`. The released alignment set spells the key `conversatons`; both are read.
"""

import json
from collections.abc import Iterator
from typing import Any

import ijson

from llavamed.config.datasets import LlavaJson
from llavamed.data.sample import AnswerType, Record, Role, Turn
from llavamed.data.sources import hash_file, load_image_file
from llavamed.errors import BadSample, DataError
from llavamed.storage import locate, readable_errors

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
_ANSWER_TYPES: dict[str, AnswerType] = {"OPEN": "OPEN", "CLOSED": "CLOSED"}


class LlavaJsonSource:
    """Reads the list item by item, so that its size does not matter."""

    def __init__(self, read: LlavaJson) -> None:
        self._file = locate(read.path)
        self._images = locate(read.image_folder)
        self._licence = read.licence

    def count(self) -> int:
        """Items in the list."""
        return sum(1 for _ in self.rows())

    def content_hash(self) -> str:
        """SHA-256 of the JSON file."""
        return hash_file(self._file)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Items of the list. Raises: DataError, when the file is absent or no JSON list."""
        try:
            with readable_errors(self._file, "read"), self._open() as file:
                for item in ijson.items(file, "item", use_float=True):
                    yield item if isinstance(item, dict) else {"item": item}
        except FileNotFoundError as error:
            raise DataError(f"path={self._file}: no such file; check the dataset's path") from error
        except ijson.JSONError as error:
            text = error.args[0]
            text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            raise DataError(
                f"path={self._file}: not a JSON list: {text.splitlines()[0]}; download or export "
                "the file again"
            ) from error

    def _open(self) -> Any:
        file = self._file.fs.open(self._file.path, "rb")
        start = file.read(4096).lstrip()
        if not start.startswith(b"["):
            file.close()
            raise ijson.JSONError("it does not begin with a bracket")
        file.seek(0)
        return file

    def parse(self, row: dict[str, Any]) -> Record:
        """Understand one item. Raises: BadSample, for a missing key or an unknown role."""
        conversations = row.get("conversations", row.get("conversatons"))
        if not isinstance(conversations, list):
            raise BadSample("no_conversations", f"keys: {', '.join(sorted(row))}")
        image = row.get("image") or []
        domain = row.get("domain") or {}
        return Record(
            id=str(row.get("id", "")),
            images=tuple(str(name) for name in (image if isinstance(image, list) else [image])),
            turns=tuple(_turn(turn) for turn in conversations),
            domain=next((name for name, is_so in domain.items() if is_so), "")
            if isinstance(domain, dict)
            else str(domain),
            answer_type=_ANSWER_TYPES.get(str(row.get("answer_type", "")).strip(), ""),
            question_type=str(row.get("question_type", "")),
            licence=self._licence,
        )

    def load_image(self, reference: str) -> bytes:
        """An image by its name below the folder."""
        return load_image_file(self._images, reference)


def _turn(turn: Any) -> Turn:
    role = turn.get("from") if isinstance(turn, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise BadSample("unknown_role", f"'from' is {role!r}; known are {', '.join(_ROLES)}")
    value = turn.get("value")
    if not isinstance(value, str):
        raise BadSample("no_text", f"'value' of a {role} turn is {json.dumps(value)}")
    return Turn(_ROLES[role], value)
