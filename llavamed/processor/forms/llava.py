"""Read LLaVAs that the original trainer saved, such as LLaVA-1.5 and LLaVA-Med v1.5.

Such a folder is a language model with a projector among its weights. Its image encoder is named in
its config, or is among its weights too if it was trained. Its tokenizer has no image token.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    SiglipImageProcessorPil,
)

from llavamed.errors import ConfigError
from llavamed.processor.forms.form import (
    Form,
    Tensors,
    counterpart,
    find_file,
    read_tensors,
    rename,
)
from llavamed.processor.tower import Tower, tower_of
from llavamed.processor.turns import IMAGE_PLACEHOLDER

TOWER = "mm_vision_tower"
_LANGUAGE_MODELS = {"llava": "llama", "llava_qwen": "qwen2", "llava_llama": "llama"}
_PROJECTORS = {"linear": "linear", "mlp2x_gelu": "gelu"}
_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_IMAGE_PROCESSORS = {
    "pad": lambda edges, square, how: LlavaImageProcessorPil(
        size=edges, crop_size=square, do_pad=True, **how
    ),
    "square": lambda edges, square, how: CLIPImageProcessorPil(size=edges, crop_size=square, **how),
    "stretch": lambda _, square, how: SiglipImageProcessorPil(size=square, **how),
    "anyres": lambda edges, square, how: LlavaNextImageProcessorPil(
        size=edges, crop_size=square, **how
    ),
}
TILES = "anyres"
"""The `image_aspect_ratio` of a LLaVA that cuts images into tiles, as LLaVA-NeXT does."""
_RESIZINGS = {"pad": "pad", "square": None, TILES: TILES}
"""How an image becomes square, by `image_aspect_ratio`; None for as the tower wants it."""
_MERGES = {"spatial_unpad": None}
"""How transformers' LLaVA-NeXT joins the features of tiles, by `mm_patch_merge_type`."""
_OWN_FIELDS = re.compile(
    r"(un)?(mm|tune|freeze|use_mm|image|tokenizer|auto_map|architectures|model_type|_name_or_path|"
    r"vision|s2|transformers_version)(_.*)?"
)
"""Fields of the config that are not those of the language model."""
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_PROJECTOR = "mm_projector.bin"
_ROW_MULTIPLE = 64

_NAMES = {
    r"model\.mm_projector\.(?:0\.)?(weight|bias)": r"model.multi_modal_projector.linear_1.\1",
    r"model\.mm_projector\.2\.(weight|bias)": r"model.multi_modal_projector.linear_2.\1",
    r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.+)": r"model.vision_tower.\1",
    r"model\.((?:embed_tokens|layers|norm)\..+)": r"model.language_model.\1",
    r"lm_head\.weight": "lm_head.weight",
}
_NEWLINE = r"model\.image_newline"
"""The end of a row of tiles."""
_counterpart = partial(counterpart, rule="transformers' LLaVA has no such part")


def llava_form(source: str, settings: dict[str, Any]) -> Form:
    """Return a LLaVA that the original trainer saved.

    Args:
        source: Its folder, or its name on the hub.
        settings: The content of its `config.json`.

    Raises:
        ConfigError: It has parts that a LLaVA of transformers lacks, or its image encoder cannot be
            found.
    """
    if settings.get("mm_use_im_start_end"):
        raise ConfigError(
            f"{source}: mm_use_im_start_end=true: was trained with a token before and one after "
            "each image, which no template here writes; use a model without them, such as "
            "LLaVA-1.5 or LLaVA-Med v1.5"
        )
    vision, tower = _vision(source, settings)
    tokenizer = AutoTokenizer.from_pretrained(
        source, trust_remote_code=False, extra_special_tokens={"image_token": IMAGE_PLACEHOLDER}
    )
    rows = max(settings["vocab_size"], len(tokenizer))
    text = _text_config(source, settings, -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE)
    resizing = _counterpart(
        _RESIZINGS, settings, "image_aspect_ratio", default="square", where=source
    )
    tiles = _tiles(source, settings) if resizing == TILES else {}
    config = (LlavaNextConfig if tiles else LlavaConfig)(
        vision_config=vision,
        text_config=text,
        projector_hidden_act=_counterpart(
            _PROJECTORS, settings, "mm_projector_type", default="linear", where=source
        ),
        vision_feature_layer=settings.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=_counterpart(
            _STRATEGIES, settings, "mm_vision_select_feature", default="patch", where=source
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER),
        tie_word_embeddings=text.tie_word_embeddings,
        **tiles,
    )

    def make_images() -> Any:
        return _image_processor(resizing, tower_of(vision, f"{source}: {TOWER}"), tiles)

    def make_processor() -> LlavaProcessor | LlavaNextProcessor:
        facts = tower_of(vision, f"{source}: {TOWER}")
        return (LlavaNextProcessor if tiles else LlavaProcessor)(
            image_processor=make_images(),
            tokenizer=tokenizer,
            patch_size=facts.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            num_additional_image_tokens=facts.num_prefix_tokens,
        )

    return Form(
        config,
        {AutoProcessor: make_processor, AutoImageProcessor: make_images},
        lambda: _read_weights(source, config, tower),
    )


def _vision(source: str, settings: dict[str, Any]) -> tuple[Any, str]:
    """Return the config of the image encoder, and the folder or hub name that it is from."""
    tower = settings[TOWER]
    if (inside := Path(source) / tower).is_dir():
        tower = str(inside)
    try:
        config = AutoConfig.from_pretrained(tower, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{source}: {TOWER}={settings[TOWER]}: cannot be loaded: {str(error).splitlines()[0]}; "
            f"put the image encoder into a folder below it, and name this folder as {TOWER} in its "
            "config.json"
        ) from error
    return getattr(config, "vision_config", config), tower


def _text_config(source: str, settings: dict[str, Any], rows: int) -> Any:
    kind = settings["model_type"]
    name = _LANGUAGE_MODELS.get(kind, kind.removeprefix("llava_"))
    if name not in CONFIG_MAPPING:
        raise ConfigError(
            f"{source}: model_type={kind}: its language model is of a kind that transformers does "
            "not know; correct model_type in its config.json to llava_llama, llava_mistral or "
            "llava_qwen"
        )
    fields = {key: value for key, value in settings.items() if not _OWN_FIELDS.fullmatch(key)}
    return AutoConfig.for_model(name, **fields | {"vocab_size": rows})


def _tiles(source: str, settings: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Return the pinpoints, as the config of a LLaVA-NeXT has them, of a model that cuts tiles.

    Raises:
        ConfigError: It joins tiles in a way that a LLaVA-NeXT does not, or names no pinpoints.
    """
    _counterpart(_MERGES, settings, "mm_patch_merge_type", default="flat", where=source)
    pinpoints = settings.get("image_grid_pinpoints")
    if not pinpoints or not isinstance(pinpoints, list):
        raise ConfigError(
            f"{source}: image_grid_pinpoints={pinpoints}: must be a list of widths and heights "
            "with image_aspect_ratio=anyres; correct its config.json"
        )
    return {"image_grid_pinpoints": [[high, wide] for wide, high in pinpoints]}


def _image_processor(resizing: str | None, tower: Tower, tiles: dict[str, list[list[int]]]) -> Any:
    make = _IMAGE_PROCESSORS[resizing or tower.resizing]
    size = tower.image_size
    statistics = {"image_mean": list(tower.mean), "image_std": list(tower.std)}
    return make({"shortest_edge": size}, {"height": size, "width": size}, statistics | tiles)


def _read_weights(source: str, config: LlavaConfig | LlavaNextConfig, tower: str) -> Tensors:
    """Return the weights by the names of transformers, with those of the named image encoder."""
    found: Tensors = {}
    names = _NAMES
    if isinstance(config, LlavaNextConfig):
        names = names | {_NEWLINE: "model.image_newline"}
    for file in _weight_files(source):
        found |= rename(read_tensors(file), names, unused=_NEWLINE, source=source)
    if not any(name.startswith("model.vision_tower.") for name in found):
        encoder = MODEL_MAPPING[type(config.vision_config)].from_pretrained(
            tower, trust_remote_code=False
        )
        found |= {f"model.vision_tower.{name}": w for name, w in encoder.state_dict().items()}
    if config.projector_hidden_act == "linear":
        width = config.text_config.hidden_size
        like = found.get("model.multi_modal_projector.linear_1.weight", torch.empty(0))
        found["model.multi_modal_projector.linear_2.weight"] = torch.eye(width, dtype=like.dtype)
        found["model.multi_modal_projector.linear_2.bias"] = torch.zeros(width, dtype=like.dtype)
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name in found:
            found[name] = _with_rows(found[name], config.text_config.vocab_size)
    return found


def _weight_files(source: str) -> list[Path]:
    """Return the files with weights, later ones to be preferred.

    The projector may be in a file of its own. If the weights have a projector too, that file is
    what an earlier training has left.
    """
    index = next((file for name in _INDEXES if (file := find_file(source, name))), None)
    names = list(_WHOLE)
    if index is not None:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({*shards})
    files = [find_file(source, name) for name in (_PROJECTOR, *names)]
    return [file for file in files if file is not None]


def _with_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a table with new rows for the image token, each the mean of the others."""
    missing = rows - weight.shape[0]
    if missing <= 0:
        return weight
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(missing, -1)])
