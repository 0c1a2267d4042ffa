"""Turn a YAML file and `key=value` overrides into a `RunConfig`, with actionable errors.

The file is the only source, the overrides come after it, and nothing else counts: no second file,
no interpolation, no environment. Files are YAML 1.2 with plain values only: tags, anchors and
aliases are refused, because an override of one place would change the others.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from llavamed.config.messages import sentences, shown
from llavamed.config.paths import resolve_paths
from llavamed.config.run import RunConfig
from llavamed.config.section import Section
from llavamed.errors import ConfigError

S = TypeVar("S", bound=Section)

MAX_DEPTH = 32
"""Maximum depth of a config; real ones have fewer than ten levels."""

_WHOLE_CONFIG = "must be a mapping with name, storage, model ...; correct the file"


class _Loader(yaml.SafeLoader):
    """Loads YAML with plain values only, and refuses duplicate keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _problem("anchors and aliases are not read, write the value out", event)
        if event.tag is not None:
            raise _problem(f"the tag {event.tag!r} is not read, write a plain value", event)
        if self.depth > MAX_DEPTH:
            raise _problem(f"more than {MAX_DEPTH} levels", event)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a mapping or list cannot be a key, quote braces", key)
            if key.value in mapping:
                raise _problem(f"the key {key.value!r} occurs twice", key)
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping

    def construct_map(self, node: yaml.MappingNode) -> dict[Any, Any]:
        return self.construct_mapping(node)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = node.value.lower().replace(".inf", "inf").replace(".nan", "nan")
        try:
            return int(text) if node.tag.endswith("int") else float(text)
        except ValueError as error:  # Python reads no more than 4300 digits
            raise _problem("a number has too many digits", node) from error


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader`, or a reader of YAML 1.1, would take for another value."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_Loader.yaml_implicit_resolvers = {}
for _yaml in (_Loader, _Dumper):
    for _tag, _pattern, _first in (
        ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", "[-+]?[0-9]+", list("-+0123456789")),
        ("float", _FLOAT, list("-+.0123456789")),
    ):
        _whole = re.compile(f"^(?:{_pattern})$")
        _yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, _first)
for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_map)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file and apply dotted overrides such as `stages.align.optimizer.lr=1e-3`.

    Local paths of weights and tokenizers are made absolute.

    Raises:
        ConfigError: The file, an override or a value breaks a rule.
    """
    tree = _read_tree("config", path, _WHOLE_CONFIG)
    for override in overrides:
        _apply(tree, override)
    return resolve_paths(parse_config(tree))


def load_section(
    option: str, path: str | Path | None, kind: type[S], overrides: Sequence[str] = ()
) -> S:
    """Read a file that holds one section, such as an endpoint, by the rules of a config file.

    Args:
        option: The command-line option that names the file, for errors.
        path: A local YAML file, or None for a section of nothing but overrides.
        overrides: Dotted overrides, such as `limits.images=2`.

    Raises:
        ConfigError: The file, an override or a value breaks a rule.
    """
    fields = ", ".join(kind.model_fields)
    rule = f"must be a mapping with some of {fields}; correct the file"
    tree = {} if path is None else _read_tree(option, path, rule)
    for override in overrides:
        _apply(tree, override)
    return _parse(kind, tree)


def _read_tree(option: str, path: str | Path, rule: str) -> dict[str, Any]:
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        if "://" in str(path):
            raise ConfigError(
                f"{option}={path}: is a URI, and this file is read from a disk only; copy it here"
            ) from error
        raise ConfigError(
            f"{option}={path}: cannot be read ({error.strerror}); check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{option}={path}: not valid YAML: {_yaml_problem(error)}; correct the file"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{option}={path}: {rule}")
    return tree


def override_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the config with dotted overrides applied. Raises: ConfigError, as `load_config`."""
    tree = config.model_dump(mode="json")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> RunConfig:
    """Check a tree of plain values. Raises: ConfigError, naming every broken rule."""
    if not isinstance(tree, dict):
        raise ConfigError(f"config: {_WHOLE_CONFIG}")
    return _parse(RunConfig, tree)


def _parse(kind: type[S], tree: dict[str, Any]) -> S:
    _check_plain(tree, ())
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(error, tree, kind))) from error


def dump_config(config: RunConfig) -> str:
    """Return the config in YAML with every default written out; `load_config` gives it back."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_plain(value: Any, place: tuple[str, ...]) -> None:
    """Refuse a value that is not plain, or that some file or library cannot represent."""
    key = ".".join(place) or "config"
    if len(place) > MAX_DEPTH:
        raise ConfigError(f"{'.'.join(place[:3])}: has more than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, dict):
        for name, below in value.items():
            if not isinstance(name, str):
                raise ConfigError(f"{key}: a key is a {type(name).__name__}, not text; correct it")
            if not _is_text(name):
                raise ConfigError(
                    f"{key}: the key {shown(name)} has control characters; remove them"
                )
            _check_plain(below, (*place, name))
    elif isinstance(value, list | tuple):
        for number, below in enumerate(value):
            name = below.get("name") if isinstance(below, dict) else None
            is_stage = isinstance(name, str) and _is_text(name)
            _check_plain(below, (*place, str(name if is_stage else number)))
    elif isinstance(value, str):
        if not _is_text(value):
            raise ConfigError(f"{key}={shown(value)}: has control characters; remove them")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{key}={value}: must be a finite number; correct it")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ConfigError(f"{key}: the number does not fit 64 bits; use a smaller one")
    elif value is not None:
        kind = type(value).__name__
        raise ConfigError(f"{key}: a {kind} is not a plain value; use text, a number, a list ...")


def _is_text(value: str) -> bool:
    """Return whether a text has no control characters and no half characters (lone surrogates)."""
    return not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", value)


def _problem(problem: str, at: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


def _yaml_problem(error: Exception) -> str:
    """Return the problem and its place in one line, without the text around it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error).splitlines()[0]


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key in the raw tree; `stages.<name>` finds a stage by its name."""
    key, equals, text = override.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts) or not _is_text(key):
        raise ConfigError(
            f"{shown(key or override)[1:-1]}: an override is key=value; "
            "e.g. stages.align.optimizer.lr=1e-3"
        )
    node: Any = tree
    for depth, part in enumerate(parts[:-1]):
        node = _descend(node, part, ".".join(parts[: depth + 1]))
    if isinstance(node, list):
        what = "a stage" if parts[:-1] == ["stages"] else "an item of a list"
        raise ConfigError(
            f"{key}: {what} is not replaced alone; set the fields of a stage one by one, and any "
            "other list as a whole"
        )
    try:
        node[parts[-1]] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: the value is not valid YAML; quote it") from error


def _descend(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        named = {str(item.get("name")): item for item in node if isinstance(item, dict)}
        if part not in named:
            known = ", ".join(str(name) for name in named)
            raise ConfigError(f"{key}: no stage has this name; use one of: {known}")
        return named[part]
    if node.get(part) is None:
        node[part] = {}
    if not isinstance(node[part], dict | list):
        raise ConfigError(f"{key}: has no keys below it; set it as a whole")
    return node[part]
