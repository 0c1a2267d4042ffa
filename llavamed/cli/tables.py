"""Print the tables at the end of commands."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from llavamed.cli.options import console, print_line
from llavamed.config.gate import Criterion
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.data.prepared.decontaminate import Contamination
from llavamed.data.record import IMAGE_HASH_BYTES
from llavamed.storage.manifest import EstimateFacts, GroupScores, ScoresManifest, row_name
from llavamed.storage.run_progress import RunSummary

if TYPE_CHECKING:
    from llavamed.evaluate.answers import AnswersManifest
    from llavamed.evaluate.compare import GroupComparison
    from llavamed.evaluate.gates import RuleResult
    from llavamed.evaluate.judgement import JudgementManifest
    from llavamed.evaluate.statistics import Estimate
    from llavamed.evaluate.summary import QuestionGroup
    from llavamed.run.plan import StageCost

_BOTH = ("strict", "legacy")
"""Measures that every table shows side by side."""
_MANY_FILES = 3
"""From this number of files on, intervals stand below scores, so that none is cut off."""


def show_summary(summary: RunSummary) -> None:
    """Print the summary of a run."""
    heads = ("steps", "loss first -> last", "tokens/s", "seconds")
    used_gpus = any(stage.gpu_seconds for stage in summary.stages)
    stages = _table("Stages", "stage", *heads, *(("GPU hours", "cost") if used_gpus else ()))
    for stage in summary.stages:
        price = "unknown" if stage.cost is None else f"{money(stage.cost)} {summary.currency}"
        stages.add_row(
            stage.name,
            f"{stage.steps:,}",
            f"{stage.loss_first:.3f} -> {stage.loss_last:.3f}",
            f"{stage.tokens_per_second:,.0f}",
            f"{stage.seconds:.0f}",
            *((f"{stage.gpu_seconds / 3600:.2f}", price) if used_gpus else ()),
        )
    console.print(stages)
    for found in summary.evaluations:
        show_scores(found)
    print_line(f"Model:   {summary.stages[-1].export}")
    print_line(f"Talk:    {_installed('llavamed')} serve {summary.stages[-1].export}")
    print_line(f"MLflow:  {_mlflow_command(summary.tracking_uri)}")


def show_scores(found: ScoresManifest) -> None:
    """Print the scores of an evaluation with its controls, and a few of the answers."""
    title = f"Scores on {found.num_questions:,} questions of {found.dataset}"
    console.print(_scores_table(title, found.groups, found.conditions))
    rules = ", ".join(found.rules[name] for name in _BOTH)
    print_line(f"Rules: {rules}; 95 % intervals, clustered by image: {found.num_images:,} images")
    columns = ("question", "reference", *found.conditions)
    heads = (*columns[:2], *(row_name(each, found.conditions) for each in found.conditions))
    samples = _table("Sample predictions", *heads)
    for sample in found.samples:
        samples.add_row(*(sample[name].replace("\n", " ")[:40] for name in columns))
    console.print(samples)
    _print_cut_off(found)
    print_line(f"Answers: {found.report}")


def _print_cut_off(found: ScoresManifest) -> None:
    """Print how many answers are wrong because the limit of tokens may have cut them off."""
    if number := found.failures.get("cut_off"):
        print_line(
            f"Cut off and wrong: {number:,} of {found.num_questions:,} answers of the model "
            f"({found.decoding}); allow more by max_new_tokens"
        )


def _scores_table(title: str, groups: Sequence[GroupScores], conditions: Sequence[str]) -> Table:
    """Return one row per condition, with strict and legacy side by side for each type of question.

    Each cell has its interval below, so that the table fits into 80 columns.
    """
    parts = [group for group in groups if group.by == "all" and group.part != "all"]
    shown = [
        (group, name)
        for group in parts
        for name in (*_BOTH, *(["token_recall"] if group.part == "open" else []))
    ]
    sizes = ", ".join(f"{group.num_questions:,} {group.part}" for group in parts)
    heads = [f"{group.part}\n{name.replace('_', ' ')}" for group, name in shown]
    table = _table(f"{title}: {sizes}", "", *heads)
    for condition in conditions:
        found = [group.scores[condition][name] for group, name in shown]
        table.add_row(row_name(condition, conditions), *map(_interval_below, found))
    return table


def show_scorers(
    groups: Sequence["QuestionGroup"], scores: Mapping[str, Sequence["Estimate"]]
) -> None:
    """Print the mean score of each group of questions with its interval, one row per scorer."""
    heads = [f"{group.name} ({len(group.positions):,})" for group in groups]
    table = _table("Scores", "scorer", *heads)
    for name, estimates in scores.items():
        table.add_row(name, *map(_interval, estimates))
    console.print(table)


def show_legacy(averages: Mapping[str, Mapping[str, float]]) -> None:
    """Print the averages of LLaVA-Med's two scripts in percent, one row per measure."""
    table = _table("LLaVA-Med's scripts, in percent", "measure", *averages)
    names = dict.fromkeys(name for values in averages.values() for name in values)
    for name in names:
        table.add_row(
            name, *(f"{found[name]:.2f}" if name in found else "" for found in averages.values())
        )
    console.print(table)


def show_comparison(
    compared: Sequence["GroupComparison"],
    no_answer: Sequence["Estimate"],
    files: Mapping[str, str],
    scorer: str,
) -> None:
    """Print the scores of files and their differences to the first.

    Args:
        compared: The scores, one entry per group of questions.
        no_answer: The share of closed questions without an answer, one per file; may be empty.
        files: The path of each file by its letter.
    """
    scores = _table(f"Scores by {scorer}", "", "questions", "clusters", *files)
    shown = _interval if len(files) < _MANY_FILES else _interval_below
    differences = _table(
        f"Differences to {next(iter(files))}", "", "", "difference", "p", "McNemar"
    )
    for found in compared:
        name, size = found.group.name, len(found.group.positions)
        cells = map(shown, found.scores)
        scores.add_row(name, f"{size:,}", f"{found.group.num_clusters:,}", *cells)
        for letter, each in zip(list(files)[1:], found.differences, strict=True):
            estimate = _interval(each.estimate, "+.3f")
            mcnemar = "-" if each.mcnemar is None else f"{each.mcnemar:.4f}"
            differences.add_row(name, letter, estimate, f"{each.p_value:.4f}", mcnemar)
    if no_answer:
        scores.add_row("closed without answer", "", "", *map(shown, no_answer))
    console.print(scores)
    console.print(differences)
    for letter, path in files.items():
        print_line(f"{letter}: {path}")
    print_line(
        "p: sign-flip test by cluster, Holm-adjusted over groups and files; McNemar: exact, takes "
        "questions for independent, not adjusted"
    )


def show_checks(checks: Sequence["RuleResult"]) -> None:
    """Print every rule of a policy with its result."""
    table = _table("Policy", "rule", "met", "found")
    for column in table.columns[1:]:
        column.justify = "left"
    for check in checks:
        table.add_row(check.rule, "yes" if check.is_met else "NO", check.found)
    console.print(table)


def show_judgement(found: "JudgementManifest") -> None:
    """Print the relative scores that a judge gave, and how its requests ended."""
    title = f"Relative scores by {found.model}, in percent of the reference answers"
    table = _table(title, "", "questions", "judged", "score")
    for by, groups in found.scores.items():
        for group in groups:
            score = "-" if group.score is None else _interval(group.score, ".1f")
            name = group.name if by == "all" else f"{by}: {group.name}"
            table.add_row(name, f"{group.num_questions:,}", f"{group.num_judged:,}", score)
    console.print(table)
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in found.outcomes.items())
    print_line(f"Verdicts in both orders: {outcomes}; {found.num_repaired:,} repaired")
    if found.lead is not None:
        print_line(f"An answer in the first place gets {found.lead:+.2f} points more")
    price = "" if found.cost is None else f", {found.cost:.4f} in all"
    print_line(
        f"Tokens: {found.prompt_tokens:,} of prompts, {found.completion_tokens:,} of "
        f"verdicts{price}; prompt {found.prompt_hash}, {found.first_at} to {found.last_at}"
    )


def _interval(estimate: "Estimate | EstimateFacts", form: str = ".3f") -> str:
    return f"{estimate.value:{form}} [{estimate.low:{form}},{estimate.high:{form}}]"


def _interval_below(estimate: "Estimate | EstimateFacts") -> str:
    return f"{estimate.value:.3f}\n{estimate.low:.2f}-{estimate.high:.2f}"


def show_answers(made: "AnswersManifest", found: ScoresManifest) -> None:
    """Print the scores of each condition of an evaluation, strict next to legacy."""
    title = f"Scores of {made.model} on {made.questions} {made.split} (95 % intervals)"
    console.print(_scores_table(title, found.groups, made.conditions))
    _print_cut_off(found)
    for reason, number in made.quarantined.items():
        print_line(f"Not asked: {number:,} questions, {reason}")
    print_line(f"Generated now: {made.num_generated:,} different answers")


def show_benchmarks() -> None:
    """Print the benchmarks that can be answered."""
    from llavamed.evaluate.benchmarks import BENCHMARKS

    for each in BENCHMARKS.values():
        print_line(f"{each.name} (version {each.version}, licence: {each.licence})")
        print_line(f"    splits: {', '.join(each.splits)}")
        print_line(f"    data: {each.data}")
    print_line(
        "A folder of images or all of a benchmark may be packed as zip. Tables are read too: "
        "VLMEvalKit's (.tsv), and Parquet with the columns image, question and answer."
    )


def show_plan(costs: Sequence["StageCost"]) -> None:
    """Print what a run will do and cost."""
    from llavamed.run.plan import three_digits

    first = costs[0]
    rates = dict.fromkeys(f"{cost.mfu:.0%}" for cost in costs)
    title = (
        f"{first.num_gpus} x {first.accelerator} at {' and '.join(rates)} model-FLOPs utilization"
    )
    table = _table(title, "", *(cost.name for cost in costs))
    rows: dict[str, list[str]] = {
        "dataset": [cost.dataset for cost in costs],
        "sizes": ["declared" if cost.is_declared else "prepared" for cost in costs],
        "samples": [f"{cost.num_samples:,}" for cost in costs],
        "steps": [f"{cost.steps:,}" for cost in costs],
        "samples per step": [f"{cost.samples_per_step:,.1f}" for cost in costs],
        "tokens": [_short(cost.num_tokens) for cost in costs],
        "useful tokens": [f"{cost.useful_tokens:.1%}" for cost in costs],
        "trained": [_short(sum(part.num_trained for part in cost.parts)) for cost in costs],
        "frozen": [_short(sum(part.num_frozen for part in cost.parts)) for cost in costs],
    }
    for part in first.memory.parts:
        rows[f"GB {part}"] = [f"{cost.memory.parts[part] / 1e9:.1f}" for cost in costs]
    rows["GB per GPU"] = [
        f"{cost.memory.total / 1e9:.1f} of {cost.gpu_memory / 1e9:.0f}"
        f"{'' if cost.memory.total <= cost.gpu_memory else ' !'}"
        for cost in costs
    ]
    rows["exaFLOPs"] = [three_digits(cost.flops / 1e18) for cost in costs]
    rows["hours"] = [three_digits(cost.hours) for cost in costs]
    rows[f"cost, {first.prices.currency}"] = [
        "unknown" if cost.cost is None else money(cost.cost) for cost in costs
    ]
    table.columns[0].no_wrap = True
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)
    for sentence in dict.fromkeys(each for cost in costs for each in cost.assumed):
        print_line(sentence)
    for cost in costs:
        utilization = f"{cost.mfu:.0%} model-FLOPs utilization is {cost.mfu_origin or 'assumed'}"
        print_line(f"{cost.name}: {utilization}; {cost.memory_source}")
        if cost.memory.total > cost.gpu_memory:
            changes = [
                f"{each.change} ({each.num_bytes / 1e9:.1f} GB less)" for each in cost.savings
            ]
            hint = f"set {' or '.join(changes)}" if changes else "use larger GPUs, or more of them"
            print_line(f"! {cost.name} does not fit: {hint}")
    print_line(_describe_total(costs))


def show_contamination(found: Contamination) -> None:
    """Print how much of a training set evaluation sets also contain, by each criterion."""
    total, names = found.dataset.num_samples, [other.name for other in found.against]
    title = f"Samples of {found.dataset.name} ({total:,}) that match"
    counts = _table(title, "by", *names, *(["any"] if len(names) > 1 else []))
    ways: list[tuple[Criterion, str]] = [
        ("image", f"image (within {found.max_distance} of {8 * IMAGE_HASH_BYTES} bits)"),
        ("question", "question"),
        ("pair", "pair (both of one sample)"),
        ("text", "text (question and answer)"),
    ]
    for criterion, words in ways:
        cells = [found.count([criterion], name) for name in names]
        cells += [found.count([criterion])] if len(names) > 1 else []
        mark = "* " if criterion in found.by else "  "
        counts.add_row(mark + words, *(f"{cell:,} ({cell / total:.1%})" for cell in cells))
    console.print(counts)
    examples = _table("Some of them (*)", "sample", "is like", "by", "its question")
    for column in examples.columns:
        column.overflow = "fold"
    for match in found.examples():
        by = [name for name in found.by if match[name] is not None]
        ways_met = ", ".join(
            f"{name} ({match['distance']} bits)" if name == "image" else name for name in by
        )
        examples.add_row(match["id"], match[by[0]], ways_met, match["words"][:40])
    if examples.row_count:
        console.print(examples)
    print_line(f"Report: {found.report}")


def show_removal(found: Contamination, without: PreparedDataset | None) -> None:
    """Print how removing has changed a training set, or how it would change it."""
    total, leaving = found.dataset.num_samples, found.count(found.by)
    what = f"{leaving:,} of {total:,} samples ({leaving / total:.1%}) by {' or '.join(found.by)}"
    if without is None:
        text = f"Nothing was changed; --remove would take out {what} and leave {total - leaving:,}"
    elif not leaving:
        text = f"Nothing was changed: none of {total:,} samples match by {' or '.join(found.by)}"
    else:
        text = f"Removed {what}; {without.num_samples:,} are left, the others are in the quarantine"
    print_line(text)


def _describe_total(costs: Sequence["StageCost"]) -> str:
    """Return a sentence about the cost of all stages, with the prices used."""
    from llavamed.run.plan import three_digits

    prices, gpu = costs[0].prices, costs[0].accelerator
    hours = sum(cost.hours for cost in costs)
    known = [cost.cost for cost in costs if cost.cost is not None]
    if len(known) < len(costs):
        return f"All stages: {three_digits(hours)} hours; gpu_prices.hourly has no price for {gpu}"
    return (
        f"All stages: {three_digits(hours)} hours and {money(sum(known))} {prices.currency}, at "
        f"{prices.hourly[gpu]:g} per GPU hour as of {prices.date} (gpu_prices)"
    )


def money(amount: float) -> str:
    """Return an amount, with cents if it is small."""
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:,.2f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3f} {unit}"
    return f"{number:.0f}"


def _mlflow_command(uri: str) -> str:
    """Return how to see the runs: a server's address, or the command that serves a database."""
    if uri.startswith("http"):
        return uri
    return shlex.join([str(_installed("mlflow")), "server", "--backend-store-uri", uri])


def _installed(name: str) -> Path:
    """Return the shortest path of a command of this environment that works from here."""
    command = Path(sys.executable).with_name(name)
    return command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
