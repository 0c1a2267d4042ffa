"""BiomedCLIP and its kind, as open_clip saves them: a ViT of timm and a BERT next to it.

Neither open_clip nor timm is needed: both encoders are models of transformers, under other names.
Source: open_clip 3.3, `TimmModel`, `HFTextEncoder` and `CustomTextCLIP`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    VisionTextDualEncoderProcessor,
)

from llavamed.errors import ConfigError
from llavamed.processor.forms.form import Tensors, read_json
from llavamed.processor.forms.open_clip import CONFIG, read_all, tower_form

_POOLER, _PROJECTION = "cls_last_hidden_state_pooler", "mlp"
_NO_WEIGHT = "embeddings.position_ids"
"""A table of 0, 1, 2, ... that older versions of transformers save with BERT's weights."""


@dataclass(frozen=True)
class Compared:
    """The model's scores of pictures and texts."""

    logits_per_image: torch.Tensor
    """Tensor of shape [pictures, texts]."""


class OpenClip(torch.nn.Module):
    """Two encoders whose class tokens are mapped into one space."""

    def __init__(self, vision: Any, text: Any, embed_dim: int) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        width = text.config.hidden_size
        between = (width + embed_dim) // 2
        self.vision_projection = torch.nn.Linear(vision.config.hidden_size, embed_dim, bias=False)
        self.text_projection = torch.nn.Sequential(
            torch.nn.Linear(width, between, bias=False),
            torch.nn.GELU(),
            torch.nn.Linear(between, embed_dim, bias=False),
        )
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(
        self,
        *,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        **_: Any,
    ) -> Compared:
        """Compare pictures with texts.

        Args:
            pixel_values: Pictures, a tensor of shape [pictures, 3, size, size].
            input_ids: Texts, a tensor of shape [texts, tokens].
            attention_mask: 1 at the tokens of a text and 0 at its padding, of the same shape.
        """
        pictures = self.vision(pixel_values).last_hidden_state[:, 0]
        texts = self.text(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        pictures = normalize(self.vision_projection(pictures), dim=-1)
        texts = normalize(self.text_projection(texts), dim=-1)
        return Compared(self.logit_scale.exp() * pictures @ texts.T)


def load_open_clip(source: str, revision: str | None = None) -> tuple[OpenClip, Any] | None:
    """Return a model that open_clip saved with its processor, or None for one of another form.

    Args:
        source: Its folder, or its name on the hub.
        revision: The revision that was asked for, which only models of transformers may have.

    Raises:
        ConfigError: It is of another kind than BiomedCLIP, lacks weights, or was asked for by a
            revision.
        OSError: Its tokenizer or the config of its text encoder is not there.
    """
    settings = read_json(source, CONFIG)
    if settings is None or read_json(source, "config.json") is not None:
        return None
    if revision is not None:
        raise ConfigError(
            f"corpus.select.classifier.revision={revision}: is for a model in the form of "
            f"transformers, and {source} is one of open_clip; leave it out, or download that "
            "revision and name its folder"
        )
    text = settings["model_cfg"].get("text_cfg", {})
    kinds = (text.get("hf_pooler_type"), text.get("hf_proj_type"))
    if "hf_model_name" not in text or kinds != (_POOLER, _PROJECTION):
        raise ConfigError(
            f"corpus.select.classifier.weights={source}: its text encoder is not one of "
            f"transformers with hf_pooler_type={_POOLER} and hf_proj_type={_PROJECTION}, as "
            "BiomedCLIP's is; give BiomedCLIP, or a CLIP in the form of transformers"
        )
    form = tower_form(source, settings)
    text_config = AutoConfig.from_pretrained(text["hf_model_name"], trust_remote_code=False)
    model = OpenClip(
        AutoModel.from_config(form.config, add_pooling_layer=False),
        AutoModel.from_config(text_config, add_pooling_layer=False),
        settings["model_cfg"]["embed_dim"],
    )
    _fill(model, source, form.read_weights())
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=text["context_length"])
    images = form.processors[AutoImageProcessor]()
    return model, VisionTextDualEncoderProcessor(images, tokenizer)


def _fill(model: OpenClip, source: str, vision: Tensors) -> None:
    """Load the weights, all of them. Raises: ConfigError."""
    whole = read_all(source)
    named = {f"vision.{name}": weight for name, weight in vision.items()}
    prefixes = {
        "text.transformer.": "text.",
        "text.proj.": "text_projection.",
        "visual.head.proj.": "vision_projection.",
        "logit_scale": "logit_scale",
    }
    for old, new in prefixes.items():
        named |= {
            f"{new}{name.removeprefix(old)}": weight
            for name, weight in whole.items()
            if name.startswith(old) and not name.endswith(_NO_WEIGHT)
        }
    missing, unknown = model.load_state_dict(named, strict=False)
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"holds {unknown[0]}, which is not known"
        raise ConfigError(
            f"corpus.select.classifier.weights={source}: {what} ({len(missing) + len(unknown)} "
            "such weights); give a complete model"
        )
