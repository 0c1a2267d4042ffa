"""From the errors pydantic raises to sentences a person can act on.

A sentence shows single values and never the content of a section, which may hold a secret.
"""

import difflib
import json
import re
from typing import Any

from pydantic import ValidationError

from llavamed.config.run import RunConfig
from llavamed.config.section import ONE, SEVERAL, one_or_several

_RULES = {
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "tuple_type": "must be a list",
    "string_pattern_mismatch": "must be of a-z, 0-9, '_' and '-' (a run's name also of '.'), begin "
    "and end with a letter or digit, and have at most 63 characters",
    "union_tag_not_found": "must be set",
}
"""Rules that pydantic words for programmers, by its names of them."""


def sentences(error: ValidationError, tree: dict[str, Any]) -> list[str]:
    """Return a sentence for every rule that a tree of plain values breaks."""
    found = []
    for fault in error.errors(include_url=False):
        key, fields = _key_and_siblings(fault["loc"], tree)
        kind, value, facts = fault["type"], fault["input"], fault.get("ctx", {})
        if kind == "extra_forbidden":
            close = difflib.get_close_matches(key.rpartition(".")[2], fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(fields)}"
            found.append(f"{key}: unknown key; {hint}")
        elif kind == "missing" and isinstance(fault["loc"][-1], int):
            key = key.rpartition(".")[0]
            found.append(f"{key}={_shown(value)}: has too few items; add the others")
        elif kind in {"missing", "union_tag_not_found"}:
            key = f"{key}.{facts['discriminator'].strip(chr(39))}" if facts else key
            found.append(f"{key}: must be set; add it to the file or as {key}=VALUE")
        elif kind == "value_error":
            found.append(f"{key}.{facts['error']}" if key else str(facts["error"]))
        elif kind == "too_short" and value:
            continue  # its items are wrong, which they say themselves
        elif kind == "union_tag_invalid":
            key = f"{key}.{facts['discriminator'].strip(chr(39))}"
            rule = f"must be one of {facts['expected_tags']}"
            found.append(f"{key}={_shown(facts['tag'])}: {rule}; correct it")
        else:
            rule = _RULES.get(kind) or fault["msg"][0].lower() + fault["msg"][1:]
            rule = re.sub("^(input|tuple) should", "must", rule.replace(" after validation", ""))
            place = key if fault["loc"][-1] == "[key]" else f"{key}={_shown(value)}"
            found.append(f"{place}: {rule}; correct it")
    return found


def _shown(value: Any) -> str:
    """A single value in short; of a mapping or list only that it is one."""
    if isinstance(value, dict | list):
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        return f"{opening}{'...' if value else ''}{closing}"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _key_and_siblings(location: tuple[int | str, ...], tree: Any) -> tuple[str, list[str]]:
    """A person's name for a place: stages by name, without the marks pydantic adds.

    Also returns the keys that may stand there, to suggest one.
    """
    words: list[str] = []
    node: Any = tree
    for part in location:
        if part == "[key]":  # the key itself is wrong
            continue
        if isinstance(node, list) and isinstance(part, int):
            node = node[part] if part < len(node) else None
            named = isinstance(node, dict) and "name" in node
            words.append(str(node["name"]) if named else str(part))
        elif isinstance(node, dict) and node.get("source") == part:
            continue  # the tag of a discriminated union
        elif part in (ONE, SEVERAL) and one_or_several(node) == part:
            continue  # likewise
        else:
            node = node.get(part) if isinstance(node, dict) else None
            words.append(str(part))
    return ".".join(words), _fields_at(location[:-1])


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section at a place in the schema."""
    schema = RunConfig.model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        options = [_resolve(option, schema) for option in node.get("anyOf", [node])]
        if "discriminator" in node:
            node = _resolve({"$ref": node["discriminator"]["mapping"][part]}, schema)
            continue
        node = next((option for option in options if option.get("type") in {"object", "array"}), {})
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            by_name: Any = next(iter(node.get("patternProperties", {}).values()), {})
            node = node.get("properties", {}).get(part, by_name)
        node = _resolve(node if isinstance(node, dict) else {}, schema)
    options = [_resolve(option, schema) for option in node.get("anyOf", [node])]
    return [name for option in options for name in option.get("properties", {})]


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else node
