"""The `llavamed` command: it reads a config, does the work and prints the result.

Heavy imports stay inside the commands, after the config is read, so that help and configuration
errors come at once.
"""

import logging
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llavamed import __version__
from llavamed.cli.chat import chat, serve
from llavamed.cli.cluster import app as cluster
from llavamed.cli.corpus import app as corpus
from llavamed.cli.data import app as data
from llavamed.cli.evaluate import app as evaluate
from llavamed.cli.evaluate import compare_results
from llavamed.cli.logs import configure_logging, log_console
from llavamed.cli.options import ConfigFile, Overrides, find_config, load_run, print_line
from llavamed.config.load import dump_config, load_config
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError, InterruptError, LlavaMedError

logger = logging.getLogger(__name__)


class _Commands(TyperGroup):
    """The commands. At Ctrl-C or SIGTERM they end with a sentence; click would print "Aborted!"."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and turn an interrupt into an error of ours."""
        received = [signal.SIGINT]

        def interrupt(number: int, _: object) -> None:
            received.append(signal.Signals(number))
            raise KeyboardInterrupt  # Ray passes this on too, wherever it waits

        before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise InterruptError(received[-1], received[-1].name, *error.args) from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


app = typer.Typer(
    cls=_Commands,
    help="Train biomedical vision-language models by a curriculum.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cluster, name="cluster")
app.add_typer(corpus, name="corpus")
app.add_typer(data, name="data")
app.add_typer(evaluate, name="evaluate")
app.command("compare")(compare_results)
app.command("chat")(chat)
app.command("serve")(serve)
_EVERYWHERE = {"--debug", "--verbose", "--quiet"}


_VERSIONS = "Show the versions of llavamed, Python and the libraries it depends on."


def _show_versions(asked: bool) -> None:
    if not asked:
        return
    names = ("ray", "torch", "transformers", "deepspeed", "mlflow")
    print_line(f"llavamed {__version__}, Python {platform.python_version()}")
    for name in names:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "is not installed"
        print_line(f"{name} {version}")
    raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option(help="Show what libraries log, too.")] = False,
    quiet: Annotated[bool, typer.Option(help="Show warnings and results only.")] = False,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_versions, is_eager=True, help=_VERSIONS)
    ] = False,
) -> None:
    """Accept the options of every command; `main` reads them itself, at any position."""


@app.command()
def prepare(
    overrides: Overrides = None,
    config: ConfigFile = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Name of a dataset; repeatable. By default all are prepared."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare finished datasets with their sources.")
    ] = False,
) -> None:
    """Prepare datasets: validate, tokenize and shard them, with Ray Data."""
    run = load_run(config, overrides)
    from llavamed.run.driver import check_datasets, prepare_datasets
    from llavamed.run.progress import ProgressDisplay

    with ProgressDisplay(log_console) as progress:
        if check:
            check_datasets(run, dataset or [])
            return
        found = prepare_datasets(run, dataset or [], progress)
    for name, prepared in found.items():
        facts = prepared.manifest
        bad = ", ".join(f"{count} {reason}" for reason, count in facts.quarantined.items())
        print_line(
            f"{name}: {facts.num_samples} samples, {facts.num_tokens:,} tokens, "
            f"{facts.num_truncated} truncated, {facts.num_duplicates} duplicates, "
            f"{facts.num_quarantined} quarantined"
            f"{f' ({bad})' if bad else ''} in {prepared.location}"
        )


@app.command()
def plan(
    overrides: Overrides = None,
    config: ConfigFile = None,
    gpu: Annotated[str, typer.Option(help="Ray's name of the GPU.")] = "A100",
    num_gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs. By default the workers of the config.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(
            help="Assumed model FLOPs utilization. By default what is measured of the setting, or "
            "else 0.4."
        ),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Choose the fastest settings that fit, and plan with them."),
    ] = False,
    measured: Annotated[
        list[str] | None,
        typer.Option(
            help="File with measured speed and memory: a result of benchmarks/gpu/step.py, or the "
            "summary.json of a run on GPUs. May be repeated."
        ),
    ] = None,
) -> None:
    """Show what a run will do and cost: steps, tokens, memory, hours. This starts nothing."""
    run = load_run(config, overrides, num_workers=num_gpus)
    from llavamed.cli.tables import show_plan
    from llavamed.config.load import override_config
    from llavamed.model.cost.speeds import with_measurements
    from llavamed.run.auto_plan import choose, reasons
    from llavamed.run.plan import plan_run

    if run.corpus is not None:
        from llavamed.cli.corpus_tables import show_corpus_forecast

        show_corpus_forecast(run.corpus, os.cpu_count() or 1)
    speeds = with_measurements(measured or [])
    if auto:
        changes, choices = choose(run, accelerator=gpu, num_gpus=num_gpus, speeds=speeds)
        for choice in choices:
            for sentence in reasons(choice):
                print_line(sentence)
        print_line(f"settings: {' '.join(changes) or 'those of the config'}")
        run = override_config(run, changes)
    costs = plan_run(run, accelerator=gpu, num_gpus=num_gpus, mfu=mfu, speeds=speeds)
    show_plan(costs)


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="End another attempt that holds the run.")
    ] = False,
) -> None:
    """Run the curriculum: prepare, train and evaluate what is not finished yet."""
    run = load_run(config, overrides)
    logger.info("checking places, packages, weights and MLflow before anything starts")
    from llavamed.cli.tables import show_summary
    from llavamed.run.driver import run_curriculum
    from llavamed.run.progress import ProgressDisplay

    with ProgressDisplay(log_console) as progress:
        summary = run_curriculum(run, progress, take_over=take_over)
    show_summary(summary)


@app.command()
def export(
    target: Annotated[str, typer.Argument(help="Folder to write, at any URI.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    stage: Annotated[
        str | None, typer.Option(help="Name of the stage. By default the last one.")
    ] = None,
) -> None:
    """Copy a finished stage's model to a folder, after loading it with plain transformers."""
    run = load_run(config, overrides)
    from llavamed.model.export import copy_export, serving_note
    from llavamed.run.curriculum import find_stage
    from llavamed.storage.location import locate

    copy_export(find_stage(run, stage).export, locate(target))
    print_line(f"{target}: holds the model")
    if note := serving_note(locate(target)):
        print_line(note)


@app.command("config")
def show_config(
    overrides: Overrides = None,
    config: ConfigFile = None,
    schema: Annotated[bool, typer.Option(help="Print the JSON schema instead.")] = False,
) -> None:
    """Check a config and print it with every default written out."""
    import json

    if schema:
        sys.stdout.write(json.dumps(RunConfig.model_json_schema(), indent=2) + "\n")
    else:
        sys.stdout.write(dump_config(load_config(find_config(config), overrides or [])))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A user's error ends it with a sentence and an exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    configure_logging(
        "verbose" if "--verbose" in words else "quiet" if "--quiet" in words else "normal"
    )
    try:
        app([word for word in words if word not in _EVERYWHERE])
    except Exception as error:
        if "--debug" in words:
            raise
        error = _explain_missing(error) or error
        is_ours = isinstance(error, LlavaMedError)
        text = str(error) if is_ours else _explain_unexpected(error)
        log_console.print(f"error: {text}", style="bold red", soft_wrap=True)
        sys.exit(error.exit_code if isinstance(error, LlavaMedError) else 1)


def _explain_missing(error: Exception) -> ConfigError | None:
    """Return which extra holds a package that is not installed, or None for another error."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", "llavamed"):
        return None
    extra = "cluster" if package == "kubernetes" else "train"
    return ConfigError(
        f"package={package}: is not installed, and this command needs it; run `pip install "
        f"'llavamed[{extra}]'`"
    )


def _explain_unexpected(error: Exception) -> str:
    """Explain that the program has a bug, and keep the traceback, which may not be reproducible."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="llavamed-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    return (
        f"unexpected {type(error).__name__}: the program or a library has a bug; report it "
        f"with the traceback in {file.name}"
    )
