"""The colours of the chat page are told apart by people who see little contrast."""

import re

import pytest

from llavamed.serve.page import read_page

STYLE = read_page()["style.css"][0].decode()
LIGHT, DARK = (
    dict(re.findall(r"--([a-z-]+): #([0-9a-f]+);", block))
    for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
)
TEXT = [
    (text, ground) for text in ("ink", "soft", "accent", "wrong") for ground in ("page", "panel")
]
TEXT += [("on-accent", "accent"), ("wash-ink", "wash")]


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    parts = (int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(part * c for part, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("text", "ground"), TEXT)
def test_text_is_read_on_its_ground(colours, text, ground):
    assert contrast(colours[text], colours[ground]) >= 4.5


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_the_edge_of_a_field_is_seen(colours):
    [field] = re.findall(r"^textarea, input:not.*?\}", STYLE, re.DOTALL | re.MULTILINE)
    [edge] = re.findall(r"border: 1px solid var\(--([a-z-]+)\)", field)
    assert min(contrast(colours[edge], colours[ground]) for ground in ("page", "panel")) >= 3
