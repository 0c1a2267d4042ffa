"""Describe image encoders: the only place with facts about each kind.

To add a kind, add a case to `tower_of`. `llavamed.model.llava.check_forward` passes an image
through every tower before a run starts, and so finds a wrong fact.
"""

from dataclasses import dataclass
from typing import Any, Literal

from llavamed.config.model import tower_problem
from llavamed.errors import ConfigError

Strategy = Literal["default", "full"]
"""Hugging Face's terms: `default` drops the first token, `full` keeps all."""
Resizing = Literal["square", "stretch"]
"""How an image becomes a square: by cropping the centre, or by stretching."""
Statistics = tuple[float, float, float]

# Mean and standard deviation of the images of OpenAI's CLIP and of ImageNet.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)

UNUSED_WEIGHTS = ("pooler.", "head.", "embeddings.mask_token")
"""Prefixes of weights that no hidden state depends on; a published tower may lack them."""


@dataclass(frozen=True)
class Tower:
    """The shape of an image encoder."""

    image_size: int
    """Width and height of an image, in pixels."""
    patch_size: int
    """Width and height of the patch that becomes one token, in pixels."""
    num_layers: int
    """Transformer layers; there is one more hidden state."""
    num_prefix_tokens: int
    """Class token and registers, which precede the tokens of the patches."""
    resizing: Resizing
    """How its image processor makes a square."""
    mean: Statistics
    """Mean of the images it was trained on, by channel, for values from 0 to 1."""
    std: Statistics
    """Standard deviation of these images."""
    antialias: bool = False
    """Whether its authors smooth its position table before they resample it to fewer rows."""

    @property
    def num_tokens(self) -> int:
        """The number of tokens of one image in a hidden state."""
        return (self.image_size // self.patch_size) ** 2 + self.num_prefix_tokens

    @property
    def strategy(self) -> Strategy:
        """The tokens that LLaVA projects: all but the class token, if there is one."""
        return "default" if self.num_prefix_tokens else "full"

    def num_image_tokens(self, strategy: Strategy) -> int:
        """Return the number of tokens an image takes in the text."""
        return self.num_tokens - (strategy == "default")


def tower_of(vision: Any, key: str) -> Tower:
    """Return the facts of a tower from its Hugging Face config.

    Args:
        vision: The Hugging Face config.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: LLaVA cannot use a tower of this kind, or its images are not square.
    """
    resizing: Resizing
    match vision.model_type:
        case "clip_vision_model":
            num_prefix_tokens, resizing, mean, std = 1, "square", CLIP_MEAN, CLIP_STD
        case "siglip_vision_model":
            num_prefix_tokens, resizing, mean, std = 0, "stretch", _HALF, _HALF
        case "vit":
            num_prefix_tokens, resizing, mean, std = 1, "stretch", _HALF, _HALF
        case "dinov2":
            num_prefix_tokens, resizing, mean, std = 1, "square", IMAGENET_MEAN, IMAGENET_STD
        case "dinov2_with_registers":
            num_prefix_tokens = 1 + vision.num_register_tokens
            resizing, mean, std = "square", IMAGENET_MEAN, IMAGENET_STD
        case "dinov3_vit":
            num_prefix_tokens = 1 + vision.num_register_tokens
            resizing, mean, std = "stretch", IMAGENET_MEAN, IMAGENET_STD
        case other:
            raise ConfigError(f"{key}.model_type={other}: {tower_problem(other)}")
    return Tower(
        image_size=_edge(vision.image_size, f"{key}.image_size"),
        patch_size=_edge(vision.patch_size, f"{key}.patch_size"),
        num_layers=int(vision.num_hidden_layers),
        num_prefix_tokens=num_prefix_tokens,
        resizing=resizing,
        mean=mean,
        std=std,
        antialias=vision.model_type == "dinov2_with_registers",
    )


def check_feature_layer(layer: int | list[int], tower: Tower, key: str) -> None:
    """Raise ConfigError if the tower does not have these hidden states."""
    for number in [layer] if isinstance(layer, int) else layer:
        if not -tower.num_layers - 1 <= number <= tower.num_layers:
            raise ConfigError(
                f"{key}={number}: the tower has {tower.num_layers} layers, whose hidden states are "
                f"{-tower.num_layers - 1} to -1; choose one of these"
            )


def _edge(value: Any, key: str) -> int:
    """Return the edge of a square, which a config gives as a number or as a pair.

    Raises:
        ConfigError: The edges differ, or are not positive integers.
    """
    edges = {value} if isinstance(value, int) else set(value or ())
    if len(edges) != 1 or not all(isinstance(edge, int) and edge > 0 for edge in edges):
        raise ConfigError(f"{key}={value}: must be one length in pixels; only squares are used")
    return int(edges.pop())
