"""Compare how two things were made: by fingerprints of plain values, and by the keys that differ.

A fingerprint covers what changes numbers and nothing else. Settings are stored beside it as they
were, so that a mismatch names every key with both of its values.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(value: Any) -> str:
    """Return a short hash of plain values, equal for equal values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one `key=value, was value` for each dotted key whose values differ, in order.

    Args:
        before: Nested plain values as they were stored.
        now: The same as they are.
        prefix: Written before each key, such as `stages.align.`.
    """
    then, today = _flat(before), _flat(now)
    keys = [*today, *(key for key in then if key not in today)]
    return [
        f"{prefix}{key}={_shown(today, key)}, was {_shown(then, key)}"
        for key in keys
        if _shown(today, key) != _shown(then, key)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted keys; an empty mapping is a leaf."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return "not set"
    return json.dumps(leaves[key], sort_keys=True, default=str)
