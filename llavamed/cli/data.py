"""`llavamed data`: look at data, before and after it is prepared."""

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llavamed.cli.logs import log_console
from llavamed.cli.options import ConfigFile, Overrides, console, load_run, print_line
from llavamed.config.run import RunConfig
from llavamed.config.sources import LlavaJson
from llavamed.errors import ConfigError

if TYPE_CHECKING:
    from llavamed.data.inspect.samples import InspectedSample

app = typer.Typer(help="Look at data.", no_args_is_help=True)


@app.command()
def labels(
    file: Annotated[
        str, typer.Argument(help="JSON list or JSON lines of {id, conversations}, at any URI.")
    ],
    template: Annotated[str, typer.Option(help="Name of a chat template.")],
    tokenizer: Annotated[str, typer.Option(help="Folder, or name on the hub.")],
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Truncate to this number of tokens, with those of images; default: no truncation.",
        ),
    ] = None,
    image_tokens: Annotated[
        int, typer.Option(min=1, help="Number of tokens per image; 1 leaves a mark for each image.")
    ] = 1,
) -> None:
    """Print token ids and labels of dialogues as JSON lines, to compare masks with any trainer.

    A dialogue that cannot be labelled has the reason in "problem"; their number goes to stderr.
    """
    from llavamed.data.inspect.labels import label_rows
    from llavamed.data.sources import open_source
    from llavamed.processor.templates import get_template

    words = get_template(template)
    source = open_source(LlavaJson(source="llava_json", path=file, image_folder="."))

    from transformers.utils import logging

    from llavamed.processor.tokenizer import load_tokenizer

    logging.set_verbosity_error()  # dialogues longer than the model's limit are expected here
    problems: Counter[str] = Counter()
    count = 0
    for row in label_rows(
        source,
        template=words,
        tokenizer=load_tokenizer(tokenizer, "tokenizer"),
        num_image_tokens=image_tokens,
        max_length=max_length,
    ):
        typer.echo(json.dumps(row))
        count += 1
        if row["problem"]:
            problems[row["problem"].partition(":")[0]] += 1
    bad = ", ".join(f"{number} {reason}" for reason, number in problems.most_common())
    text = f"{count:,} dialogues, {problems.total():,} with a problem"
    log_console.print(f"{text} ({bad})" if bad else text, soft_wrap=True)


@app.command()
def inspect(
    dataset: Annotated[str, typer.Argument(help="Name of a prepared dataset.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SAMPLE_ID]... [KEY=VALUE]...",
            help="Ids of samples; default: drawn at random. Then overrides of the config.",
        ),
    ] = None,
    config: ConfigFile = None,
    number: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of samples to draw, default: 1. With --quarantined, number to show for "
            "each reason, default: 3.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other samples.")] = 0,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="Show what was refused, and why, instead.")
    ] = False,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page instead, at any URI.")
    ] = None,
) -> None:
    """Show samples of a prepared dataset: image, trained and masked tokens, and origin."""
    overrides = [word for word in words or [] if _is_override(word)]
    ids = [word for word in words or [] if not _is_override(word)]
    if quarantined and ids:
        raise ConfigError("--quarantined: shows what was refused by its reason; leave out the ids")
    run = load_run(config, overrides)
    from llavamed.data.inspect.page import render_samples
    from llavamed.data.inspect.samples import (
        find_samples,
        pick_samples,
        read_refusals,
        read_samples,
    )
    from llavamed.data.inspect.terminal import show_refusals, show_sample
    from llavamed.data.prepared.dataset import PROCESSOR, PreparedDataset, open_prepared
    from llavamed.processor.build import load_processor
    from llavamed.storage.fetch import fetch_once
    from llavamed.storage.location import MANIFEST, locate

    directory = locate(run.datasets_directory)
    place = directory / dataset
    if not place.exists():
        run.data.check_name(dataset)
    failed = quarantined and not (place / MANIFEST).exists()
    prepared = place if failed else open_prepared(place)
    samples: Iterable[InspectedSample] = ()
    refusals = read_refusals(prepared, number or 3) if quarantined else []
    if not quarantined and isinstance(prepared, PreparedDataset):
        rows = find_samples(prepared, ids) if ids else pick_samples(prepared, number or 1, seed)
        tokenizer = load_processor(Path(fetch_once(str(directory / PROCESSOR)))).tokenizer
        samples = read_samples(prepared, rows, tokenizer)
    if html is not None:
        locate(html).write_bytes(render_samples(prepared, samples, refusals).encode())
        print_line(f"{html}: the page")
        return
    for sample in samples:
        show_sample(sample, console)
    if quarantined:
        show_refusals(refusals, console)


def _is_override(word: str) -> bool:
    """Return whether a word is a setting and not the id of a sample, which may contain `=` too."""
    return "=" in word and word.partition("=")[0].partition(".")[0] in RunConfig.model_fields


@app.command()
def decontaminate(
    dataset: Annotated[str, typer.Option(help="Name of the training set.")],
    against: Annotated[list[str], typer.Option(help="Name of an evaluation set; repeatable.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="What makes a match: image; question; pair, both of one sample; text, a question "
            "with its answer. Repeatable; default: image and question."
        ),
    ] = None,
    max_distance: Annotated[
        int | None,
        typer.Option(
            min=0, max=255, help="Maximum number of bits, of 256, in which equal images may differ."
        ),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Move the matches to the quarantine.")
    ] = False,
) -> None:
    """Report, and remove on request, training samples that an evaluation set also contains."""
    run = load_run(config, overrides)
    from llavamed.cli.tables import show_contamination, show_removal
    from llavamed.data.prepared.dataset import hold_datasets
    from llavamed.data.prepared.decontaminate import find_contamination
    from llavamed.storage.location import locate

    with hold_datasets(locate(run.datasets_directory)) if remove else nullcontext():
        found = find_contamination(run, dataset, against, by=by, max_distance=max_distance)
        show_contamination(found)
        show_removal(found, found.remove() if remove else None)
