"""Model and data cards in the format of Hugging Face, made from manifests alone."""

from collections.abc import Mapping

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from llavamed.evaluate.failures import CATEGORIES
from llavamed.evaluate.measures import LEGACY, STRICT
from llavamed.storage.manifest import (
    DatasetManifest,
    EstimateFacts,
    ExportManifest,
    GroupScores,
    ScoresManifest,
)

MODEL_CARD = "model_card.md"

_HUB_LICENCES = frozenset(
    ["apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"]
)
"""Words of the hub for licences of data; elsewhere a licence is in the text of the card."""

Licences = Mapping[str, int]
"""Number of samples by licence; the licence is empty if a sample states none."""


def render_model_card(
    name: str,
    scores: ScoresManifest,
    export: ExportManifest | None,
    *,
    training: Mapping[str, DatasetManifest],
    licences: Mapping[str, Licences],
    initial_weights: str | None,
) -> str:
    """Write the card of a model as Markdown with a YAML head.

    Args:
        export: Manifest of its export; None if it is not our own.
        training: The datasets that it was trained on, in all stages, by name.
        licences: Licences of their samples, by dataset.
        initial_weights: The weights that its first stage started from.
    """
    groups = [each for each in scores.groups if each.by == "all" and each.part != "all"]
    metadata = ModelCardData(
        language="en",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["llava", "biomedical", "research-only"],
        datasets=list(training) or None,
        base_model=initial_weights,
        model_name=name,
        eval_results=[result for group in groups for result in _results(scores, group)],
    )
    return (
        _environment()
        .get_template("model_card.md.j2")
        .render(
            metadata=metadata.to_yaml(),
            name=name,
            scores=scores,
            export=export,
            groups=groups,
            training=training,
            licences=licences,
            initial_weights=initial_weights,
            failures=[(CATEGORIES[name], count) for name, count in scores.failures.items()],
        )
    )


def render_data_card(name: str, facts: DatasetManifest, licences: Licences) -> str:
    """Write the card of a prepared dataset as Markdown with a YAML head.

    Args:
        facts: Manifest of the dataset.
    """
    metadata = DatasetCardData(
        language="en",
        pretty_name=name,
        license=_hub_licence(licences),
        task_categories=["visual-question-answering"],
        tags=["biomedical", "research-only"],
    )
    return (
        _environment()
        .get_template("data_card.md.j2")
        .render(metadata=metadata.to_yaml(), name=name, facts=facts, licences=licences)
    )


def _hub_licence(licences: Licences) -> str:
    """Return the hub's word for the only licence of all samples, `other` for any other case."""
    names = {name.lower() for name in licences}
    return names.pop() if len(names) == 1 and names <= _HUB_LICENCES else "other"


def _results(scores: ScoresManifest, group: GroupScores) -> list[EvalResult]:
    """Return the results of the first condition for the YAML head, in percent."""
    found = group.scores[scores.conditions[0]]
    return [
        EvalResult(
            task_type="visual-question-answering",
            dataset_type=scores.dataset,
            dataset_name=scores.dataset,
            dataset_split=scores.split or None,
            metric_type=f"{group.part}_{measure}",
            metric_name=f"{group.part} questions, {scores.rules[measure]}",
            metric_value=round(100 * found[measure].value, 2),
        )
        for measure in (STRICT, LEGACY)
    ]


def _environment() -> Environment:
    # Markdown, not HTML: `cell` escapes what would end a cell of a table.
    environment = Environment(
        loader=PackageLoader("llavamed.evaluate", ""),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "interval": _interval, "licences": _licences}
    return environment


def _cell(text: str) -> str:
    """Escape a text for one line or table cell of Markdown."""
    line = " ".join(str(text).split())
    for sign in "\\|<>[]`*_":
        line = line.replace(sign, f"\\{sign}")
    return line


def _interval(estimate: EstimateFacts, sign: str = "") -> str:
    form = f"{sign}.1f"
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:{form}} [{low:{form}}, {high:{form}}]"


def _licences(counts: Licences) -> str:
    """List the licences of samples with their counts, the most common first."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{name or 'not stated'} ({count:,})" for name, count in ordered) or "none"
