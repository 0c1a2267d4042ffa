"""Render samples of a prepared dataset as one HTML page that needs no network.

Images are embedded losslessly at training resolution, as the model sees them. The environment
escapes the dataset's text, and the page's policy forbids every script and request.
"""

import base64
from collections.abc import Iterable

from llavamed.data.inspect.samples import LINE_BREAK, InspectedSample, Refusal
from llavamed.data.inspect.terminal import count_tokens
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.pages.environment import page_environment
from llavamed.processor.image_files import Pixels, to_png
from llavamed.storage.location import Location


def render_samples(
    dataset: PreparedDataset | Location,
    samples: Iterable[InspectedSample],
    refusals: Iterable[Refusal],
) -> str:
    """Render samples and quarantined samples as one HTML page.

    Args:
        dataset: A dataset, or the folder of one whose preparation failed, which has no samples.
        refusals: Reasons of its quarantine.
    """
    environment = page_environment("llavamed.data.inspect")
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("page.html.j2").render(
        name=dataset.name,
        place=dataset if isinstance(dataset, Location) else dataset.location,
        dataset=None if isinstance(dataset, Location) else dataset,
        samples=list(samples),
        refusals=list(refusals),
        line_break=LINE_BREAK,
        count_tokens=count_tokens,
    )


def _data_uri(pixels: Pixels) -> str:
    return "data:image/png;base64," + base64.b64encode(to_png(pixels)).decode()
