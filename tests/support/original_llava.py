"""A LLaVA in the form in which the original trainer saves one."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

from llavamed.config.run import RunConfig
from llavamed.model.llava import build_model
from tests.support.small_tokenizers import llama_like
from tests.support.training_setup import processor_of

NAMES = {
    r"model\.multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"model\.multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"model\.vision_tower\.": "model.vision_tower.vision_tower.vision_model.",
    r"model\.language_model\.": "model.",
}


def save_as_original(
    folder: Path,
    config: RunConfig,
    *,
    with_tower: bool = True,
    projector_file: bool = False,
    **fields: Any,
) -> LlavaForConditionalGeneration:
    """Save the model of a config as LLaVA's own trainer does, with a tower in a folder below."""
    model = build_model(config.model, processor_of(config), seed=3, precision="fp32")
    tokenizer = llama_like()
    folder.mkdir(exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.model.vision_tower.save_pretrained(folder / "tower")
    text = model.config.text_config.to_dict()
    text |= {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}
    text |= {"mm_vision_tower": "tower", "mm_hidden_size": 32, "use_mm_proj": True}
    text |= {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    text |= {"mm_vision_select_feature": "patch", "image_aspect_ratio": "pad"}
    (folder / "config.json").write_text(json.dumps(text | fields))
    named = {renamed(name): weight for name, weight in model.state_dict().items()}
    if not with_tower:
        named = {name: w for name, w in named.items() if "vision_tower" not in name}
    if projector_file:
        apart = {name: w for name, w in named.items() if "mm_projector" in name}
        torch.save(apart, folder / "mm_projector.bin")
        named = {name: w for name, w in named.items() if name not in apart}
    first = dict(list(named.items())[::2])
    parts = {"model-1.safetensors": first, "model-2.safetensors": named}
    parts["model-2.safetensors"] = {k: w for k, w in named.items() if k not in first}
    index = {name: file for file, part in parts.items() for name in part}
    for file, part in parts.items():
        save_file({name: weight.clone() for name, weight in part.items()}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return model


def renamed(name: str) -> str:
    for pattern, new in NAMES.items():
        name = re.sub(f"^{pattern}", new, name)
    return name
