"""The `model` section: the network and where its weights come from."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.section import Section

ModelPart = Literal["vision_tower", "projector", "language_model"]


class Pretrained(Section):
    """A tower or a language model: published weights, or a shape to fill at random."""

    weights: str | None = None
    """Path or hub name of the weights; none: random weights of the shape in `config`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Hugging Face config fields with `model_type`. With `weights` they only declare the shape, for
    planning without a network, and are checked against the weights when those load."""

    @model_validator(mode="after")
    def _has_a_shape(self) -> Self:
        if self.weights is None and "model_type" not in self.config:
            raise ValueError(
                "weights=null needs config.model_type: random weights need a shape; "
                "name the weights, or give config: {model_type: ...}"
            )
        return self


class Model(Section):
    """The network: LLaVA made of a tower, a projector and a language model, or loaded whole."""

    weights: str | None = None
    """Path or hub name of a whole LLaVA to start from; then the parts below stay empty."""
    vision_tower: Pretrained | None = None
    """A CLIP-like image encoder."""
    language_model: Pretrained | None = None
    """A causal language model."""
    tokenizer: str | None = None
    """Path or hub name; none: the weights' own, or for a random language model one trained on the
    text of the datasets, with as many entries as its `vocab_size`."""
    projector: Literal["linear", "mlp2x_gelu"] = "mlp2x_gelu"
    """From image features to token embeddings: one linear layer, or two with GELU between."""
    vision_feature_layer: Annotated[int, Field(lt=0)] = -2
    """Which hidden state of the tower is projected, counted from its end."""
    template: str = "vicuna_v1"
    """Chat template: one of ours, or `tokenizer` for the tokenizer's own."""
    image_aspect_ratio: Literal["square", "pad"] = "square"
    """`square` resizes the short edge and crops the centre; `pad` pads to a square first."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention kernels, by transformers' names."""

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
