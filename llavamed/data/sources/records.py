"""Convert rows of any format to a `Record`: dialogues, questions, answer types.

A row holds a dialogue as a list of turns (`conversations`, `messages`, `turns`) or of exchanges
(`texts`), or a question and its answer under one of the usual pairs of keys: `question` and
`answer`, `prompt` and `completion`, `query` and `response`, `instruction` (with `input`) and
`output`. Other keys are `id`, images, `system`, `domain` and the like. Keys that would change the
meaning of the sample, such as a video or tools, are refused. Other keys that are not read are
collected for a warning.

The alignment set that LLaVA-Med released spells a key `conversatons`, which is read too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llavamed.data.record import AnswerType, Record
from llavamed.data.sources.csv_rows import MALFORMED
from llavamed.data.sources.fields import Fields
from llavamed.data.sources.json_rows import BROKEN
from llavamed.data.sources.pictures import IMAGE_KEYS, picture_references
from llavamed.data.sources.turns import (
    MEDIA_KEYS,
    TRAINED_KEYS,
    Dialogue,
    read_trained,
    read_turns,
    speak,
)
from llavamed.errors import SampleError
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn

DIALOGUE_KEYS = ("conversations", "conversatons", "conversation", "turns", "messages", "texts")
PAIRS = {
    "question": ("answer", "response"),
    "prompt": ("completion", "response"),
    "query": ("response",),
    "instruction": ("output", "response"),
}
"""Keys of a question, each with the keys of its answer."""
SYSTEM_KEYS = ("system", "system_prompt")
IDS = ("id", "question_id", "qid")
NOTES = ("domain", "answer_type", "question_type", "pmid", "licence")
"""Keys that describe a sample in addition to its dialogue."""
_NEEDED = "conversations, turns, messages or texts, or question and answer"
_UNSUPPORTED_KEYS = MEDIA_KEYS | {
    "tools": "tools are not trained",
    "functions": "tools are not trained",
    "objects": "places in a picture are not trained",
}
_CHOICES = dict.fromkeys(("choices", "options"), "write the choices into the question")
_REFUSED_WHERE_FALSE = ("label", "kto_tag")
ROW_KEYS = (
    *IDS,
    *DIALOGUE_KEYS,
    *PAIRS,
    *(key for keys in PAIRS.values() for key in keys),
    *("input", "history"),
    *SYSTEM_KEYS,
    *TRAINED_KEYS,
    *NOTES,
    *_UNSUPPORTED_KEYS,
    *_CHOICES,
    *_REFUSED_WHERE_FALSE,
)
"""All keys of a row that are read or refused, except those of images."""
_ANSWER_TYPES: dict[str, AnswerType] = {"OPEN": "OPEN", "CLOSED": "CLOSED"}
_OTHER_TYPES = "answer_type that is neither OPEN nor CLOSED"
_PICTURES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2"),
    *(".dcm", ".nii", ".nii.gz"),
)
"""Endings of the names of pictures and scans."""


def dialogue(
    row: Mapping[str, Any], images: Sequence[str] | None, *, id: str, licence: str
) -> Record:
    """Return the record of a row with a dialogue.

    Args:
        row: The row in the format of its source.
        images: References to the images if the format keeps them apart from the row,
            otherwise None.
        id: The id of a row that has none.
        licence: The licence of a row that has none.

    Raises:
        SampleError: `malformed_row`, `no_conversations`, `missing_key`, `unsupported_key`,
            `two_systems`, or any reason of unreadable turns and images; `missing_image` too if only
            a key that is not read names a picture.
    """
    if fact := row.get(MALFORMED):
        raise SampleError("malformed_row", fact)
    fields = Fields(row)
    fields.refuse(_UNSUPPORTED_KEYS)
    listed = _listed_images(fields) if images is None else list(images)
    fields.skip(*IMAGE_KEYS)
    key, value = fields.named(*DIALOGUE_KEYS)
    is_pair = value is None
    spoken = (
        _read_pair(fields, len(listed)) if is_pair else read_turns(value, fields, key, len(listed))
    )
    turns = _with_system(fields, spoken.turns)
    if not read_trained(fields, "the row"):
        turns = tuple(replace(turn, trained=False) for turn in turns)
    record = _record(fields, spoken.images(listed), turns, id=id, licence=licence)
    if not record.images:
        _refuse_unread_picture(row, record.unread_keys)
    if is_pair and turns and not record.answer_type:
        return replace(record, answer_type=yes_or_no(turns[-1].text))
    return record


def make_record(
    row: Mapping[str, Any], images: Sequence[str], turns: Sequence[Turn], *, id: str, licence: str
) -> Record:
    """Return the record of these images and turns, with the notes of the row.

    Args:
        row: A row that holds no dialogue.
        images: References to the images.
        id: The id of a row that has none.
        licence: The licence of a row that has none.

    Raises:
        SampleError: `unsupported_key`, `no_text` or `two_systems`.
    """
    fields = Fields(row)
    fields.refuse(_UNSUPPORTED_KEYS)
    fields.skip(*IMAGE_KEYS)
    turns = _with_system(fields, tuple(turns))
    return _record(fields, images, turns, id=id, licence=licence)


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
    """Return the record of one question about one image."""
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
    """Return the values of keys as texts.

    Raises:
        SampleError: `missing_key`, if one is absent or null; `not_json`, if the row is broken.
    """
    missing = [key for key in keys if row.get(key) is None]
    if missing and BROKEN in row:
        raise SampleError("not_json", str(row[BROKEN]))
    if missing:
        raise SampleError("missing_key", f"no {', '.join(missing)}")
    return [str(row[key]) for key in keys]


def read_answer_type(row: Mapping[str, Any]) -> AnswerType:
    """Return `OPEN` or `CLOSED`, without the spaces around it.

    Raises:
        SampleError: `unknown_answer_type`.
    """
    answer_type = str(row.get("answer_type", "")).strip()
    if answer_type not in _ANSWER_TYPES:
        raise SampleError("unknown_answer_type", f"answer_type is {answer_type!r}")
    return _ANSWER_TYPES[answer_type]


def yes_or_no(answer: str) -> AnswerType:
    """Return the answer type of a question that has none: closed if answered by yes or no."""
    return "CLOSED" if answer.strip().lower() in {"yes", "no"} else "OPEN"


def _refuse_unread_picture(row: Mapping[str, Any], unread: Sequence[str]) -> None:
    """Raise SampleError (`missing_image`) if a key that is not read names a picture."""
    for key in unread:
        if str(row.get(key, "")).strip().lower().endswith(_PICTURES):
            raise SampleError(
                "missing_image", f"{key} is {row[key]!r}, and only image is read; rename it"
            )


def _listed_images(fields: Fields) -> list[str]:
    """Return references to the images that a row names.

    Raises:
        SampleError: `missing_image`, if two keys name different images.
    """
    lists = [picture_references(fields.take(key)) for key in IMAGE_KEYS]
    listed = [names for names in lists if names]
    if any(names != listed[0] for names in listed):
        raise SampleError("missing_image", "two keys of the row name different images")
    return listed[0] if listed else []


def _read_pair(fields: Fields, num_images: int) -> Dialogue:
    """Return the dialogue of a question and its answer, each given as text or turns.

    Raises:
        SampleError: `no_conversations`, if the row has no pair; `missing_key`, if it has no answer;
            `not_json`, if it is broken.
    """
    found = [(key, *fields.named(*answers)) for key, answers in PAIRS.items() if fields.has(key)]
    if not found:
        if broken := fields.take(BROKEN):
            raise SampleError("not_json", str(broken))
        raise SampleError("no_conversations", f"keys: {fields.keys()}; needed are {_NEEDED}")
    asked_key, answer_key, answer = next((pair for pair in found if pair[1]), found[0])
    if not answer_key:
        raise SampleError("missing_key", f"{asked_key} without {' or '.join(PAIRS[asked_key])}")
    fields.refuse(_CHOICES)
    asked = fields.take(asked_key)
    before = Dialogue((), ())
    history = fields.take("history") or []
    if not isinstance(history, list):
        raise SampleError("no_text", f"the history is {history!r}")
    for earlier in history:
        if not isinstance(earlier, list) or len(earlier) != 2:
            raise SampleError("no_text", f"a pair of the history is {earlier!r}")
        before += speak("user", _plain(earlier[0], "history"))
        before += speak("assistant", _plain(earlier[1], "history"))
    if isinstance(asked, list):
        before += read_turns(asked, fields, asked_key)
    else:
        text = _plain(asked, asked_key).strip()
        if asked_key == "instruction" and (given := fields.take("input")) is not None:
            text = "\n".join(part for part in (text, _plain(given, "input").strip()) if part)
        is_unplaced = not before.pictures and IMAGE_PLACEHOLDER not in text
        before += speak("user", text, [None] * num_images if is_unplaced else ())
    if isinstance(answer, list):
        return before + read_turns(answer, fields, answer_key)
    return before + speak("assistant", _plain(answer, answer_key).strip())


def _plain(value: Any, key: str) -> str:
    """Return a text or a finite number as text.

    Raises:
        SampleError: `no_text`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or (is_number and math.isfinite(value)):
        return str(value)
    raise SampleError("no_text", f"{key!r} is {value!r}")


def _with_system(fields: Fields, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Return the turns, preceded by the system prompt of the row if there is one.

    Raises:
        SampleError: `no_text`, if it is not text; `two_systems`, if the turns have another one.
    """
    value = fields.take(*SYSTEM_KEYS)
    if value is not None and not isinstance(value, str):
        raise SampleError("no_text", f"'system' is {value!r}")
    if value is None or not value.strip():
        return turns
    own = [turn.text for turn in turns if turn.role == "system"]
    if own and own != [value]:
        raise SampleError("two_systems", f"{own[0]!r} in the turns, {value!r} next to them")
    return turns if own else (Turn("system", value), *turns)


def _record(
    fields: Fields, images: Sequence[str], turns: Sequence[Turn], *, id: str, licence: str
) -> Record:
    domain = fields.take("domain") or ""
    if isinstance(domain, Mapping):
        domain = next((name for name, is_so in domain.items() if is_so), "")
    for key in _REFUSED_WHERE_FALSE:
        if fields.is_false(key):
            raise SampleError("unsupported_key", f"{key} is false: bad answers are not trained")
    stated = fields.text("answer_type").strip().upper()
    ours = _ANSWER_TYPES.get(stated, "")
    return Record(
        id=fields.text(*IDS) or id,
        images=tuple(images),
        turns=tuple(turns),
        domain=str(domain),
        answer_type=ours,
        question_type=fields.text("question_type"),
        pmid=fields.text("pmid"),
        licence=fields.text("licence") or licence,
        unread_keys=(*fields.unread(), *([_OTHER_TYPES] if stated and not ours else ())),
    )
