"""Print samples of a prepared dataset: the images in coloured half-blocks, then the tokens.

Nothing is shown by colour alone: trained tokens are also in brackets, and without colour, as in a
pipe, shades of block characters draw the image. The dataset's text cannot control the terminal:
unprintable characters are shown as escapes.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image
from rich.color import Color
from rich.columns import Columns
from rich.console import Console, Group
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from llavamed.data.inspect.samples import LINE_BREAK, InspectedSample, Refusal, Span
from llavamed.processor.image_files import Pixels

MAX_IMAGE_WIDTH, MIN_IMAGE_WIDTH = 56, 20
"""Columns per image; several images share the width down to the minimum."""

_SHADES = " \u2591\u2592\u2593\u2588"
_STYLES = {"trained": "bold green", "masked": "dim", "image": "cyan"}


def show_sample(sample: InspectedSample, console: Console) -> None:
    """Print one sample: its images, turns, tokens, counts and origin."""
    console.rule(Text(f"sample {printable(sample.id)}", style="bold"), align="left")
    if sample.pixels:
        console.print(_images(sample.pixels, console))
    turns = Table.grid(padding=(0, 2, 0, 0))
    turns.add_column(style="bold")
    turns.add_column(overflow="fold")
    for turn in sample.turns:
        turns.add_row(turn.role, Text(printable(turn.text)))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("tokens", count_tokens(sample))
    facts.add_row("place", "shard {}, row group {}, row {}".format(*sample.place))
    for name, fact in sample.facts.items():
        facts.add_row(name.replace("_", " "), Text(printable(fact)))
    parts = Group(turns, "", _tokens(sample.spans, sample.num_cut), "", facts)
    console.print(Padding(parts, (1, 0)), highlight=False)


def show_refusals(refusals: Sequence[Refusal], console: Console) -> None:
    """Print the quarantine: each reason with its count and its first samples."""
    if not refusals:
        console.print("nothing was quarantined", highlight=False)
        return
    table = Table(title="Quarantine", title_justify="left", expand=False)
    table.add_column("reason", no_wrap=True)
    table.add_column("samples", justify="right")
    table.add_column("row", justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("detail", overflow="fold")
    for refusal in refusals:
        for number, row in enumerate(refusal.first):
            first = (refusal.reason, f"{refusal.count:,}") if number == 0 else ("", "")
            cells = (*first, str(row["row"]), row["id"], row["detail"])
            texts = (Text(printable(cell)) for cell in cells)
            table.add_row(*texts, end_section=number == len(refusal.first) - 1)
    console.print(table)


def count_tokens(sample: InspectedSample) -> str:
    """Describe how many tokens a sample has, and how many are trained, from images, or cut."""
    num_image = sum(len(span.tokens) for span in sample.spans if span.kind == "image")
    return (
        f"{sample.num_tokens:,}, {sample.num_trained:,} trained, {num_image:,} from "
        f"{len(sample.pixels)} image{'' if len(sample.pixels) == 1 else 's'}; "
        f"{sample.num_cut:,} cut"
    )


def printable(text: str) -> str:
    """Replace unprintable characters, except line breaks, by escapes."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )


def _tokens(spans: Iterable[Span], num_cut: int) -> Text:
    text = Text()
    for span in spans:
        style = _STYLES[span.kind]
        if span.kind == "image":
            text.append(f"{span.tokens[0]} x {len(span.tokens)}", style).append(" ")
            continue
        if span.kind == "trained":
            text.append("\u27e6 ", style)
        for token in span.tokens:
            shown = printable(token)
            underlined = f"{style} underline" if span.kind == "trained" else style
            text.append(shown, underlined).append("\n" if LINE_BREAK in shown else " ")
        if span.kind == "trained":
            text.append("\u27e7 ", style)
    if num_cut:
        text.append(f"({num_cut:,} more cut)", "red")
    return text


def _images(images: Sequence[Pixels], console: Console) -> Columns:
    share = (console.width + 2) // len(images) - 2
    width = min(MAX_IMAGE_WIDTH, console.width, max(share, MIN_IMAGE_WIDTH))
    draw = _draw_in_shades if console.color_system is None else _draw_in_colour
    return Columns([draw(each, min(width, each.shape[1])) for each in images], padding=(1, 2))


def _num_lines(pixels: Pixels, width: int) -> int:
    """Return the lines of a drawing of this width; a character is twice as high as it is wide."""
    return max(1, width * pixels.shape[0] // pixels.shape[1] // 2)


def _draw_in_colour(pixels: Pixels, width: int) -> Text:
    """Draw two pixels per character: the upper in the foreground, the lower in the background."""
    rows = np.asarray(Image.fromarray(pixels).resize((width, 2 * _num_lines(pixels, width))))
    text = Text(no_wrap=True)
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append(
                "\u2580", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            )
        text.append("\n")
    text.rstrip()
    return text


def _draw_in_shades(pixels: Pixels, width: int) -> Text:
    size = (width, _num_lines(pixels, width))
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize(size))
    levels = (grey.astype(int) * len(_SHADES) // 256).tolist()
    return Text("\n".join("".join(_SHADES[level] for level in row) for row in levels), no_wrap=True)
