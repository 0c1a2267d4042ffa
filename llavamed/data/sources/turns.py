"""Read turns and content parts as LLaVA, ShareGPT, OpenAI, Hugging Face and others write them.

A turn is `{"from", "value"}` or `{"role", "content"}`, where content is text or a list of parts:
`{"type": "text", "text"}`, and `{"type": "image"}` alone, with the image, or with the number of an
image that the row lists. `weight`, `loss`, `train` and `training` say whether an answer is trained.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llavamed.data.sources.fields import Fields
from llavamed.data.sources.json_text import read_json
from llavamed.data.sources.pictures import IMAGE_KEYS, picture_references, reference_of
from llavamed.errors import SampleError
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Role, Turn

MEDIA_KEYS = dict.fromkeys(("video", "videos", "audio", "audios"), "only pictures are read")
"""Keys of media that no model here reads, each with the message of a refusal."""
TRAINED_KEYS = ("weight", "loss", "train", "training")

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
_UNSUPPORTED_KEYS = MEDIA_KEYS | {
    "tool_calls": "tool calls are not trained",
    "function_call": "tool calls are not trained",
    "train_detail": "an answer is trained as a whole or not at all",
    "loss_scale": "use weight or loss, 0 or 1",
}
_TEXT_PARTS = {"text", "input_text", "output_text"}
_IMAGE_PARTS = {"image", "image_url", "input_image"}
_PICTURE_KEYS = ("image", "image_url", "path", "url", "source", "base64", "bytes")


@dataclass(frozen=True)
class Dialogue:
    """Turns, and the image of each placeholder in them.

    An image is a reference, the number of an image that the row lists, or None for the next of
    these.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[str | int | None, ...]

    def __add__(self, other: "Dialogue") -> "Dialogue":
        return Dialogue(self.turns + other.turns, self.pictures + other.pictures)

    def images(self, listed: Sequence[str]) -> tuple[str, ...]:
        """Return references to the images of the dialogue, in the order of the placeholders.

        A row may name an image both in its list and in a turn. If no turn names an image, the list
        is returned as it is, and `check_record` compares its length with the placeholders.

        Args:
            listed: References to the images that the row lists.

        Raises:
            SampleError: `placeholder_mismatch`, if turns and list do not fit each other.
        """
        if all(picture is None for picture in self.pictures):
            return tuple(listed)
        numbers = [picture for picture in self.pictures if isinstance(picture, int)]
        gaps = self.pictures.count(None)
        if set(numbers) == set(range(len(listed))) and not gaps:
            return tuple(listed[p] if isinstance(p, int) else str(p) for p in self.pictures)
        if not numbers and gaps == len(listed):
            rest = iter(listed)
            return tuple(next(rest) if p is None else str(p) for p in self.pictures)
        named = zip(self.pictures, listed, strict=False)
        if len(listed) == len(self.pictures) and all(p in (None, name) for p, name in named):
            return tuple(listed)
        raise SampleError(
            "placeholder_mismatch",
            f"{len(self.pictures) - gaps} pictures in the turns and {gaps} {IMAGE_PLACEHOLDER} "
            f"without one, {len(listed)} images of the row, which are not the same",
        )


def read_turns(value: Any, row: Fields, key: str = "turns", num_images: int = 0) -> Dialogue:
    """Read a list of turns, or its JSON text, with the images in them.

    Hugging Face's `Sequence` of turns is one mapping of lists of equal length. An element may be an
    exchange, `{"user", "assistant"}`, and then the images of the row come before the first one.
    Source: the datasets the_cauldron and FineVision of Hugging Face.

    Args:
        value: The value of the row's key.
        row: The row, which collects the unread keys of its turns.
        key: The key of the turns.
        num_images: Number of images that the row lists.

    Raises:
        SampleError: `no_conversations`, `unknown_role`, `no_text`, `unknown_weight`,
            `unsupported_key`, `missing_image` or `placeholder_mismatch`.
    """
    dialogue = Dialogue((), ())
    for each in _list(value, row):
        if not isinstance(each, Mapping):
            raise SampleError("no_text", f"{key!r} is a list of {each!r}, not of turns")
        turn = Fields(each)
        if turn.has("user") and turn.has("assistant"):
            dialogue += _read_exchange(turn, 0 if dialogue.turns else num_images)
        else:
            dialogue += _read_turn(turn)
        row.note_unread(f"{key}[]", turn)
    return dialogue


def _read_exchange(pair: Fields, num_images: int) -> Dialogue:
    """Read a question and its answer, after so many images.

    Raises:
        SampleError: `no_text`.
    """
    spoken = Dialogue((), ())
    for role in ("user", "assistant"):
        text = pair.take(role)
        if not isinstance(text, str):
            raise SampleError("no_text", f"{role!r} of an exchange is {text!r}")
        is_first = not spoken.turns and IMAGE_PLACEHOLDER not in text
        spoken += speak(_ROLES[role], text, [None] * num_images if is_first else ())
    return spoken


def _list(value: Any, row: Fields) -> list[Any]:
    """Return a list of turns, whatever it is written as."""
    if isinstance(value, str):
        value = read_json(value)
    if isinstance(value, Mapping) and all(isinstance(cells, list) for cells in value.values()):
        lengths = [len(cells) for cells in value.values()]
        if len(set(lengths)) > 1:
            counts = " and ".join(map(str, lengths))
            raise SampleError("no_conversations", f"lists of {', '.join(value)}, of {counts} turns")
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise SampleError("no_conversations", f"keys: {row.keys()}; turns are a list")
    return value


def speak(role: Role, text: str, pictures: Sequence[str | int | None] = ()) -> Dialogue:
    """Return one turn with images at its placeholders, or before the text if it has none.

    Raises:
        SampleError: `placeholder_mismatch`, if the numbers of placeholders and images differ.
    """
    count = text.count(IMAGE_PLACEHOLDER)
    if pictures and not count:
        text = "\n".join([*[IMAGE_PLACEHOLDER] * len(pictures), text])
    elif pictures and count != len(pictures):
        raise SampleError(
            "placeholder_mismatch",
            f"{count} {IMAGE_PLACEHOLDER} in a {role} turn with {len(pictures)} pictures",
        )
    return Dialogue((Turn(role, text),), tuple(pictures or [None] * count))


def read_trained(fields: Fields, what: str) -> bool:
    """Return whether `weight` and similar keys let an answer be trained.

    Raises:
        SampleError: `unknown_weight`.
    """
    found = set()
    for key in TRAINED_KEYS:
        value = fields.take(key)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            raise SampleError(
                "unknown_weight", f"{key} of {what} is {value!r}; known are 0, 1, false and true"
            )
        found.add(bool(value))
    if len(found) > 1:
        raise SampleError("unknown_weight", f"two keys of {what} disagree on whether it is trained")
    return found != {False}


def _read_turn(fields: Fields) -> Dialogue:
    """Read one turn, whose placeholders may be in its text or among its parts.

    Raises:
        SampleError: `unknown_role`, `no_text`, or another reason of `read_turns`.
    """
    key, role = fields.named("role", "from")
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise SampleError("unknown_role", f"{key or 'from'!r} is {role!r}; known are {known}")
    fields.refuse(_UNSUPPORTED_KEYS)
    keys = ("content", "text") if key == "role" else ("value",)
    content = fields.take(*keys)
    pictures: list[str | int | None] = list(picture_references(fields.take(*IMAGE_KEYS)))
    if isinstance(content, list):
        content, within = _read_parts(content, fields)
        pictures += within
    if not isinstance(content, str):
        what = " or ".join(repr(key) for key in keys)
        found = json.dumps(content, default=str)
        raise SampleError("no_text", f"{what} of a {role} turn is {found}")
    spoken = speak(_ROLES[role], content, pictures)
    if not read_trained(fields, f"a {role} turn"):
        turn = spoken.turns[0]
        return Dialogue((Turn(turn.role, turn.text, trained=False),), spoken.pictures)
    return spoken


def _read_parts(parts: list[Any], turn: Fields) -> tuple[str, list[str | int | None]]:
    """Return the text of a list of content parts, and the image of each placeholder in it."""
    texts: list[str] = []
    pictures: list[str | int | None] = []
    for each in parts:
        part = Fields(each)
        text, within = _read_part(part, each)
        texts.append(text)
        pictures += within
        turn.note_unread("content[]", part)
    return "\n".join(texts), pictures


def _read_part(part: Fields, value: Any) -> tuple[str, list[str | int | None]]:
    kind = part.take("type")
    picture_key, picture = part.named(*_PICTURE_KEYS)
    if kind in _IMAGE_PARTS or (kind is None and picture is not None):
        part.skip("detail")
        number = part.take("index")
        if picture is not None:
            return IMAGE_PLACEHOLDER, [reference_of({picture_key: picture})]
        return IMAGE_PLACEHOLDER, [number if isinstance(number, int) else None]
    text = part.take("text")
    if (kind is None or kind in _TEXT_PARTS) and isinstance(text, str) and picture is None:
        return text.strip("\n"), [None] * text.count(IMAGE_PLACEHOLDER)
    what = f"of type {kind!r}" if isinstance(value, Mapping) else repr(value)
    raise SampleError("no_text", f"a part is {what}; known are text and image")
