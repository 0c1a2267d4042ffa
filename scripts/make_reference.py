"""Write the pages of docs/reference that are made from the code: `make reference`.

A test makes them again and compares, so that a page never says what the code does not.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
sys.path.insert(0, str(ROOT))
NOTE = "<!-- Made from the code by scripts/make_reference.py; change the code, not this page. -->\n"


def pages() -> dict[str, str]:
    """Return the text of each generated page, by its file name."""
    from scripts import messages

    return {
        "config.md": config_page(),
        "cli.md": cli_page(),
        "metrics.md": metrics_page(),
        "files.md": files_page(),
        "messages.md": page("Messages", messages.INTRODUCTION, *messages.sections()),
        "helm.md": helm_page(),
    }


def page(title: str, introduction: str, *parts: str) -> str:
    """Join the parts of a page below its title."""
    return "\n".join([f"# {title}", "", NOTE, introduction.strip(), "", *parts]).rstrip() + "\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell(text) for text in line) + " |\n" for line in lines)


def cell(text: str) -> str:
    """Make a text fit into one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


# Configuration


def config_page() -> str:
    """Describe every setting, from the JSON Schema of the config."""
    from llavamed.config.run import RunConfig
    from llavamed.config.serving import Serving

    parts = [*settings_tables("RunConfig", RunConfig), *settings_tables("Serving", Serving)]
    return page(
        "Configuration",
        "A config is one YAML file. `RunConfig` is its root; a type in the second column that "
        "names a section of this page is a mapping with the settings of that section. Any setting "
        "can be overridden on the command line by its dotted name: "
        "`stages.align.optimizer.lr=1e-3`. `llavamed config --schema` prints the same facts as "
        "JSON Schema. `Serving` is the root of a file for `llavamed serve`.",
        *parts,
    )


def settings_tables(title: str, kind_of_tree: type[BaseModel]) -> list[str]:
    """Describe the settings of a root and of the sections below it, a table each."""
    schema = kind_of_tree.model_json_schema()
    sections = [(title, schema), *sorted(schema.get("$defs", {}).items())]
    parts = []
    for name, node in sections:
        if "properties" not in node:
            continue
        parts.append(f"## {name}\n")
        if node.get("description"):
            parts.append(f"{' '.join(node['description'].split())}\n")
        required = set(node.get("required", ()))
        rows = [
            [
                f"`{key}`",
                kind(field),
                "required" if key in required else default(field),
                field.get("description") or described(field, schema),
            ]
            for key, field in node["properties"].items()
        ]
        parts.append(table(["setting", "type", "default", "what it does"], rows))
    return parts


def described(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return what a field without a sentence of its own is: a section, or the name of a format."""
    if "const" in field:
        return "The word that names this format."
    return str(schema["$defs"][section(field)]["description"]) if "$ref" in field else ""


def section(field: dict[str, Any]) -> str:
    """Return the name of the section that a field holds."""
    return str(field["$ref"].rpartition("/")[2])


def default(field: dict[str, Any]) -> str:
    """Write the default of a field; that of a section is the defaults of its own fields."""
    return "" if "$ref" in field else f"`{shown(field.get('default'))}`"


def shown(value: Any) -> str:
    """Write a default as YAML would."""
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0].strip()


def kind(field: dict[str, Any]) -> str:
    """Name the type of a field of a JSON Schema, with its bounds."""
    if "$ref" in field:
        return f"[{section(field)}](#{section(field).lower()})"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(dict.fromkeys(kind(option) for option in field[key]))
    if field.get("type") == "array":
        items = field.get("items") or next(iter(field.get("prefixItems", ())), {})
        return f"list of {kind(items)}" if items else "list"
    if field.get("type") == "object":
        values = field.get("additionalProperties") or next(
            iter(field.get("patternProperties", {}).values()), None
        )
        return f"mapping of name to {kind(values)}" if isinstance(values, dict) else "mapping"
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    bounds = " and ".join(f"{sign} {field[key]}" for key, sign in signs.items() if key in field)
    return f"{field.get('type', 'any')}{f' {bounds}' if bounds else ''}"


# Command line


def cli_page() -> str:
    """Describe every command, from the command line itself."""
    from llavamed.cli.main import app

    parts = [text for name, command in commands(app) for text in describe(name, command)]
    return page(
        "Command line",
        "Every command that reads a config takes `--config FILE` (or the file that "
        "`LLAVAMED_CONFIG` names) and overrides as `KEY=VALUE`. It exits with 0 on success, 2 when "
        "the config breaks a rule, 3 when `evaluate gate` refuses a model, 128 plus the number of "
        "the signal that ended it, and 1 on any other error. An error is one sentence that says "
        "what to do.",
        *parts,
    )


def commands(app: typer.Typer) -> Iterator[tuple[str, Any]]:
    """Walk over all commands, those of groups included."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for key, below in sorted(getattr(command, "commands", {}).items()):
            yield from walk(f"{name} {key}", below)

    yield from walk("llavamed", typer.main.get_command(app))


def describe(name: str, command: Any) -> list[str]:
    """Write the section of one command."""
    rows = []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        words = (
            ", ".join(parameter.opts) if is_option else parameter.metavar or parameter.name.upper()
        )
        rows.append([f"`{words}`", str(getattr(parameter, "help", "") or "")])
    parts = [f"## {name}\n", f"{' '.join((command.help or '').split())}\n"]
    return [*parts, table(["argument or option", "what it does"], rows)] if rows else parts


# Metrics


def metrics_page() -> str:
    """Describe every metric of a step, from the one list that declares them."""
    from llavamed.train.metrics import METRICS

    rows = [
        [
            f"`{metric.name}`",
            f"`ray_llavamed_{metric.prometheus}`" if metric.prometheus else "",
            metric.unit,
            metric.help,
        ]
        for metric in METRICS
    ]
    return page(
        "Metrics",
        "Every optimizer step is logged to MLflow under the name in the first column. The names in "
        "the second column are for Prometheus, which fetches them from each Ray node; their tags "
        "are `run`, `stage` and `rank`.",
        table(["MLflow", "Prometheus", "unit", "what it is"], rows),
    )


# Files


def files_page() -> str:
    """Describe the manifests and tables that a run leaves, from their typed models and schemas."""
    from llavamed.corpus import figures, questions, samples
    from llavamed.corpus.dialogues import table as dialogues
    from llavamed.corpus.pmc import article, part, plan
    from llavamed.data import record
    from llavamed.evaluate import answers, judgement
    from llavamed.storage import lease, run_progress
    from llavamed.storage.manifest import Facts, dataset, measurement, scores, training

    modules = (
        dataset,
        training,
        measurement,
        scores,
        run_progress,
        lease,
        answers,
        judgement,
        plan,
        part,
        dialogues,
        questions,
    )
    models = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Facts)
        and value.__module__ == module.__name__
        and value.model_fields
    ]
    names = {model.__name__.lower() for model in models}

    def linked(found: re.Match[str]) -> str:
        """Lead a link to a section of the config to its page."""
        return found[0] if found[1] in names else f"(config.md#{found[1]})"

    parts = []
    for model in models:
        rows = [
            [
                f"`{name}`",
                re.sub(r"\(#(\w+)\)", linked, kind(field)),
                field.get("description", ""),
            ]
            for name, field in model.model_json_schema().get("properties", {}).items()
        ]
        parts += [f"## {model.__name__}\n", f"{summary(model.__doc__)}\n"]
        parts.append(table(["field", "type", "what it says"], rows))
    for schema, title in (
        (record.SHARD_SCHEMA, "shards/*.parquet"),
        (record.INDEX_SCHEMA, "index.parquet"),
        (record.TILED_INDEX_SCHEMA, "index.parquet, where images are cut into tiles"),
        (record.CONTENT_SCHEMA, "content.parquet"),
        (record.QUARANTINE_SCHEMA, "quarantine.parquet"),
        (figures.FIGURES_SCHEMA, "figures.parquet"),
        (article.ARTICLES_SCHEMA, "articles.parquet"),
        (answers.ANSWERS_SCHEMA, "answers.parquet"),
        (dialogues.DIALOGUE_SCHEMA, "dialogues-*.parquet"),
        (samples.SAMPLE_SCHEMA, "samples/*.parquet"),
    ):
        rows = [[f"`{field.name}`", f"`{field.type}`"] for field in schema]
        parts += [f"## {title}\n", table(["column", "Arrow type"], rows)]
    return page(
        "File formats",
        "A folder is complete when its `manifest.json` exists; every writer writes that file last. "
        "The first sections describe the manifests, the others the tables of a prepared dataset, "
        "of a corpus and of an evaluation.",
        *parts,
    )


def summary(text: str | None) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


# Helm


def helm_page() -> str:
    """Describe every value of the chart, from the comments of values.yaml."""
    rows = [[f"`{key}`", f"`{default}`", text] for key, default, text in helm_values()]
    return page(
        "Helm values",
        "Every value of the chart. `helm/values.schema.json` refuses unknown keys and wrong types.",
        table(["value", "default", "what it does"], rows),
    )


def helm_values() -> Iterator[tuple[str, str, str]]:
    """Yield each documented value of the chart: its dotted key, its default and its comment."""
    lines = (ROOT / "helm" / "values.yaml").read_text(encoding="utf-8").splitlines()
    defaults = yaml.safe_load("\n".join(lines))
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in lines:
        text = line.strip()
        if text.startswith("# -- "):
            comment = [text[5:]]
        elif text.startswith("# ") and comment:
            comment.append(text[2:])
        elif found := re.match(r"^( *)([\w.-]+):", line):
            indent = len(found[1])
            path = [*((at, key) for at, key in path if at < indent), (indent, found[2])]
            if comment:
                node: Any = defaults
                for _, key in path:
                    node = node[key]
                yield ".".join(key for _, key in path), shown(node), " ".join(comment)
            comment = []
        else:
            comment = []


if __name__ == "__main__":
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for file, text in pages().items():
        (REFERENCE / file).write_text(text, encoding="utf-8")
