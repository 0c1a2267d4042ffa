"""`llavamed evaluate`: score the models of a run, or any file of predictions."""

import json
from typing import Annotated, Any

import typer
import typer.core

from llavamed.cli.logs import log_console
from llavamed.cli.options import ConfigFile, Overrides, console, load_run


class _RunsByDefault(typer.core.TyperGroup):
    """A group whose command `run` may be left out: `llavamed evaluate --config FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front of arguments that name no command."""
        names = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if args and args[0] in names else ["run", *args])


app = typer.Typer(cls=_RunsByDefault, help="Score models and predictions.")


@app.command("run")
def run_stages(
    overrides: Overrides = None,
    config: ConfigFile = None,
    stage: Annotated[str | None, typer.Option(help="Default: all that have an evaluation.")] = None,
) -> None:
    """Score the models of finished stages once more, beside their controls; the default."""
    run = load_run(config, overrides)
    from llavamed.cli.tables import show_scores
    from llavamed.run.driver import evaluate_stages
    from llavamed.run.progress import Progress

    with Progress(log_console) as progress:
        evaluated = evaluate_stages(run, stage, progress)
    for found in evaluated:
        show_scores(found, console)


@app.command("score")
def score_file(
    file: Annotated[
        str,
        typer.Argument(
            help="JSON lines of {id, question, prediction, reference, answer_type, options}, at "
            "any URI; options may be absent, letters with texts, or a list."
        ),
    ],
    scorer: Annotated[
        list[str] | None, typer.Option(help="Name of a scorer; repeatable; default: all.")
    ] = None,
    items: Annotated[
        bool, typer.Option("--items", help="Print one JSON line {id, score} an item instead.")
    ] = False,
) -> None:
    """Score a file of predictions, whoever made it, by one scorer or by all."""
    from llavamed.cli.tables import show_scorers
    from llavamed.errors import ConfigError
    from llavamed.evaluate.scorers.predictions import (
        SCORERS,
        find_scorer,
        read_predictions,
        summarize,
    )
    from llavamed.storage.location import locate

    names = scorer or list(SCORERS)
    rules = {name: find_scorer(name) for name in names}
    if items and len(rules) != 1:
        raise ConfigError(f"scorer={','.join(names)}: --items takes one; add --scorer NAME")
    found = read_predictions(locate(file))
    if items:
        rule = rules[names[0]]
        for item in found:
            typer.echo(json.dumps({"id": item.id, "score": rule(item)}, ensure_ascii=False))
        return
    show_scorers(
        {name: summarize((item, rule(item)) for item in found) for name, rule in rules.items()},
        console,
    )
