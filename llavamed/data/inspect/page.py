"""Samples of a prepared dataset as one HTML page that needs no network.

Images are embedded at training resolution, without loss, as the model gets them. Text of the
dataset is escaped by the environment, and the page's policy forbids any script and any request.
"""

import base64
from collections.abc import Iterable

from llavamed.data.inspect.samples import LINE_BREAK, InspectedSample, Refusal
from llavamed.data.inspect.terminal import count_tokens
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.pages.environment import page_environment
from llavamed.processor.images import Pixels, to_png
from llavamed.storage.location import Location


def render_page(
    dataset: PreparedDataset | Location,
    samples: Iterable[InspectedSample],
    refusals: Iterable[Refusal],
) -> str:
    """Draw samples, and what was refused, as one HTML page.

    Args:
        dataset: A dataset, or the folder of one whose preparation failed, which has no samples.
        samples: Of the dataset.
        refusals: Of the dataset.
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
