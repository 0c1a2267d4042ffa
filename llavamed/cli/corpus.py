"""`llavamed corpus`: make training data from open literature."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

app = typer.Typer(help="Make training data from open literature.", no_args_is_help=True)


@app.callback()
def corpus() -> None:
    """Keep the commands below one word, however many there are."""


@app.command()
def figures(
    files: Annotated[list[str], typer.Argument(help="JATS files of articles, at any URI.")],
) -> None:
    """Print the figures of articles as JSON lines: captions, pictures, mentions and rights."""
    from llavamed.corpus.pmc.figures import read_article
    from llavamed.corpus.pmc.jats import parse_articles
    from llavamed.errors import DataError
    from llavamed.storage.location import locate

    for file in files:
        place = locate(file)
        try:
            data = place.read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{file}: no such file; check the path") from error
        for article in map(read_article, parse_articles(data, file)):
            shared = {
                "file": place.name,
                "pmcid": article.pmcid,
                "licence": article.licence,
                "licence_url": article.licence_url,
            }
            for figure in article.figures:
                typer.echo(json.dumps(shared | asdict(figure), ensure_ascii=False))
