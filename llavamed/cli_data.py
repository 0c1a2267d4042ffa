"""`llavamed data`: look at data, before and after it is prepared. The same rules as `cli`."""

from typing import Annotated

import typer

from llavamed.cli_run import ConfigFile, Overrides, console, load_run

app = typer.Typer(help="Look at data.", no_args_is_help=True)


@app.command()
def decontaminate(
    dataset: Annotated[str, typer.Option(help="The one that is trained on.")],
    against: Annotated[list[str], typer.Option(help="One that scores are taken on; repeatable.")],
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
        typer.Option(min=0, max=255, help="Bits of 256 in which equal images may differ."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the matches out.")] = False,
) -> None:
    """Report, and remove if asked, training samples that are in an evaluation set too."""
    run = load_run(config, overrides)
    from llavamed.data.decontaminate import find_contamination
    from llavamed.tables import show_contamination, show_removal

    found = find_contamination(run, dataset, against, by=by, max_distance=max_distance)
    show_contamination(found, console)
    show_removal(found, found.remove() if remove else None, console)
