"""Open an export to ask it questions, as the evaluation of its run does."""

from typing import Literal

import torch

from llavamed.config.engine import Precision
from llavamed.errors import CheckpointError
from llavamed.model.export import fetch_export
from llavamed.model.generation import Generator
from llavamed.model.llava import load_model
from llavamed.processor.build import load_processor
from llavamed.processor.templates import get_template, template_hash
from llavamed.storage.location import Location
from llavamed.storage.manifest import ExportManifest, read

Device = Literal["auto", "cpu", "cuda"]


def open_export(place: Location, *, device: Device = "auto") -> Generator:
    """Load the model of an export, in the precision that it was trained and evaluated in.

    Args:
        place: The folder of the export.
        device: Where the model runs; `auto` takes a GPU where there is one.

    Raises:
        CheckpointError: The export is incomplete or damaged, or was made with another template.
    """
    folder = fetch_export(place)
    manifest = read(ExportManifest, place)
    model = load_model(folder, _precision(place), "sdpa")
    try:
        processor = load_processor(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{place}: its processor cannot be loaded: {reason}; copy the export once more"
        ) from error
    template = get_template(manifest.template)
    found = template_hash(template, processor.tokenizer)
    if found != manifest.template_hash:
        raise CheckpointError(
            f"{place}: template={manifest.template} is not the one it was trained with "
            f"(template_hash={manifest.template_hash}, not {found}); use the program that "
            "exported it"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Generator(model.to(torch.device(device)), processor, template)


def _precision(place: Location) -> Precision:
    """Return the precision of the weights of an export."""
    config = (place / "config.json").read_json()
    return "bf16" if config["dtype"] == "bfloat16" else "fp32"
