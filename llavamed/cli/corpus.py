"""`llavamed corpus`: make training data from open literature."""

import json
import os
from dataclasses import asdict
from typing import Annotated

import typer

from llavamed.cli.logs import log_console
from llavamed.cli.options import ConfigFile, Overrides, load_run, print_line
from llavamed.errors import ConfigError, DataError

app = typer.Typer(help="Make training data from open literature.", no_args_is_help=True)


@app.command()
def figures(
    files: Annotated[list[str], typer.Argument(help="JATS files of articles, at any URI.")],
) -> None:
    """Print the figures of articles as JSON lines: captions, pictures, mentions and rights.

    A file that cannot be read is reported at the end, and the others are read all the same.
    """
    from llavamed.corpus.pmc.figures import read_article
    from llavamed.corpus.pmc.jats import parse_articles
    from llavamed.storage.location import locate

    failures = []
    for file in files:
        place = locate(file)
        try:
            articles = [read_article(each) for each in parse_articles(place.read_bytes(), file)]
        except FileNotFoundError:
            failures.append(f"{file}: no such file; check the path")
            continue
        except DataError as error:
            failures.append(str(error))
            continue
        except RecursionError:
            failures.append(f"{file}: its elements are nested too deeply; skip it")
            continue
        for article in articles:
            shared = {
                "file": place.name,
                "pmcid": article.pmcid,
                "licence": article.licence,
                "licence_url": article.licence_url,
            }
            for figure in article.figures:
                typer.echo(json.dumps(shared | asdict(figure), ensure_ascii=False))
    if failures:
        raise DataError("\n".join(failures))


@app.command()
def harvest(
    overrides: Overrides = None,
    config: ConfigFile = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Fetch what is new, and remove what was retracted, corrected or relicensed.",
        ),
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print what it takes, and fetch no article.")
    ] = False,
    num_cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of the estimate; default: this machine's.")
    ] = None,
) -> None:
    """Fetch articles of PubMed Central and their figures, with Ray Data."""
    run = load_run(config, overrides)
    from llavamed.cli.corpus_tables import show_harvest, show_harvest_estimate
    from llavamed.storage.location import locate

    if run.corpus is None:
        raise ConfigError("corpus=null: does not say what to harvest; add a section corpus.harvest")
    settings = run.corpus.harvest
    if estimate:
        show_harvest_estimate(settings, num_cpus or os.cpu_count() or 1)
        return
    from llavamed.corpus.pmc.job import HarvestJob
    from llavamed.run.progress import ProgressDisplay
    from llavamed.run.ray_cluster import ray_cluster

    job = HarvestJob(settings, locate(run.corpus_directory), run.max_failures)
    with ProgressDisplay(log_console) as progress, ray_cluster(run):
        manifest = job.run(update=update, on_progress=progress.harvested)
    show_harvest(manifest)


@app.command()
def select(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Select harvested figures of one panel and a known modality, and count the refusals."""
    run = load_run(config, overrides)
    from llavamed.cli.corpus_tables import show_selection
    from llavamed.corpus.select.job import harvested, select_figures
    from llavamed.run.ray_cluster import ray_cluster

    harvested(run)
    with ray_cluster(run):
        show_selection(select_figures(run))


@app.command()
def dialogues(
    overrides: Overrides = None,
    config: ConfigFile = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print what it takes, and send no request.")
    ] = False,
    judge_only: Annotated[
        bool,
        typer.Option("--judge-only", help="Filter what was written before, and send no request."),
    ] = False,
    write_batch: Annotated[
        str | None,
        typer.Option(help="Write requests without an answer to this folder, for the Batch API."),
    ] = None,
    read_batch: Annotated[
        list[str] | None, typer.Option(help="Keep the answers of this output file; repeatable.")
    ] = None,
) -> None:
    """Write dialogues about the selected figures with a language model, and filter them."""
    if judge_only and (estimate or read_batch or write_batch is not None):
        raise ConfigError(
            "--judge-only: filters what was written before, and neither reads nor writes a batch "
            "nor estimates; give it alone"
        )
    run = load_run(config, overrides)
    from llavamed.cli.corpus_tables import show_dialogue_plan, show_dialogues
    from llavamed.corpus.dialogues.job import DialogueJob
    from llavamed.corpus.questions import held_out_articles

    job = DialogueJob(run, held_out_articles(run))
    if not estimate and (count := job.forget()):
        print_line(f"{count:,} answers about articles that left the corpus are removed")
    if judge_only:
        show_dialogues(job.judge_again())
        return
    if read_batch:
        counts = job.read_batches(read_batch)
        lines = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        print_line(f"lines: {lines}")
    plan = job.plan()
    show_dialogue_plan(plan, job.settings)
    if write_batch is not None:
        names = job.write_batches(write_batch)
        prices = job.settings.endpoint.prices
        part = "" if prices is None else f", for {prices.batch:g} of the cost above"
        print_line(f"batch files in {write_batch}: {', '.join(names) + part if names else 'none'}")
    elif not estimate:
        show_dialogues(job.run(plan))


@app.command()
def pairs(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Write the captions of the selected figures as samples of the alignment stage."""
    run = load_run(config, overrides)
    from llavamed.config.corpus import Pairs
    from llavamed.corpus.pairs import write_pairs
    from llavamed.corpus.questions import held_out_articles
    from llavamed.storage.location import locate

    corpus = locate(run.corpus_directory)
    settings = Pairs() if run.corpus is None else run.corpus.pairs
    held_out = held_out_articles(run)
    counts = write_pairs(corpus / "select", corpus / "samples", settings, held_out)
    print_line(
        f"{corpus / 'samples'}: {counts['pairs']} pairs, {counts['unfit_length']} captions too "
        "short or too long"
    )


@app.command()
def questions(
    overrides: Overrides = None,
    config: ConfigFile = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print what it takes, and send no request.")
    ] = False,
) -> None:
    """Write questions for a chat evaluation, about figures that are held out of training."""
    run = load_run(config, overrides)
    from llavamed.cli.corpus_tables import describe_estimate, show_questions
    from llavamed.corpus.questions import QuestionJob

    job = QuestionJob(run)
    if estimate:
        print_line(describe_estimate(job.estimate()))
        return
    show_questions(job.run(), job.folder)


@app.command()
def card(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Write the data card, the Croissant metadata and the attribution of a corpus."""
    run = load_run(config, overrides)
    from llavamed.corpus.card import write_cards
    from llavamed.storage.location import locate

    corpus = locate(run.corpus_directory)
    counts = write_cards(corpus, run.name)
    print_line(
        f"{corpus}: README.md, croissant.json and attribution.csv of {counts.kept:,} figures of "
        f"{counts.articles:,} articles"
    )
