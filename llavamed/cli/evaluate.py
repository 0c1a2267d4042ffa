"""`llavamed evaluate`: score the models of a run, or any file of predictions."""

import json
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from llavamed.cli.logs import log_console
from llavamed.cli.options import ConfigFile, Overrides, load_run, print_line
from llavamed.cli.verdicts import gate_model, judge_answers, write_model_card
from llavamed.config.engine import Precision

if TYPE_CHECKING:
    from llavamed.evaluate.answers import AnswersManifest
    from llavamed.evaluate.candidate import Candidate
    from llavamed.evaluate.questions import Questions
    from llavamed.storage.lease import Lease
    from llavamed.storage.location import Location


class _RunsByDefault(typer.core.TyperGroup):
    """A group whose command `run` may be left out: `llavamed evaluate --config FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front of arguments that name no command."""
        names = {*self.commands, *ctx.help_option_names, "--list"}
        return super().parse_args(ctx, args if args and args[0] in names else ["run", *args])


app = typer.Typer(cls=_RunsByDefault, help="Score models and predictions.")


def _list_benchmarks(is_wanted: bool) -> None:
    if is_wanted:
        from llavamed.cli.tables import show_benchmarks

        show_benchmarks()
        raise typer.Exit


@app.callback()
def evaluate(
    _: Annotated[
        bool,
        typer.Option(
            "--list", callback=_list_benchmarks, is_eager=True, help="Print the benchmarks."
        ),
    ] = False,
) -> None:
    """Score models and predictions."""


@app.command("answer")
def answer_questions(
    benchmark: Annotated[str, typer.Option(help="Name of a benchmark; see `evaluate --list`.")],
    data: Annotated[str, typer.Option(help="URI of its data.")],
    output: Annotated[str, typer.Option(help="Folder for the answers, at any URI.")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="An export or models:/NAME@ALIAS, or a folder or hub name of another model."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="YAML file of an endpoint instead: url, model, limits, prices."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: the benchmark's usual one.")] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="Answer under this condition too: blank_image, noise, shuffled, question_only or "
            "majority; repeatable."
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Ask pairs about findings that are there and not there.")
    ] = False,
    instruction: Annotated[
        str | None, typer.Option(help="Line below every question. Default: the benchmark's own.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Template of ours, for a model without a chat template.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Number format of the weights.")] = "bf16",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens of an answer.")
    ] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 32,
    workers: Annotated[
        int, typer.Option(min=0, help="Workers of Ray; 0 answers in this process.")
    ] = 0,
    use_gpu: Annotated[bool, typer.Option("--gpu", help="Reserve a GPU for each worker.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask the first questions only.")] = None,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of questions that may be unusable.")
    ] = 0.0,
) -> None:
    """Let a model answer a benchmark, and show its scores with those of the controls.

    Run the same command again to resume: no question is asked twice.
    """
    from llavamed.evaluate.answering import Asked, answer_benchmark
    from llavamed.run.progress import ProgressDisplay
    from llavamed.storage.lease import hold_lease
    from llavamed.storage.location import locate

    folder = locate(output)
    asked = Asked(
        benchmark=benchmark,
        path=data,
        split=split,
        controls=tuple(control or ()),
        instruction=instruction,
        probe=probe,
        max_new_tokens=max_new_tokens,
        max_bad_fraction=max_bad_fraction,
        limit=limit,
    )
    candidate = _candidate(model, endpoint, str(folder / "cache"), template, precision, batch_size)
    with hold_lease(folder, hint="set --output to another folder") as lease:
        with ProgressDisplay(log_console) as progress, _workers(workers, use_gpu=use_gpu):
            made, questions = answer_benchmark(
                candidate,
                asked,
                folder,
                num_workers=workers,
                use_gpu=use_gpu,
                on_progress=progress.answered,
                before_writing=lease.check,
            )
        _publish(folder, made, questions, lease)


def _publish(
    folder: "Location", made: "AnswersManifest", questions: "Questions", lease: "Lease"
) -> None:
    """Write the scores and the page of answers, and show them."""
    from llavamed.cli.tables import show_answers
    from llavamed.evaluate.answers import ANSWERS
    from llavamed.evaluate.publish import publish_scores
    from llavamed.evaluate.questions import find_pictures

    found = publish_scores(
        folder,
        title=f"{made.model} on {made.questions}",
        find_pictures=partial(find_pictures, questions),
        before_writing=lease.check,
    )
    show_answers(made, found)
    print_line(f"Answers: {folder / ANSWERS}")
    print_line(f"Page:    {found.report}")


def _candidate(
    model: str | None,
    endpoint: str | None,
    cache: str,
    template: str | None,
    precision: Precision,
    batch_size: int,
) -> "Candidate":
    """Return the model to ask, by its name or the file of its endpoint."""
    from llavamed.config.endpoint import Endpoint
    from llavamed.config.load import load_section
    from llavamed.errors import ConfigError

    if (model is None) == (endpoint is None):
        raise ConfigError(
            f"model={model}, endpoint={endpoint}: must be one of the two; name a model, "
            "or --endpoint FILE"
        )
    if model is None:
        from llavamed.evaluate.endpoint_model import EndpointCandidate

        return EndpointCandidate(load_section("endpoint", endpoint, Endpoint), cache)
    from llavamed.evaluate.find_candidate import find_candidate

    return find_candidate(model, template=template, precision=precision, batch_size=batch_size)


def _workers(number: int, *, use_gpu: bool) -> AbstractContextManager[None]:
    """Join or start a Ray for this many workers; do nothing for none."""
    if not number:
        return nullcontext()
    from llavamed.config.run import Scaling
    from llavamed.run.ray_cluster import ray_for

    return ray_for(Scaling(num_workers=number, use_gpu=use_gpu))


@app.command("run")
def run_stages(
    overrides: Overrides = None,
    config: ConfigFile = None,
    stage: Annotated[str | None, typer.Option(help="Default: all that have an evaluation.")] = None,
) -> None:
    """Score the models of finished stages again, with their controls. This is the default
    command."""
    run = load_run(config, overrides)
    from llavamed.cli.tables import show_scores
    from llavamed.run.driver import evaluate_stages
    from llavamed.run.progress import ProgressDisplay

    with ProgressDisplay(log_console) as progress:
        evaluated = evaluate_stages(run, stage, progress)
    for found in evaluated:
        show_scores(found)


_FIELDS = (
    "JSON lines or a JSON list of {id, question, prediction, reference, answer_type, options, "
    "image, question_type, organ, modality, domain}, or a table (CSV, TSV) with these columns, at "
    "any URI, compressed by gzip or not; all but id, prediction, reference and answer_type may be "
    "absent. Options are letters with texts, a list, or the columns A, B and so on of a table; a "
    "reference may be a list of right answers."
)


_RESULT = (
    "Folder of a run, an export or an evaluation, a file answers.parquet, or a file of "
    f"predictions, at any URI. {_FIELDS}"
)
_RESULTS = (
    "Two or more, at any URI: folders of runs, exports or evaluations, files answers.parquet, or "
    f"files of predictions. {_FIELDS}"
)


@app.command("score")
def score_file(
    file: Annotated[str, typer.Argument(help=_RESULT)],
    scorer: Annotated[
        list[str] | None, typer.Option(help="Name of a scorer; repeatable; default: all.")
    ] = None,
    items: Annotated[
        bool, typer.Option("--items", help="Print one JSON line {id, score} per item instead.")
    ] = False,
    candidates: Annotated[
        str | None,
        typer.Option(
            help="JSON list of the open answers of the training set, at any URI: with --scorer "
            "legacy, for LLaVA-Med's accuracy of open answers."
        ),
    ] = None,
) -> None:
    """Score the answers of any model, by one scorer or by all.

    With --scorer legacy alone, all averages of LLaVA-Med's two scripts follow.
    """
    import numpy as np

    from llavamed.cli.tables import show_legacy, show_scorers
    from llavamed.errors import ConfigError
    from llavamed.evaluate.compare import no_answer_shares
    from llavamed.evaluate.results import read_results
    from llavamed.evaluate.scorers.item import score_best
    from llavamed.evaluate.scorers.legacy import aggregate
    from llavamed.evaluate.scorers.predictions import SCORERS, find_scorer, read_candidates
    from llavamed.evaluate.summary import describe_clusters, group_items, summarize

    names = scorer or list(SCORERS)
    rules = {name: find_scorer(name) for name in names}
    if items and len(rules) != 1:
        raise ConfigError(f"scorer={','.join(names)}: --items takes one; add --scorer NAME")
    is_legacy = names == ["legacy"] and not items
    if candidates is not None and not is_legacy:
        raise ConfigError(f"candidates={candidates}: needs --scorer legacy and no other; add it")
    known = [] if candidates is None else read_candidates(candidates)
    found = read_results(file)
    scores = {
        name: np.array([score_best(rule, item) for item in found]) for name, rule in rules.items()
    }
    if items:
        for item, value in zip(found, scores[names[0]].tolist(), strict=True):
            typer.echo(json.dumps({"id": item.given_id, "score": value}, ensure_ascii=False))
        return
    groups = group_items(found)
    show_scorers(groups, summarize(groups, scores))
    if is_legacy:
        show_legacy(aggregate(found, known))
    for share in no_answer_shares([found]):
        text = f"{share.value:.1%} [{share.low:.1%},{share.high:.1%}]"
        print_line(f"Closed questions without an answer, by the strict rules: {text}")
    print_line(describe_clusters(found))


@app.command("compare")
def compare_results(
    files: Annotated[list[str], typer.Argument(help=_RESULTS)],
    scorer: Annotated[str, typer.Option(help="Name of a scorer.")] = "strict",
    by: Annotated[
        Literal["answer_type", "question_type", "organ", "modality", "domain"],
        typer.Option(help="Field to group questions by."),
    ] = "answer_type",
    plot: Annotated[
        str | None, typer.Option(help="Draw a plot to this file, a PNG at any URI.")
    ] = None,
) -> None:
    """Compare runs, exports or files of predictions on the same questions."""
    from string import ascii_uppercase

    from llavamed.cli.tables import show_comparison
    from llavamed.errors import ConfigError
    from llavamed.evaluate.compare import align, compare, no_answer_shares
    from llavamed.evaluate.results import read_results
    from llavamed.evaluate.scorers.predictions import find_scorer
    from llavamed.evaluate.summary import describe_clusters
    from llavamed.storage.location import locate

    rule = find_scorer(scorer)
    if not 2 <= len(set(files)) == len(files) <= len(ascii_uppercase):
        raise ConfigError(
            f"files={', '.join(files)}: must be 2 to {len(ascii_uppercase)} different files; name "
            "the others, each once"
        )
    if plot is not None and not plot.endswith(".png"):
        raise ConfigError(f"plot={plot}: must end in .png; name another file")
    aligned = align({file: read_results(file) for file in files})
    items = list(aligned.values())
    compared = compare(items, rule, by)
    letters = dict(zip(ascii_uppercase, files, strict=False))
    show_comparison(compared, no_answer_shares(items), letters, scorer)
    print_line(describe_clusters(items[0]))
    if plot is not None:
        from llavamed.evaluate.compare_plot import draw_comparison

        names = [f"{letter}: {file}" for letter, file in letters.items()]
        locate(plot).write_bytes(draw_comparison(compared, names, scorer))
        print_line(f"Plot: {plot}")


app.command("judge")(judge_answers)
app.command("gate")(gate_model)
app.command("card")(write_model_card)
