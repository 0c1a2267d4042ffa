"""Random values that the schema of the chart allows."""

import json
import re
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.support.chart_release import CHART
from tests.support.kubernetes_rules import Object

SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
ASCII = st.characters(codec="ascii", exclude_categories=["Cc"])
# The API server admits no pod whose class it does not know.
UNKNOWN = {"priorityClass", "runtimeClass"}
Strategy = st.SearchStrategy[Any]


def drawn(section: str) -> dict[str, Strategy]:
    """Strategies for the values of a section, by their dotted names."""
    return {
        name: _of(schema) for name, schema in _leaves(section) if name.split(".")[-1] not in UNKNOWN
    }


def _leaves(section: str) -> list[tuple[str, Object]]:
    found, waiting = [], [(section, SCHEMA["properties"][section], VALUES[section])]
    while waiting:
        name, schema, value = waiting.pop()
        schema = _resolved(schema)
        if isinstance(value, dict) and "properties" in schema:
            waiting += [(f"{name}.{key}", schema["properties"][key], value[key]) for key in value]
        else:
            found.append((name, schema))
    return found


def _resolved(schema: Object) -> Object:
    while "$ref" in schema:
        place: Any = SCHEMA
        for key in schema["$ref"].removeprefix("#/").split("/"):
            place = place[key]
        schema = place
    return schema


def _of(schema: Object) -> Strategy:
    schema = _resolved(schema)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    types = schema.get("type", "object")
    return st.one_of(
        [_of_type(each, schema) for each in ([types] if isinstance(types, str) else types)]
    )


def _of_type(kind: str, schema: Object) -> Strategy:
    match kind:
        case "boolean":
            return st.booleans()
        case "string":
            return _texts(schema.get("pattern", "^.{0,8}$"), schema.get("maxLength", 253))
        case "integer" | "number":
            return st.integers(
                int(schema.get("minimum", 0)) or 1, min(schema.get("maximum", 64), 10**6)
            )
        case "array":
            return st.lists(_of(schema.get("items", {})), max_size=2)
    if "patternProperties" in schema:
        ((pattern, value), *_) = schema["patternProperties"].items()
        return st.dictionaries(_texts(pattern, 300), _of(value), max_size=2)
    kinds = {
        key: _of(value) for key, value in schema.get("properties", {}).items() if key not in UNKNOWN
    }
    needed = {key: kinds.pop(key) for key in schema.get("required", []) if key in kinds}
    return st.fixed_dictionaries(needed, optional=kinds)


def _texts(pattern: str, longest: int) -> Strategy:
    compiled = re.compile(pattern.removesuffix("$") + r"\Z", re.ASCII)
    return st.from_regex(compiled, alphabet=ASCII).filter(lambda text: len(text) <= longest)
