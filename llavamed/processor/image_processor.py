"""Make the image processor of a model, and say what an image processor does to an image."""

from typing import Any, Literal

from transformers import (
    AutoImageProcessor,
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    SiglipImageProcessorPil,
)

from llavamed.config.model import Model
from llavamed.errors import ConfigError
from llavamed.processor.forms.find import find_form
from llavamed.processor.forms.form import find_file
from llavamed.processor.images import ImageSettings
from llavamed.processor.pretrained import load_pretrained, part_config
from llavamed.processor.tiles import check_pinpoints
from llavamed.processor.tower import Tower, tower_of
from llavamed.storage.fetch import fetch_once

_IMAGE_FILES = ("processor_config.json", "preprocessor_config.json")
"""Files that an image processor is in, by the version of transformers that wrote it."""
_RESAMPLING: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Filters that `llavamed.processor.images` supports, by the numbers Pillow gives them."""


def make_image_processor(model: Model, tower: Tower) -> Any:
    """Return the image processor of a tower, which does as that of its weights if it has any."""
    assert model.vision_tower is not None
    size, resizing = tower.image_size, tower.resizing
    edges, square = {"shortest_edge": size}, {"height": size, "width": size}
    settings: dict[str, Any] = {"image_mean": list(tower.mean), "image_std": list(tower.std)}
    if model.vision_tower.weights is not None:
        source = model.vision_tower.weights
        found = load_pretrained(
            AutoImageProcessor, source, "model.vision_tower.weights", backend="pil"
        )
        _check_scale(found.to_dict())
        settings = {
            "image_mean": list(found.image_mean),
            "image_std": list(found.image_std),
            "resample": found.resample,
        }
        crops = getattr(found, "do_center_crop", False) or "shortest_edge" in dict(found.size)
        resizing = "square" if crops else "stretch"
    if model.image_grid_pinpoints is not None:
        check_pinpoints(model.image_grid_pinpoints, tower, "model.image_grid_pinpoints")
        pinpoints = [list(each) for each in model.image_grid_pinpoints]
        return LlavaNextImageProcessorPil(
            size=edges, crop_size=square, image_grid_pinpoints=pinpoints, **settings
        )
    if model.image_aspect_ratio == "pad":
        return LlavaImageProcessorPil(size=edges, crop_size=square, do_pad=True, **settings)
    if resizing == "stretch":
        return SiglipImageProcessorPil(size=square, **settings)
    return CLIPImageProcessorPil(size=edges, crop_size=square, **settings)


def settings_of(images: Any, backend: Literal["exact", "fast"] = "exact") -> ImageSettings:
    """Return what an image processor does to an image, as settings of `llavamed.processor.images`.

    Raises:
        ConfigError: It does something that `llavamed.processor.images` does not support.
    """
    facts = images.to_dict()
    size = dict(facts.get("size") or {})
    crop = dict(facts.get("crop_size") or {}) if facts.get("do_center_crop") else {}
    edges = {*size.values(), *crop.values()}
    stretches = size.keys() == {"height", "width"}
    if len(edges) != 1 or not (stretches or (size.keys() == {"shortest_edge"} and crop)):
        raise ConfigError(
            f"image_processor.size={size}, crop_size={crop or None}: must make a square of one "
            "size, by stretching (height, width) or by cropping the centre (shortest_edge and "
            "crop_size); correct preprocessor_config.json, or use another model"
        )
    _check_scale(facts)
    if facts["resample"] not in _RESAMPLING:
        raise ConfigError(
            f"image_processor.resample={facts['resample']}: must be 2 (bilinear) or 3 (bicubic); "
            "correct it in preprocessor_config.json"
        )
    pinpoints = tuple((high, wide) for high, wide in facts.get("image_grid_pinpoints") or ())
    aspect_ratio: Literal["square", "pad", "stretch"] = "stretch" if stretches else "square"
    if pinpoints:  # the whole image is stretched to a tile
        aspect_ratio = "stretch"
    elif facts.get("do_pad"):
        aspect_ratio = "pad"
    return ImageSettings(
        size=int(edges.pop()),
        aspect_ratio=aspect_ratio,
        mean=tuple(facts["image_mean"]),
        std=tuple(facts["image_std"]),
        backend=backend,
        resample=_RESAMPLING[facts["resample"]],
        grid_pinpoints=pinpoints,
    )


def model_images(model: Model) -> ImageSettings | None:
    """Return what the processor of a model does to an image, without its tokenizer.

    Raises:
        ConfigError: See `whole_images`, or the config of its tower cannot be found.
    """
    if model.weights is not None:
        return whole_images(model.weights, "model.weights")
    assert model.vision_tower is not None
    vision = part_config(model.vision_tower, "model.vision_tower")
    return settings_of(make_image_processor(model, tower_of(vision, "model.vision_tower.config")))


def whole_images(source: str, key: str) -> ImageSettings | None:
    """Return what the processor of a whole LLaVA does to an image, or None if it has no processor.

    Args:
        source: A folder, its URI, or a name on the hub.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: It cannot be loaded, or does what `llavamed.processor.images` does not support.
    """
    folder = fetch_once(source, weights=False)
    if find_form(folder) is None and not any(find_file(folder, name) for name in _IMAGE_FILES):
        return None
    found = load_pretrained(AutoImageProcessor, source, key, backend="pil")
    try:
        return settings_of(found)
    except ConfigError as error:
        raise ConfigError(f"{key}={source}: {error}") from error


def _check_scale(facts: dict[str, Any]) -> None:
    """Raise ConfigError if an image processor scales values in another way than we do."""
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if facts.get(name) is not True:
            raise ConfigError(
                f"image_processor.{name}={facts.get(name)}: images are always resized, scaled to "
                "0 .. 1 and normalized; set it to true in preprocessor_config.json"
            )
    if abs(facts["rescale_factor"] * 255 - 1) > 1e-6:
        raise ConfigError(
            f"image_processor.rescale_factor={facts['rescale_factor']}: must be 1/255; correct it "
            "in preprocessor_config.json"
        )
    for name, least in (("image_mean", 0.0), ("image_std", 1e-3)):
        values = facts[name]
        if len(values) != 3 or not all(least <= value <= 1 for value in values):
            raise ConfigError(
                f"image_processor.{name}={list(values)}: must be three numbers from {least:g} to "
                "1, as pixels are scaled to 0 .. 1 first; correct it in preprocessor_config.json"
            )
