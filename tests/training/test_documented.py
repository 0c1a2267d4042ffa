"""What the documentation shows is accepted: its configs, its commands, its settings."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from llavamed.cli.main import app
from llavamed.config.load import load_config, parse_config

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "ray_jobs" / "configs" / "demo.yaml"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^    .*\n|^\n(?=    ))+", re.MULTILINE)


def blocks(page: Path) -> list[str]:
    """The indented blocks of a page, without their indentation."""
    text = page.read_text(encoding="utf-8")
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in BLOCK.findall(text)]


def documented_configs() -> list[tuple[str, dict[str, Any]]]:
    """Whole configs that a page shows."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            try:
                tree = yaml.safe_load(block)
            except yaml.YAMLError:
                continue
            if isinstance(tree, dict) and {"name", "storage", "stages"} <= set(tree):
                found.append((page.name, tree))
    return found


def commands() -> dict[str, Any]:
    """Every command of the command line by its words."""

    def walk(name: str, command: Any) -> Any:
        yield name, command
        for key, below in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {key}", below)

    return dict(walk("llavamed", typer.main.get_command(app)))


@pytest.mark.parametrize(("page", "tree"), documented_configs())
def test_a_config_that_a_page_shows_is_accepted(page: str, tree: dict[str, Any]) -> None:
    parse_config(tree)


def test_some_pages_show_a_whole_config() -> None:
    assert documented_configs()


def check_options(line: str) -> str:
    """Check that a line with a command names options that it has; return the command's words."""
    there = commands()
    words = re.sub(r"#.*|\\|\[|\]", " ", line).split()
    name, command = "llavamed", there["llavamed"]
    for word in words[1:]:
        if f"{name} {word}" in there:
            name = f"{name} {word}"
            command = there[name]
    if name != "llavamed":
        options = {option for each in command.params for option in getattr(each, "opts", ())}
        options |= {"--debug", "--verbose", "--quiet", "--help"}
        for group in getattr(command, "commands", {}).values():  # of a command that may be left out
            options |= {option for each in group.params for option in getattr(each, "opts", ())}
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert asked <= options, (line, asked - options)
    return name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_a_page_names_exists_with_its_options(page: Path) -> None:
    for line in re.findall(r"llavamed (?!trains)[a-z].*", "\n".join(blocks(page))):
        check_options(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_within_a_sentence_exists_with_its_options(page: Path) -> None:
    text = " ".join(re.sub(BLOCK, "", page.read_text(encoding="utf-8")).split())
    for line in re.findall(r"`(llavamed [a-z][^`]*)`", text):
        assert check_options(line) != "llavamed", line


def test_a_message_advises_only_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for named in re.findall(r"(?:llavamed|'\.)\[([a-z, ]+)\]", text):
            assert {*named.replace(" ", "").split(",")} <= extras.keys(), (page.name, named)


ON_GPU = ("scaling.use_gpu=true", "engine.precision=bf16")
"""What settings of kernels need."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_override_that_a_page_names_is_accepted(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for override in re.findall(r"\b(?:stages|engine|scaling|model)\.[\w.]+=[\w.+-]+", text):
        if override.startswith("stages.") and not override.startswith("stages.align."):
            continue
        load_config(DEMO, [*ON_GPU, "scaling.num_workers=1", override])
