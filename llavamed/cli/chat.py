"""`llavamed chat`: a conversation with an export in the terminal, or one answer for a script."""

import os
import re
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llavamed.cli.options import console
from llavamed.errors import ConfigError

if TYPE_CHECKING:
    from llavamed.serve.conversation import Conversation

_COMMANDS = """\
/image FILE  put an image before the next question: a path, a URL, a DICOM file
/reset       forget the conversation and its images
/save FILE   write the conversation as JSON
/quit        end (so does Ctrl-D); Ctrl-C stops an answer"""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def chat(
    export: Annotated[
        str, typer.Argument(help="Folder of an export, at any URI, or models:/NAME@ALIAS.")
    ],
    image: Annotated[
        list[str] | None, typer.Option(help="Image of the first question; repeatable.")
    ] = None,
    ask: Annotated[
        str | None, typer.Option(help="Print the answer to this question and exit.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens of an answer.")
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            min=0, max=2, help="Sampling temperature; 0 always takes the likeliest token."
        ),
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, help="Sample from the likeliest tokens with this probability."
        ),
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed for sampling.")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")
    ] = "auto",
) -> None:
    """Talk to an export about images in the terminal. It answers as in the evaluation."""
    if ask is not None and not ask.strip():
        raise ConfigError('--ask="": holds no question; ask one, or leave --ask out')
    from llavamed.serve.conversation import NOTICE, Conversation, Settings
    from llavamed.serve.export import open_export
    from llavamed.tracking.registered import find_export

    generator = open_export(find_export(export), device=device)
    conversation = Conversation(generator, Settings(max_tokens, temperature, top_p, seed))
    for source in image or []:
        conversation.attach(source)
    if ask is not None:
        _answer(conversation, ask)
        return
    typer.echo(NOTICE)
    typer.echo(_COMMANDS)
    _converse(conversation, export)


def _converse(conversation: "Conversation", export: str) -> None:
    """Read questions and commands until the end of the input."""
    from llavamed.errors import RequestError, StorageError

    while True:
        try:
            line = console.input("\n> " if console.is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        command, _, rest = line.partition(" ")
        file = _file_name(rest.strip())
        try:
            match command:
                case "":
                    continue
                case "/quit":
                    return
                case "/reset":
                    conversation.reset()
                case "/image" if file:
                    conversation.attach(file)
                    typer.echo(f"attached: {file}")
                case "/save" if file:
                    conversation.save(file, export)
                    typer.echo(f"saved: {file}")
                case _ if command.startswith("/"):
                    typer.echo(_COMMANDS)
                case _:
                    _answer(conversation, line)
        except (RequestError, StorageError) as error:  # the conversation goes on
            typer.echo(f"error: {error}", err=True)
        except KeyboardInterrupt:
            typer.echo("\nstopped: the conversation is as it was before this question", err=True)


def _file_name(text: str) -> str:
    """Return the name of a file, which a terminal quotes as for a shell if it is dropped there."""
    with suppress(ValueError):  # an apostrophe alone quotes nothing
        words = shlex.split(text)
        text = words[0] if len(words) == 1 else text
    return os.path.expanduser(text)


def _answer(conversation: "Conversation", question: str) -> None:
    is_empty = True
    for piece in conversation.ask(question):
        is_empty = is_empty and not piece
        # Control characters would reach the terminal.
        typer.echo(_CONTROLS.sub("", piece) if console.is_terminal else piece, nl=False)
    typer.echo()
    if is_empty:
        typer.echo("the answer is empty: the model wrote nothing or blanks", err=True)


def serve(
    export: Annotated[
        str | None,
        typer.Argument(
            help="Folder of an export, at any URI, or models:/NAME@ALIAS; not with engine_url."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. limits.images=2")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file with settings of the service.")
    ] = None,
) -> None:
    """Serve an export: OpenAI's chat completions, and a page to talk to it."""
    from llavamed.config.load import load_section
    from llavamed.config.serving import Serving

    words = list(overrides or [])
    if export is not None and "=" in export.partition("://")[0]:  # a setting, not an export
        words, export = [export, *words], None
    serving = load_section("config", config, Serving, words)
    from llavamed.serve.launch import serve as run

    run(export, serving, typer.echo)
