"""Read image encoders of open_clip, such as that of BiomedCLIP, without open_clip and timm.

open_clip builds an image encoder itself, which is a CLIP of transformers, or takes one from timm,
which is a ViT of transformers. The weights are the same; only their names differ.
"""

import re
from pathlib import Path
from typing import Any

from transformers import (
    AutoImageProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    SiglipImageProcessorPil,
    ViTConfig,
)

from llavamed.errors import ConfigError
from llavamed.processor.forms.form import (
    Form,
    Rules,
    Tensors,
    counterpart,
    find_file,
    read_tensors,
    rename,
)
from llavamed.processor.tower import CLIP_MEAN, CLIP_STD

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
_TIMM_NAME = re.compile(r"vit_(tiny|small|base|large|huge)_patch(\d+)_(\d+)")
_TIMM_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""Width, layers and heads of timm's plain vision transformers."""
_HEAD_WIDTH = 64
_ACTIVATIONS = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}
"""Activations by open_clip's `approximate`."""
_FILTERS = {"bilinear": 2, "bicubic": 3}
_RESIZE_MODES = {"shortest": "square", "squash": "stretch"}

_OF_TIMM: Rules = {
    r"visual\.trunk\.cls_token": "embeddings.cls_token",
    r"visual\.trunk\.pos_embed": "embeddings.position_embeddings",
    r"visual\.trunk\.patch_embed\.proj\.(.+)": r"embeddings.patch_embeddings.projection.\1",
    r"visual\.trunk\.blocks\.(\d+)\.norm1\.(.+)": r"layers.\1.layernorm_before.\2",
    r"visual\.trunk\.blocks\.(\d+)\.norm2\.(.+)": r"layers.\1.layernorm_after.\2",
    r"visual\.trunk\.blocks\.(\d+)\.attn\.qkv\.(.+)": (
        r"layers.\1.attention.q_proj.\2",
        r"layers.\1.attention.k_proj.\2",
        r"layers.\1.attention.v_proj.\2",
    ),
    r"visual\.trunk\.blocks\.(\d+)\.attn\.proj\.(.+)": r"layers.\1.attention.o_proj.\2",
    r"visual\.trunk\.blocks\.(\d+)\.mlp\.(fc[12]\..+)": r"layers.\1.mlp.\2",
    r"visual\.trunk\.norm\.(.+)": r"layernorm.\1",
}
_OF_CLIP: Rules = {
    r"visual\.class_embedding": "embeddings.class_embedding",
    r"visual\.positional_embedding": "embeddings.position_embedding.weight",
    r"visual\.conv1\.weight": "embeddings.patch_embedding.weight",
    r"visual\.ln_pre\.(.+)": r"pre_layrnorm.\1",
    r"visual\.ln_post\.(.+)": r"post_layernorm.\1",
    r"visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)": r"encoder.layers.\1.layer_norm\2.\3",
    r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(.+)": (
        r"encoder.layers.\1.self_attn.q_proj.\2",
        r"encoder.layers.\1.self_attn.k_proj.\2",
        r"encoder.layers.\1.self_attn.v_proj.\2",
    ),
    r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)": (
        r"encoder.layers.\1.self_attn.out_proj.\2"
    ),
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)": r"encoder.layers.\1.mlp.fc1.\2",
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)": r"encoder.layers.\1.mlp.fc2.\2",
}
_UNUSED = r"(?!visual\.).*|visual\.(proj|((trunk\.)?(head|attn_pool)|trunk\.fc_norm)\..+)"
"""The text encoder, and what comes after the hidden states."""


def tower_form(source: str, settings: dict[str, Any]) -> Form:
    """Return the image encoder of a model that open_clip saved.

    Args:
        source: Its folder, or its name on the hub.
        settings: The content of `open_clip_config.json`.

    Raises:
        ConfigError: The image encoder is of a kind that has no tokens for LLaVA, or it or its
            images are not known.
    """
    vision = dict(settings["model_cfg"]["vision_cfg"])
    key = f"{source}: vision_cfg"
    if "timm_model_name" in vision:
        config, rules = _timm_config(vision, key), _OF_TIMM
    else:
        config, rules = _clip_config(vision, settings["model_cfg"], key), _OF_CLIP
    images = settings.get("preprocess_cfg", {})
    how = {
        "image_mean": list(images.get("mean", CLIP_MEAN)),
        "image_std": list(images.get("std", CLIP_STD)),
        "resample": counterpart(_FILTERS, images, "interpolation", default="bicubic", where=source),
    }
    resizing = counterpart(_RESIZE_MODES, images, "resize_mode", default="shortest", where=source)
    square = {"height": config.image_size, "width": config.image_size}

    def make_image_processor() -> Any:
        if resizing == "stretch":
            return SiglipImageProcessorPil(size=square, **how)
        edges = {"shortest_edge": config.image_size}
        return CLIPImageProcessorPil(size=edges, crop_size=square, **how)

    return Form(
        config,
        {AutoImageProcessor: make_image_processor},
        lambda: rename(read_all(source), rules, unused=_UNUSED, source=source),
    )


def read_all(source: str) -> Tensors:
    """Return all tensors of a model that open_clip saved, by its own names. Raises: ConfigError."""
    file = next((file for name in WEIGHTS if (file := find_file(source, name))), None)
    if file is None:
        raise ConfigError(
            f"{source}: holds {CONFIG} without weights; add one of {', '.join(WEIGHTS)}"
        )
    return read_tensors(Path(file))


def _timm_config(vision: dict[str, Any], key: str) -> ViTConfig:
    name = vision["timm_model_name"]
    match = _TIMM_NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{key}.timm_model_name={name}: is not a plain vision transformer, which are "
            f"vit_SIZE_patchN_PIXELS with SIZE one of {', '.join(_TIMM_SIZES)}; use a model with "
            "one of these, or save its image encoder in transformers' form"
        )
    width, layers, heads = _TIMM_SIZES[match[1]]
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=int(match[2]),
        image_size=int(vision.get("image_size") or match[3]),
        layer_norm_eps=1e-6,
    )


def _clip_config(vision: dict[str, Any], model: dict[str, Any], key: str) -> CLIPVisionConfig:
    layers, width = vision["layers"], vision["width"]
    if not isinstance(layers, int):
        raise ConfigError(
            f"{key}.layers={layers}: is a convolutional network, which has no hidden states with "
            "a token for each patch; use a model with a vision transformer"
        )
    activation = counterpart(
        _ACTIVATIONS, vision.get("act_kwargs") or {}, "approximate", default="none", where=key
    )
    return CLIPVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // vision.get("head_width", _HEAD_WIDTH),
        intermediate_size=int(width * vision.get("mlp_ratio", 4.0)),
        patch_size=vision["patch_size"],
        image_size=vision["image_size"],
        hidden_act="quick_gelu" if model.get("quick_gelu") else activation,
        layer_norm_eps=(vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        projection_dim=model["embed_dim"],
    )
