"""Draw the built-in phantoms: a `Scene` says what is shown, and `draw` paints it.

Everything that a scene does not name (outline, position, contrast, noise, shading) is random, so
two images of one scene differ as two patients do. The images only hint at the look of a modality;
they teach no anatomy. A finding is about as large as a patch of a small vision tower, at most one
on a side; smaller ones need far more training than a demonstration on a laptop can afford.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Modality = Literal["CT", "MRI", "X-ray", "ultrasound"]
Side = Literal["left", "right"]
Kind = Literal["mass", "cyst"]
Size = Literal["small", "large"]

MODALITIES: tuple[Modality, ...] = get_args(Modality)
SIDES: tuple[Side, ...] = get_args(Side)
KINDS: tuple[Kind, ...] = get_args(Kind)
SIZES: tuple[Size, ...] = get_args(Size)

# Lengths are fractions of half the image's width; brightness runs from 0 (black) to 1 (white).
_RADIUS: dict[Size, tuple[float, float]] = {"small": (0.14, 0.17), "large": (0.30, 0.36)}
_BRIGHTNESS: dict[Kind, tuple[float, float]] = {"mass": (0.92, 1.0), "cyst": (0.0, 0.08)}

Plane = NDArray[np.float32]
"""float32 array of shape [height, width]."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of a phantom.

    `sides` are the halves of the image that hold a finding, as the viewer sees them. All findings
    of an image share their kind and size, which have no meaning without a finding.
    """

    modality: Modality
    sides: tuple[Side, ...]
    kind: Kind
    size: Size


def draw(scene: Scene, random: np.random.Generator, image_size: int) -> bytes:
    """Paint a scene as a square RGB image of `image_size` pixels, encoded as PNG."""
    x, y = _grid(image_size)
    # Shift and scale the body once: every position below is relative to it.
    x = (x - np.float32(random.uniform(-0.05, 0.05))) / np.float32(random.uniform(0.86, 0.98))
    y = (y - np.float32(random.uniform(-0.05, 0.05))) / np.float32(random.uniform(0.86, 0.98))
    tissue = np.float32(random.uniform(0.42, 0.52))
    organs = _organs(x, y, random)
    plane = _PAINTERS[scene.modality](x, y, organs, tissue, random)
    for side in scene.sides:
        plane = _add_finding(plane, x, y, scene, side, random)
    gain = random.uniform(0.92, 1.08)
    noise = random.standard_normal(plane.shape, dtype=np.float32) * np.float32(0.02)
    pixels = np.clip((plane * np.float32(gain) + noise) * 255, 0, 255).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(encoded, format="PNG", compress_level=1)
    return encoded.getvalue()


@lru_cache(maxsize=8)
def _grid(image_size: int) -> tuple[Plane, Plane]:
    """Return the coordinates of pixel centres, x to the right and y downwards, from -1 to 1."""
    axis = (np.arange(image_size, dtype=np.float32) + 0.5) * (2 / image_size) - 1
    x, y = np.meshgrid(axis, axis)
    return x, y


def _inside(distance: Plane, softness: float) -> Plane:
    """Return 1 where the distance to an outline is negative, 0 where positive, with a soft edge."""
    return np.clip(0.5 - distance / np.float32(softness), 0, 1)


def _ellipse(x: Plane, y: Plane, centre: tuple[float, float], axes: tuple[float, float]) -> Plane:
    """Return the approximate distance to the outline of an ellipse, negative inside."""
    radius = np.sqrt(((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2)
    return (radius - 1) * np.float32(min(axes))


def _organs(x: Plane, y: Plane, random: np.random.Generator) -> Plane:
    """Return the mask of a pair of organs, one on each side."""
    mask = np.zeros_like(x)
    for sign in (-1, 1):
        centre = (sign * random.uniform(0.42, 0.48), random.uniform(-0.06, 0.06))
        axes = (random.uniform(0.28, 0.34), random.uniform(0.5, 0.6))
        mask = np.maximum(mask, _inside(_ellipse(x, y, centre, axes), 0.1))
    return mask


def _paint_ct(
    x: Plane, y: Plane, organs: Plane, tissue: np.float32, random: np.random.Generator
) -> Plane:
    """Paint even tissue within a bright shell of bone, a bright spine, and air around it."""
    outline = _ellipse(x, y, (0, 0), (0.92, 0.86))
    shell = _inside(np.abs(outline + 0.06) - 0.05, 0.05)
    spine = _inside(_ellipse(x, y, (0, random.uniform(0.5, 0.6)), (0.13, 0.13)), 0.05)
    body = tissue + np.float32(random.uniform(-0.12, -0.06)) * organs
    return np.maximum(_inside(outline, 0.05) * body, np.float32(0.95) * np.maximum(shell, spine))


def _paint_mri(
    x: Plane, y: Plane, organs: Plane, tissue: np.float32, random: np.random.Generator
) -> Plane:
    """Paint bright organs in darker tissue, without bone, shaded across the image by the coil."""
    outline = _ellipse(x, y, (0, 0), (0.88, 0.96))
    angle = random.uniform(0, 2 * np.pi)
    shading = 1 + np.float32(0.2) * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))
    body = tissue - np.float32(0.22) + np.float32(random.uniform(0.28, 0.34)) * organs
    return _inside(outline, 0.08) * body * shading


def _paint_xray(
    x: Plane, y: Plane, organs: Plane, tissue: np.float32, random: np.random.Generator
) -> Plane:
    """Paint a bright projection that fills the film, with ribs, and darker where there is air."""
    ribs = np.sin((y + np.float32(0.25) * x * x) * np.float32(random.uniform(17, 20)))
    body = tissue + np.float32(0.3) - np.float32(random.uniform(0.3, 0.36)) * organs
    heart = _inside(_ellipse(x, y, (0, 0.4), (0.16, 0.5)), 0.2)
    return body + np.float32(0.07) * ribs + np.float32(0.1) * heart


def _paint_ultrasound(
    x: Plane, y: Plane, organs: Plane, tissue: np.float32, random: np.random.Generator
) -> Plane:
    """Paint speckle inside a sector that opens downwards from a probe above the image."""
    depth = np.hypot(x, y + 1.6)
    sector = _inside(np.abs(x) - np.float32(0.62) * (y + np.float32(1.75)), 0.06)
    sector = sector * _inside(np.abs(depth - 1.66) - np.float32(0.96), 0.06)
    speckle = random.gamma(6.0, 1 / 6, size=x.shape).astype(np.float32)
    body = tissue - np.float32(0.1) + np.float32(random.uniform(0.1, 0.16)) * organs
    return sector * body * speckle


_PAINTERS: dict[
    Modality, Callable[[Plane, Plane, Plane, np.float32, np.random.Generator], Plane]
] = {"CT": _paint_ct, "MRI": _paint_mri, "X-ray": _paint_xray, "ultrasound": _paint_ultrasound}


def _add_finding(
    plane: Plane, x: Plane, y: Plane, scene: Scene, side: Side, random: np.random.Generator
) -> Plane:
    """Paint a slightly oval finding over one side, at a random height of its organ."""
    radius = random.uniform(*_RADIUS[scene.size])
    stretch = random.uniform(0.9, 1.1)
    sign = -1 if side == "left" else 1
    centre = (sign * random.uniform(0.4, 0.5), random.uniform(-0.2, 0.2))
    mask = _inside(_ellipse(x, y, centre, (radius * stretch, radius / stretch)), 0.08)
    return plane + mask * (np.float32(random.uniform(*_BRIGHTNESS[scene.kind])) - plane)
