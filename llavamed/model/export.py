"""Exports: Hugging Face weights and processor in one folder, loadable with plain transformers."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llavamed.errors import CheckpointError
from llavamed.model.llava import load_model
from llavamed.model.processor import load_processor
from llavamed.storage import MANIFEST, Location


def write_export(
    place: Location,
    model: LlavaForConditionalGeneration,
    weights: dict[str, torch.Tensor],
    processor: LlavaProcessor,
    facts: dict[str, Any],
) -> None:
    """Publish a model; its manifest, written last, holds `facts` and makes the export complete.

    Args:
        place: Folder to write.
        model: Whose config and class are saved.
        weights: All its weights, by state-dict name.
        processor: Saved beside it, chat template included.
        facts: What the manifest tells of how the model came about.
    """
    place.remove()
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, state_dict=weights)
        processor.save_pretrained(scratch)
        (Path(scratch) / MANIFEST).write_text(json.dumps(facts, indent=2, sort_keys=True))
        place.upload(Path(scratch))


def read_manifest(place: Location) -> dict[str, Any] | None:
    """The manifest of a complete export, or none."""
    try:
        manifest: dict[str, Any] = (place / MANIFEST).read_json()
    except FileNotFoundError:
        return None
    return manifest


def copy_export(source: Location, target: Location) -> None:
    """Copy a complete export, once plain transformers has loaded model and processor from it.

    Raises:
        CheckpointError: There is no complete export, it does not load, or something is in the way.
    """
    if target.children():
        raise CheckpointError(f"{target}: is not empty; name a new folder")
    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch_export(source, Path(scratch))
        load_model(folder, "bf16", "sdpa")
        load_processor(folder)
        target.upload(folder)


def fetch_export(place: Location, scratch: Path) -> Path:
    """A local folder with a complete export. Raises: CheckpointError, when there is none."""
    if read_manifest(place) is None:
        raise CheckpointError(
            f"{place}: no export there ({MANIFEST} is missing); train the stage that makes it first"
        )
    return place.download(scratch)
