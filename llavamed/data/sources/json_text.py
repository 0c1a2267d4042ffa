"""Parse JSON in which no key may have two values, of which Python would keep the last."""

import json
from typing import Any

from llavamed.errors import SampleError

Pairs = list[tuple[str, Any]]
"""The keys of an object with their values, in the order of the text."""


def read_json(text: str | bytes) -> Any:
    """Parse JSON within a sample.

    Raises:
        SampleError: `not_json`, also if a key has two values.
    """
    try:
        return json.loads(text, object_pairs_hook=_mapping)
    except (ValueError, RecursionError) as error:
        raise SampleError("not_json", str(error)) from error


def _mapping(pairs: Pairs) -> dict[str, Any]:
    if fact := contradiction(pairs):
        raise ValueError(fact)
    return dict(pairs)


def contradiction(pairs: Pairs) -> str:
    """Say which key has two values; empty if none has. The same value twice is one."""
    last = dict(pairs)
    if len(last) == len(pairs):
        return ""
    key = next((key for key, value in pairs if last[key] != value), None)
    return "" if key is None else f"the key {key!r} has two values"
