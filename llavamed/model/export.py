"""Write exports: Hugging Face weights and processor in a folder that plain transformers loads.

`write_export` uploads the files; `check_export` loads them back and compares them with the trained
model. The manifest is written last and makes the folder an export.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llavamed.config.engine import Kernels, Precision
from llavamed.data.feed.loader import Batch
from llavamed.errors import CheckpointError, StorageError
from llavamed.model.generation import set_generation_tokens
from llavamed.model.kernels import use_kernels
from llavamed.model.llava import Llava, load_model
from llavamed.model.loss import sampled_logits
from llavamed.processor.build import Processor, load_processor, tiling
from llavamed.processor.encode import encode_prompt
from llavamed.processor.own_template import own_template
from llavamed.processor.templates import TOKENIZER, get_template, template_hash
from llavamed.processor.token_labels import Segment, flatten, write_out_first_spaces
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn
from llavamed.storage.fetch import fetch_once
from llavamed.storage.location import MANIFEST, Location
from llavamed.storage.manifest import ExportManifest, find
from llavamed.storage.scratch import scratch_folder

TOLERANCES = {"fp32": 1e-5, "bf16": 1e-2}
"""The largest difference of logits, relative to the largest logit. The same weights on the same
device and kernels give the same logits, and every tensor is compared bit for bit, so this only
allows for another order of summation: in float32 with 24 significant bits, in bfloat16 with 8 (a
step of which is 0.4 %)."""
MERGED_TOLERANCE = 0.05
"""The same with merged adapters: their sum is rounded together with the weight, and the kernels for
four bits compute with fewer than 24 significant bits at either precision."""

SERVED_TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Model types of the towers that vLLM supports in a LLaVA."""
IDENTITY_ARGUMENT = """--hf-overrides '{"projector_hidden_act": "torch.nn.modules.Identity"}'"""
"""Argument that vLLM needs for a linear projector, since it has no activation named `linear`."""

_QUESTION = Turn("user", f"{IMAGE_PLACEHOLDER}\nWhat does the image show?")
_RETRY = (
    "check the storage and start the same command again, the stage goes on from its last checkpoint"
)


@dataclass(frozen=True)
class Trained:
    """The trained model, as far as its export is compared with it."""

    weights: dict[str, torch.Tensor]
    """All weights on the CPU, by state-dict name."""
    batch: Batch
    """A batch of the stage's data."""
    logits: torch.Tensor
    """The logits that `sampled_logits` returned for the batch, float32."""
    is_merged: bool
    """Whether the logits were computed with adapters that are merged into `weights`."""
    precision: Precision
    attn_implementation: str
    kernels: Kernels
    """The kernels that computed the logits."""
    template: str
    """The name of the template in the config."""
    template_hash: str
    """The hash of the chat template that made the stage's tokens."""


def write_export(
    place: Location, model: Llava, weights: dict[str, torch.Tensor], processor: Processor
) -> None:
    """Upload the files of a model. They become an export once the manifest is written.

    Names and fields are those of the published LLaVA-1.5 checkpoints, which other engines read.

    Args:
        place: The folder to write; its content is deleted first.
        model: The model whose config and class are saved.
        weights: All its weights, by state-dict name.
        processor: The processor to save with it, including the chat template.
    """
    place.remove()
    with scratch_folder() as scratch:
        set_generation_tokens(model, processor)
        # Otherwise names depend on where the model was loaded from.
        model._weight_conversions = None
        model.save_pretrained(scratch, state_dict=_published_names(model, weights))
        processor.save_pretrained(scratch)
        # Only transformers 5 reads it from processor_config.json.
        processor.image_processor.save_pretrained(scratch)
        place.upload(scratch)


def _published_names(model: Llava, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights under the names that transformers converts to the published ones.

    Published towers of CLIP and SigLIP have the prefix `vision_model`, which transformers only adds
    on saving if they were loaded with it.
    """
    tower = "model.vision_tower."
    if model.config.vision_config.model_type not in SERVED_TOWERS:
        return weights
    return {name.replace(tower, f"{tower}vision_model.", 1): w for name, w in weights.items()}


def serving_note(place: Location) -> str | None:
    """Return what vLLM needs to serve an export, or why it cannot; None if it needs nothing."""
    config = (place / "config.json").read_json()
    tower = config["vision_config"]["model_type"]
    if tower not in SERVED_TOWERS:
        return f"vLLM cannot serve it: it knows no tower of the kind {tower} in a LLaVA"
    if config["projector_hidden_act"] == "linear":
        return f"vLLM serves its linear projector with: {IDENTITY_ARGUMENT}"
    return None


def check_export(place: Location, trained: Trained, device: torch.device) -> float:
    """Load an export from storage with plain transformers and compare it with the trained model.

    This compares every tensor, bit for bit; the logits of a batch of the stage; the chat template;
    and the tokens of a question with an image. It holds the weights twice: the trained ones on the
    CPU, the loaded ones on `device`. This must be the device that trained, since devices of
    different kinds round differently, so the caller must free the engine first.

    Args:
        device: The device that trained it.

    Returns:
        The largest difference of two logits, relative to the largest logit.

    Raises:
        CheckpointError: The export cannot be loaded, or differs from the trained model.
    """
    with scratch_folder() as scratch:
        folder = place.download(scratch)
        model, processor = _load(folder, trained.precision, trained.attn_implementation)
    use_kernels(model, trained.kernels, device)  # because other kernels round differently
    _check_processor(place, processor, trained)
    loaded = model.state_dict()
    different = [
        name
        for name, weight in trained.weights.items()
        if name not in loaded or not torch.equal(loaded[name], weight)
    ]
    logits = sampled_logits(model.to(device).eval(), trained.batch.to(device))
    largest = trained.logits.abs().max()
    difference = float((logits - trained.logits).abs().max() / largest)
    tolerance = MERGED_TOLERANCE if trained.is_merged else TOLERANCES[trained.precision]
    if different or not difference <= tolerance:
        names = ", ".join(different[:3]) + (", ..." if len(different) > 3 else "")
        raise CheckpointError(
            f"{place}: what was written is not what was trained: {len(different)} tensors differ"
            f"{f' ({names})' if different else ''}, logits by {difference:.2g} of the largest, "
            f"where {trained.precision} allows {tolerance:g}; {_RETRY}"
        )
    return difference


def copy_export(source: Location, target: Location) -> None:
    """Copy a complete export after plain transformers has loaded its model and processor.

    Raises:
        CheckpointError: The export is incomplete or cannot be loaded, or the target is not empty.
    """
    if target.children():
        raise CheckpointError(f"{target}: is not empty; name a new folder")
    folder = fetch_export(source)
    _load(folder, "bf16", "sdpa")
    try:
        target.upload(folder)
    except BaseException:  # a full disk, Ctrl-C: the same command may be started again
        with suppress(StorageError):
            target.remove()
        raise


def fetch_export(place: Location) -> Path:
    """Fetch a complete export, once for all processes of this machine.

    Returns:
        The local folder.

    Raises:
        CheckpointError: There is no complete export.
    """
    if find(ExportManifest, place) is None:
        check_no_export_below(place)
        raise CheckpointError(
            f"{place}: no export there ({MANIFEST} is missing); train the stage that makes it first"
        )
    return Path(fetch_once(str(place)))


def check_no_export_below(place: Location) -> None:
    """Refuse the folder of a run or a stage in place of an export. Raises: CheckpointError."""
    stages = place / "stages"
    folders = [place, *(stages / name for name in stages.children())]
    below = [each / "export" for each in folders if find(ExportManifest, each / "export")]
    if below:
        raise CheckpointError(f"{place}: is no export; name one: {', '.join(map(str, below))}")


def _load(folder: Path, precision: Precision, attn_implementation: str) -> tuple[Llava, Processor]:
    """Load model and processor with nothing but `from_pretrained`.

    Raises:
        CheckpointError: One of them cannot be loaded.
    """
    model = load_model(folder, precision, attn_implementation)
    try:
        return model, load_processor(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: its processor cannot be loaded: {str(error).strip().splitlines()[0]}; "
            f"{_RETRY}"
        ) from error


def _check_processor(place: Location, processor: Processor, trained: Trained) -> None:
    if not processor.chat_template:
        raise CheckpointError(f"{place}: has no chat template, so it cannot be prompted; {_RETRY}")
    template, tokenizer = get_template(trained.template), processor.tokenizer
    found = template_hash(template, tokenizer)
    if found != trained.template_hash:
        raise CheckpointError(
            f"{place}: template_hash={found}: the stage was trained with {trained.template_hash}; "
            "prepare its datasets again with the current template, or restore the former one"
        )
    tiles = tiling(processor)
    size = (tiles.tile_size, tiles.tile_size)
    expected = encode_prompt(
        [_QUESTION], template=template, tokenizer=tokenizer, num_image_tokens=tiles.num_tokens(size)
    )
    if template.name == TOKENIZER:
        # The processor may write another date, and final spaces that belong to the answer.
        is_same_template = processor.chat_template == tokenizer.chat_template
        text = own_template(tokenizer).label([_QUESTION], prompt=True).words
    else:
        is_same_template = True
        message = {"role": _QUESTION.role, "content": _QUESTION.text}
        text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        text = write_out_first_spaces(flatten([Segment(text, False)]), tokenizer).words
    image = np.zeros((*size, 3), dtype=np.uint8)
    ids = processor(text=text, images=image, add_special_tokens=False)["input_ids"][0]
    if list(ids) != expected or not is_same_template:
        raise CheckpointError(
            f"{place}: its processor makes {len(ids)} tokens of {_QUESTION.text!r}, which differ "
            f"from the {len(expected)} tokens of training; {_RETRY}"
        )
