"""Whatever a file or an override holds, it gives a config or a ConfigError, and nothing else."""

import contextlib
import copy
import os
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from llavamed.config.load import dump_config, load_config, parse_config
from llavamed.errors import ConfigError

DEMO = Path(__file__).parents[2] / "ray_jobs" / "configs" / "demo.yaml"
TREE = yaml.safe_load(DEMO.read_text(encoding="utf-8"))

NUMBERS = (
    st.integers()
    | st.sampled_from([10**400, -(2**63), 2**64])
    | st.floats(allow_nan=True, allow_infinity=True)
)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    PLAIN | st.dates() | st.binary(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS | NUMBERS, below, max_size=3),
    max_leaves=8,
)


def places(tree, place=()):
    """Every place of a tree: the keys and numbers that lead to it."""
    yield place
    if isinstance(tree, dict | list):
        for part, below in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from places(below, (*place, part))


PLACES = [place for place in places(TREE) if place]


def planted(place, value, beside):
    """The demo with one value replaced, or with one more beside it."""
    tree = copy.deepcopy(TREE)
    node = tree
    for part in place[:-1]:
        node = node[part]
    node[place[-1] if beside is None or isinstance(node, list) else beside] = value
    return tree


@given(st.sampled_from(PLACES), VALUES, st.none() | TEXTS)
@example(("stages",), [{"name": []}], None)
@example(("model", "vision_tower", "config", "model_type"), [], None)
@example(("data", "datasets"), {"a": {"read": {"source": []}}}, None)
@example(("stages", 0, "data"), {"captions": 1, "b": 0}, None)
@example(("tracking", "log_every_steps"), "http://[", "uri")
def test_a_value_anywhere_is_refused_or_comes_back_from_the_dump(place, value, beside):
    with contextlib.suppress(ConfigError):
        config = parse_config(planted(place, value, beside))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.yaml"
            file.write_text(dump_config(config), encoding="utf-8")
            assert load_config(file) == config


@given(VALUES)
def test_no_tree_raises_anything_but_a_config_error(tree):
    with pytest.raises(ConfigError):
        parse_config(tree)


@pytest.mark.parametrize(
    "wrong",
    [10**5000, {10**5000: 1}, {"seed": 10**5000}, {"seed": {1}}],
    ids=["number", "key", "value", "set"],
)
def test_what_cannot_even_be_written_down_is_refused(wrong):
    with pytest.raises(ConfigError):
        parse_config(wrong if isinstance(wrong, int) else {**TREE, **wrong})


def test_a_tree_without_end_is_refused():
    tree = copy.deepcopy(TREE)
    tree["model"]["language_model"]["config"]["self"] = tree
    with pytest.raises(ConfigError, match="more than 32 levels"):
        parse_config(tree)


KEYS = st.sampled_from(
    [
        *(".".join(map(str, place)) for place in PLACES),
        *("stages.align", "stages.align.optimizer.lr", "stages.align.data", "stages.0.name"),
        *("engine.deepspeed", "engine.deepspeed.aio", "stages.align.engine", "stages.align.lora"),
        *("data.datasets.captions.read.source", "data.datasets.x", "scaling.resources_per_worker"),
    ]
)
YAML = st.text(max_size=12) | st.text("{}[]:,&*!|>-'\"#%@` \n0123456789.eExXab_+~", max_size=12)


@given(KEYS | TEXTS, YAML | TEXTS)
@example("seed", "0x_")
@example("seed", "9" * 5000)
@example("name", "2026-13-45")
@example("name", "{{ name }}")
@example("name", "!!bool x")
@example("name", "!!int ''")
@example("name", "&a [*a]")
@example("name", "[" * 5000)
@example("name", "{a: " * 5000)
def test_no_override_raises_anything_but_a_config_error(key, text):
    with contextlib.suppress(ConfigError):
        load_config(DEMO, [f"{key}={text}"])


@given(st.binary(max_size=40) | YAML.map(os.fsencode))
def test_no_file_raises_anything_but_a_config_error(content):
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(content)
        file.flush()
        with pytest.raises(ConfigError):
            load_config(file.name)
