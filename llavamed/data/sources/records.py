"""From what formats write to what a `Record` says: dialogues, questions, answer types.

A dialogue as formats write it: `{"id", "image" or "images", "conversations", "turns" or "messages",
"domain": name or {name: bool}, ...}`, each turn `{"from", "value"}` or `{"role", "content"}`, where
content may be a list of `{"type": "image"}` and `{"type": "text", "text"}`. The alignment set that
LLaVA-Med released spells the key `conversatons`; it is read too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llavamed.data.record import AnswerType, Record
from llavamed.errors import SampleError
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Role, Turn

DIALOGUE_KEYS = ("conversations", "conversatons", "turns", "messages")
IMAGE_KEYS = ("image", "images")
NOTES = ("domain", "answer_type", "question_type", "pmid", "licence")
"""What a row may say of itself beside its dialogue."""

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_ANSWER_TYPES: dict[str, AnswerType] = {"OPEN": "OPEN", "CLOSED": "CLOSED"}


def dialogue(row: Mapping[str, Any], images: Sequence[str], *, id: str, licence: str) -> Record:
    """The record of a row with a dialogue; `id` and `licence` are for a row that names none.

    Raises:
        SampleError: `no_conversations`, `unknown_role` or `no_text`.
    """
    value = next((row[key] for key in DIALOGUE_KEYS if row.get(key) is not None), None)
    return describe(row, images, read_turns(value, row), id=id, licence=licence)


def describe(
    row: Mapping[str, Any],
    images: Sequence[str],
    turns: Sequence[Turn],
    *,
    id: str,
    licence: str,
) -> Record:
    """The record of these images and turns, with what the row notes about itself."""
    domain = row.get("domain") or ""
    if isinstance(domain, Mapping):
        domain = next((name for name, is_so in domain.items() if is_so), "")
    return Record(
        id=_text(row, "id") or id,
        images=tuple(images),
        turns=tuple(turns),
        domain=str(domain),
        answer_type=_ANSWER_TYPES.get(_text(row, "answer_type").strip(), ""),
        question_type=_text(row, "question_type"),
        pmid=_text(row, "pmid"),
        licence=_text(row, "licence") or licence,
    )


def question(
    row: Mapping[str, Any],
    *,
    image: str,
    text: str,
    answer: str,
    answer_type: AnswerType,
    question_type: str = "",
    domain: str = "",
    licence: str,
) -> Record:
    """The record of one question about one image."""
    return Record(
        id=str(row["id"]),
        images=(image,),
        turns=(
            Turn("user", f"{IMAGE_PLACEHOLDER}\n{text.strip()}"),
            Turn("assistant", answer.strip()),
        ),
        domain=domain,
        answer_type=answer_type,
        question_type=question_type,
        licence=licence,
    )


def require(row: Mapping[str, Any], *keys: str) -> list[str]:
    """The texts of the keys. Raises: SampleError("missing_key", ...), for one absent or null."""
    missing = [key for key in keys if row.get(key) is None]
    if missing:
        raise SampleError("missing_key", f"no {', '.join(missing)}")
    return [str(row[key]) for key in keys]


def read_answer_type(row: Mapping[str, Any]) -> AnswerType:
    """`OPEN` or `CLOSED`, spaces around it or not. Raises: SampleError, for anything else."""
    answer_type = str(row.get("answer_type", "")).strip()
    if answer_type not in _ANSWER_TYPES:
        raise SampleError("unknown_answer_type", f"answer_type is {answer_type!r}")
    return _ANSWER_TYPES[answer_type]


def read_turns(value: Any, row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns of a list, or of one as JSON text; `row` is named where there is none.

    Hugging Face's `Sequence` of turns is one turn of lists, as long as each other.

    Raises:
        SampleError: `no_conversations`, `unknown_role` or `no_text`.
    """
    if isinstance(value, str):
        value = read_json(value)
    if isinstance(value, Mapping) and all(isinstance(cells, list) for cells in value.values()):
        lengths = [len(cells) for cells in value.values()]
        if len(set(lengths)) > 1:
            counts = " and ".join(map(str, lengths))
            raise SampleError("no_conversations", f"lists of {', '.join(value)}, of {counts} turns")
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise SampleError("no_conversations", f"keys: {', '.join(sorted(row))}")
    return tuple(_turn(turn) for turn in value)


def read_json(text: str | bytes) -> Any:
    """JSON within a sample. Raises: SampleError("not_json", ...)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError("not_json", str(error)) from error


def _turn(turn: Any) -> Turn:
    turn = turn if isinstance(turn, Mapping) else {}
    key = "role" if "role" in turn else "from"
    role = turn.get(key)
    if not isinstance(role, str) or role not in _ROLES:
        raise SampleError("unknown_role", f"{key!r} is {role!r}; known are {', '.join(_ROLES)}")
    keys = ("content", "text") if key == "role" else ("value",)
    text = next((turn[key] for key in keys if turn.get(key) is not None), None)
    if isinstance(text, list):
        text = "\n".join(_part(part) for part in text)
    if not isinstance(text, str):
        what = " or ".join(repr(key) for key in keys)
        raise SampleError("no_text", f"{what} of a {role} turn is {json.dumps(text, default=str)}")
    return Turn(_ROLES[role], text)


def _part(part: Any) -> str:
    """The text of a piece of a turn's content, of an image its placeholder."""
    part = part if isinstance(part, Mapping) else {}
    kind = part.get("type")
    if kind == "image":
        return IMAGE_PLACEHOLDER
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"]).strip("\n")
    raise SampleError("no_text", f"a part of type {kind!r}; known are text and image")


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None else str(value)
