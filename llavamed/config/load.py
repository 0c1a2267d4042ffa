"""From a YAML file and `key=value` overrides to a `RunConfig`, with errors a person can act on.

The file is the only source, the overrides come after it, and nothing else counts: no second file,
no interpolation, no environment.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llavamed.config.messages import sentences
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as in version 1.2, and a key stands only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that `_Loader` would read as a number."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file and apply dotted overrides such as `stages.align.optimizer.lr=1e-3`.

    Raises:
        ConfigError: The file, an override or a value breaks a rule.
    """
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(
            f"config={path}: cannot be read ({error.strerror}); check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config={path}: not valid YAML: {_yaml_problem(error)}; correct the file"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"config={path}: must be a mapping with name, storage, model ...; correct the file"
        )
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree)


def override_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The config with dotted overrides applied. Raises: ConfigError, as `load_config` does."""
    tree = config.model_dump(mode="json")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> RunConfig:
    """Check a tree of plain values. Raises: ConfigError, naming every broken rule."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(error, tree))) from error


def dump_config(config: RunConfig) -> str:
    """The config in YAML with every default written out; `load_config` gives it back."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def fingerprint(value: Any) -> str:
    """A short hash of plain values, equal for equal values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _yaml_problem(error: Exception) -> str:
    """What is wrong where, in one line and without the text around it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error).splitlines()[0]


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key in the raw tree; `stages.<name>` finds a stage by its name."""
    key, equals, text = override.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"{key or override}: an override is key=value; e.g. stages.align.optimizer.lr=1e-3"
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
        named = {item.get("name"): item for item in node if isinstance(item, dict)}
        if part not in named:
            known = ", ".join(str(name) for name in named)
            raise ConfigError(f"{key}: no stage has this name; use one of: {known}")
        return named[part]
    if node.get(part) is None:
        node[part] = {}
    if not isinstance(node[part], dict | list):
        raise ConfigError(f"{key}: has no keys below it; set it as a whole")
    return node[part]
