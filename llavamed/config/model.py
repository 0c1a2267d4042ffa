"""The `model` section: the network and where its weights come from."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.section import Count, Section, added_later

ModelPart = Literal["vision_tower", "projector", "language_model"]
TemplateName = Literal[
    "vicuna_v1",
    "mistral_instruct",
    "llava_med_v0",
    "llava_med_vicuna_v1_1",
    "llama_2",
    "plain",
    "tokenizer",
]
Thinking = Literal["train", "mask", "leave_out"]
TOWER_TYPES = (
    "clip_vision_model",
    "siglip_vision_model",
    "vit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
)
"""Image encoders by their `model_type`; `processor.tower` knows the tokens of each."""
_VARYING = "it makes a different number of tokens from each image, and LLaVA needs the same for all"
_HALVING = "it joins patches from layer to layer, so its hidden states have no token for each patch"
_WHOLE = "it is a whole model with a text encoder"
UNFIT_TOWERS = {
    "siglip2_vision_model": f"{_VARYING}; a SigLIP 2 of a fixed size is a siglip_vision_model",
    "siglip2": f"{_VARYING}; a SigLIP 2 of a fixed size is a siglip_vision_model",
    "qwen2_5_vl_vision": _VARYING,
    "qwen3_vl_vision": _VARYING,
    "pixtral": _VARYING,
    "swin": _HALVING,
    "swinv2": _HALVING,
    "convnext": _HALVING,
    "convnextv2": _HALVING,
    "dinov3_convnext": _HALVING,
    "clip": f"{_WHOLE}; its image encoder is a clip_vision_model",
    "siglip": f"{_WHOLE}; its image encoder is a siglip_vision_model",
}
"""Why image encoders that users ask for do not fit into a LLaVA, by their `model_type`."""


def tower_problem(model_type: str) -> str:
    """Return why an image encoder cannot be used, and which can."""
    why = UNFIT_TOWERS.get(model_type, "is not a known image encoder")
    return f"{why}; use one of: {', '.join(TOWER_TYPES)}"


Edge = Annotated[int, Field(ge=1, le=2**14)]


class Pretrained(Section):
    """An image encoder or a language model: published weights, or a shape with random weights."""

    weights: str | None = None
    """Path, URI or hub name of the weights; for a language model also of a GGUF file, whose name
    ends in `.gguf`. By default the shape in `config` gets random weights."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Hugging Face config fields, with `model_type`. Together with `weights` they only declare the
    shape, so that `plan` needs no network, and are compared with the weights when these are
    loaded."""

    @model_validator(mode="after")
    def _has_a_shape(self) -> Self:
        if self.weights is None and "model_type" not in self.config:
            raise ValueError(
                "weights=null needs config.model_type: random weights need a shape; "
                "name the weights, or give config: {model_type: ...}"
            )
        return self


class VisionTower(Pretrained):
    """An image encoder, at its own image size or another."""

    image_size: Count | None = added_later(None)
    """Width and height of an image, in pixels. By default that of the weights or of `config`. At
    another size the position embeddings of the weights are resampled bicubically."""


class Model(Section):
    """The network: LLaVA made of a tower, a projector and a language model, or loaded whole."""

    weights: str | None = None
    """Path, URI or hub name of a whole LLaVA to start from, instead of the parts below. One that
    LLaVA's own trainer has saved is converted when it is loaded."""
    vision_tower: VisionTower | None = None
    """The image encoder: CLIP, SigLIP, DINOv2, DINOv3 or ViT. One that open_clip has saved, such as
    that of BiomedCLIP, is converted when it is loaded."""
    language_model: Pretrained | None = None
    """The language model, a causal one."""
    tokenizer: str | None = None
    """Path, URI or hub name of the tokenizer. By default that of the weights; for a language model
    with random weights, one with `vocab_size` entries is trained on the text of the datasets."""
    projector: Literal["linear", "mlp2x_gelu"] = "mlp2x_gelu"
    """Map from image features to token embeddings: one linear layer, or two with a GELU between
    them."""
    vision_feature_layer: Annotated[int, Field(lt=0, ge=-1000)] = -2
    """Index of the tower's hidden state to project, counted from the last layer."""
    template: TemplateName = "vicuna_v1"
    """Chat template: one of ours, or `tokenizer` for the template that comes with the tokenizer."""
    thinking: Thinking = added_later("train")
    """What happens to the thinking part of an answer, `<think>...</think>`. A tokenizer's template
    may write one even for an answer without it. `train` trains it like the rest, `mask` keeps it as
    context, `leave_out` removes it from answers and prompts."""
    image_aspect_ratio: Literal["square", "pad"] = "square"
    """How an image becomes square: `square` does what the tower's own processor does, which crops
    the centre for CLIP and DINOv2 and stretches the image for SigLIP and ViT; `pad` adds borders
    first, so that nothing is cut off or stretched."""
    image_grid_pinpoints: Annotated[tuple[tuple[Edge, Edge], ...], Field(min_length=1)] | None = (
        added_later(None)
    )
    """Heights and widths in pixels, whole multiples of the tower's image size, to which images are
    enlarged before they are cut into tiles, as in LLaVA-NeXT (`anyres`); for example
    `[[336, 672], [672, 336], [672, 672]]`. Each image uses the size that shows most of it. By
    default an image is one tile."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention kernels, by their names in transformers. In training, `sdpa` attends within each
    sample of a pack separately."""

    @model_validator(mode="after")
    def _thinking_has_a_template(self) -> Self:
        if self.thinking != "train" and self.template != "tokenizer":
            raise ValueError(
                f"thinking={self.thinking}: only a tokenizer's own template writes thinking parts, "
                f"and template={self.template}; set template: tokenizer, or remove thinking"
            )
        return self

    @model_validator(mode="after")
    def _tower_is_known(self) -> Self:
        declared = self.vision_tower.config if self.vision_tower is not None else {}
        name = declared.get("model_type", TOWER_TYPES[0])
        if name not in TOWER_TYPES:
            raise ValueError(f"vision_tower.config.model_type={name}: {tower_problem(str(name))}")
        return self

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        if self.image_grid_pinpoints is None:
            return self
        if self.image_aspect_ratio != "square":
            raise ValueError(
                f"image_aspect_ratio={self.image_aspect_ratio}: has no effect with "
                "image_grid_pinpoints, where tiles keep the proportions of an image; set it to "
                "square, or remove the pinpoints"
            )
        if self.template == "llava_med_v0":
            raise ValueError(
                "template=llava_med_v0: counts the labels of LLaVA-Med v1.0, whose images are one "
                "tile each; use another template, or remove image_grid_pinpoints"
            )
        return self

    @model_validator(mode="after")
    def _whole_or_parts(self) -> Self:
        parts = {"vision_tower": self.vision_tower, "language_model": self.language_model}
        given = [name for name, part in parts.items() if part is not None]
        if self.weights is not None and given:
            raise ValueError(
                f"weights={self.weights}: a model is loaded whole or made of parts, never both; "
                f"remove it, or {' and '.join(given)}"
            )
        if self.weights is None and len(given) < len(parts):
            absent = next(name for name in parts if name not in given)
            raise ValueError(
                f"{absent}=null: a model is made of both vision_tower and language_model; set it, "
                "or set weights to load a model whole"
            )
        return self
