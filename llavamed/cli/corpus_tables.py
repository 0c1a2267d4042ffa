"""What the commands of a corpus print."""

from rich.console import Console

from llavamed.config.corpus import Dialogues
from llavamed.corpus.dialogues.generate import Plan
from llavamed.corpus.dialogues.table import DialoguesManifest
from llavamed.corpus.select.job import Selection
from llavamed.llm.cost import Estimate


def show_selection(selection: Selection, console: Console) -> None:
    """Print how many figures are kept, and why the others are not."""
    modalities = ", ".join(f"{count:,} {name}" for name, count in selection.modalities.items())
    _line(
        console,
        f"{selection.num_figures:,} figures, {selection.num_kept:,} kept"
        f"{f' ({modalities})' if modalities else ''}",
    )
    for reason, count in selection.refused.items():
        _line(console, f"  {reason}: {count:,}")


def show_plan(plan: Plan, settings: Dialogues, console: Console) -> None:
    """Print what dialogues take before the first request."""
    _line(
        console,
        f"{plan.num_figures:,} figures, {plan.num_answered:,} answered before",
    )
    _line(console, f"{settings.endpoint.model}: {_estimate(plan.writing)}")
    if settings.checker is not None and plan.checking is not None:
        _line(console, f"{settings.checker.model}, which checks: {_estimate(plan.checking)}")


def show_dialogues(manifest: DialoguesManifest, console: Console) -> None:
    """Print how many dialogues passed, and what the others met."""
    outcomes = ", ".join(f"{count:,} {name}" for name, count in manifest.outcomes.items())
    modalities = ", ".join(f"{count:,} {name}" for name, count in manifest.modalities.items())
    price = "" if manifest.cost is None else f", cost {manifest.cost:.4g}"
    _line(console, f"{manifest.num_figures:,} figures: {outcomes}")
    _line(
        console,
        f"{manifest.num_dialogues:,} dialogues with {manifest.num_exchanges:,} questions passed"
        f"{f' ({modalities})' if modalities else ''}",
    )
    for rule, count in manifest.findings.items():
        _line(console, f"  {rule}: {count:,}")
    _line(
        console,
        f"{manifest.prompt_tokens:,} tokens of prompts, {manifest.completion_tokens:,} of answers"
        f"{price}",
    )


def _estimate(estimate: Estimate) -> str:
    price = "" if estimate.cost is None else f", cost up to {estimate.cost:.4g}"
    return (
        f"{estimate.num_requests:,} requests, about {estimate.prompt_tokens:,} tokens of prompts "
        f"and at most {estimate.max_completion_tokens:,} of answers{price}"
    )


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)
