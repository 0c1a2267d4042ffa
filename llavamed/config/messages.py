"""Turn the errors of pydantic into actionable sentences.

A sentence shows single values and never the content of a section, which may hold a secret.
"""

import difflib
import json
import re
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from llavamed.config.section import NUMBER, ONE, SEVERAL, SWITCH

Location = tuple[int | str, ...]
"""Where pydantic found a fault."""
Node = dict[str, Any]
"""A part of a JSON schema."""

_RULES = {
    "dict_type": "must be a mapping such as {NAME: VALUE}",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "tuple_type": "must be a list",
    "string_pattern_mismatch": "must be of a-z, 0-9, '_' and '-' (a run's name also of '.'), begin "
    "and end with a letter or digit, and have at most 63 characters",
    "union_tag_not_found": "must be set",
    **dict.fromkeys(
        ("date_type", "date_parsing", "date_from_datetime_parsing", "date_from_datetime_inexact"),
        "must be a date such as 2015-01-31",
    ),
}
"""Rules that pydantic words for programmers, by its error types."""


def sentences(
    error: ValidationError, tree: dict[str, Any], kind_of_tree: type[BaseModel]
) -> list[str]:
    """Return a sentence for every rule that a tree of plain values breaks.

    Args:
        tree: The values that it read.
        kind_of_tree: The root of the tree: a whole config, or the one section of a file.
    """
    found, schema = [], _schema(kind_of_tree)
    for fault in error.errors(include_url=False):
        key = _key(fault["loc"], tree)
        kind, value, facts = fault["type"], fault["input"], fault.get("ctx", {})
        if kind == "extra_forbidden":
            found.append(f"{key}: unknown key; {_suggestion(fault['loc'], tree, schema)}")
        elif kind == "missing" and isinstance(fault["loc"][-1], int):
            key = key.rpartition(".")[0]
            found.append(f"{key}={shown(value)}: has too few items; add the others")
        elif kind in {"missing", "union_tag_not_found"}:
            key = f"{key}.{facts['discriminator'].strip(chr(39))}" if facts else key
            found.append(f"{key}: must be set; add it to the file or as {key}=VALUE")
        elif kind == "value_error":
            found.append(f"{key}.{facts['error']}" if key else str(facts["error"]))
        elif kind == "too_short" and value:
            continue  # its items are wrong and have sentences of their own
        elif kind == "union_tag_invalid":
            key = f"{key}.{facts['discriminator'].strip(chr(39))}"
            rule = f"must be one of {facts['expected_tags']}"
            found.append(f"{key}={shown(facts['tag'])}: {rule}; correct it")
        else:
            rule = _RULES.get(kind) or fault["msg"][0].lower() + fault["msg"][1:]
            rule = re.sub("^(input|tuple) should", "must", rule.replace(" after validation", ""))
            place = key if fault["loc"][-1] == "[key]" else f"{key}={shown(value)}"
            found.append(f"{place}: {rule}; correct it")
    return found


def shown(value: Any) -> str:
    """Return a short form of a value; a mapping or list is shown without its content."""
    if isinstance(value, dict | list):
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        return f"{opening}{'...' if value else ''}{closing}"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _key(location: Location, tree: Any) -> str:
    """Return the key of a place as a user writes it, with stages by name."""
    words: list[str] = []
    node: Any = tree
    for part in location:
        # The key itself is wrong, or this is the tag of a form of the field.
        if part in ("[key]", ONE, SEVERAL, SWITCH, NUMBER):
            continue
        if isinstance(node, list) and isinstance(part, int):
            node = node[part] if part < len(node) else None
            named = isinstance(node, dict) and "name" in node
            words.append(str(node["name"]) if named else str(part))
        elif isinstance(node, dict) and node.get("source") == part:
            continue  # the tag of a discriminated union
        else:
            node = node.get(part) if isinstance(node, dict) else None
            words.append(str(part))
    return ".".join(words)


def _suggestion(location: Location, tree: Any, schema: Node) -> str:
    """Return what to write instead of an unknown key.

    The same name one level down (`lr` for `optimizer.lr`) or in a section around it is the best
    guess, then a similar name, and otherwise all names that are allowed there.
    """
    name, here = str(location[-1]), location[:-1]
    fields = _fields_at(here, schema)
    below = [f"{field}.{own}" for field, names in fields.items() for own in names]
    above: list[str] = []
    for depth in range(len(here) - 1, -1, -1):
        around, key = _fields_at(here[:depth], schema), _key(here[:depth], tree)
        if key == _key(here, tree):  # the other forms of source, beside the one that is chosen
            continue
        above += [f"{key}.{field}" if key else field for field in around]
        if around:
            break
    for keys in (below, above):
        same = [key for key in keys if key.rpartition(".")[2] == name]
        if same:
            return f"did you mean {same[0]!r}?"
    close = difflib.get_close_matches(name, fields, n=1)
    if not close:
        last = {key.rpartition(".")[2]: key for key in (*above, *reversed(below))}
        close = [last[near] for near in difflib.get_close_matches(name, last, n=1, cutoff=0.8)]
    return f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(fields)}"


@cache
def _schema(kind: type[BaseModel]) -> Node:
    return kind.model_json_schema()


def _fields_at(location: Location, schema: Node) -> dict[str, list[str]]:
    """Return the fields of the section at a place, and for each the fields of its own section."""
    nodes = [schema]
    for part in location:
        nodes = [below for node in nodes for below in _step(node, part, schema)]
    return {
        name: [own for each in _options(field, schema) for own in _names(each, schema)]
        for node in nodes
        for name, field in node.get("properties", {}).items()
    }


def _names(node: Node, schema: Node) -> list[str]:
    """Return the fields of a section, or of the sections in a list, written `*.field`."""
    listed = _options(node.get("items", {}), schema)
    items = [own for each in listed for own in each.get("properties", {})]
    return [*node.get("properties", {}), *(f"*.{own}" for own in items)]


def _step(node: Node, part: int | str, schema: Node) -> list[Node]:
    """Return the schemas that are allowed at an item or key of a node."""
    if isinstance(part, int):
        return _options(node.get("items", {}), schema)
    if part in node.get("properties", {}):
        return _options(node["properties"][part], schema)
    by_name = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    found = [below for below in by_name if isinstance(below, dict)]
    kept = [each for below in found for each in _options(below, schema)]
    is_tag = node.get("properties", {}).get("source", {}).get("const") == part
    return kept or ([node] if is_tag else [])


def _options(node: Node, schema: Node) -> list[Node]:
    """Return the schemas that a node offers, with references followed."""
    if "$ref" in node:
        return _options(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    offered = [*node.get("anyOf", []), *node.get("oneOf", [])]
    return [each for option in offered for each in _options(option, schema)] or [node]
