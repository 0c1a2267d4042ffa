"""Resample the position table of an image encoder, so that it takes images of another size."""

import math
from copy import deepcopy
from typing import Any

import torch
from torch.nn.functional import interpolate

from llavamed.processor.tower import tower_of


def at_image_size(tower: Any, image_size: int | list[int]) -> Any:
    """Return a tower for images of a size: itself, or a copy with its position table resampled.

    The position table is the only weight whose shape depends on the size of the image. Towers with
    rotary positions have none, so all their weights are kept.

    Args:
        tower: An image encoder of transformers.
        image_size: Width and height of an image, in pixels.
    """
    if tower.config.image_size == image_size:
        return tower
    config = deepcopy(tower.config)
    config.image_size = image_size
    resized = type(tower)._from_config(config, dtype=tower.dtype)
    antialias = tower_of(config, "vision_config").antialias
    weights, shapes = tower.state_dict(), resized.state_dict()
    for name, weight in weights.items():
        if weight.shape != shapes[name].shape:
            rows = shapes[name].shape[-2]
            weights[name] = resample_positions(weight, rows, antialias=antialias)
    resized.load_state_dict(weights)
    return resized


def resample_positions(
    table: torch.Tensor, num_rows: int, *, antialias: bool = False
) -> torch.Tensor:
    """Resample a position table to another number of rows, bicubically.

    Args:
        table: Tensor of shape [rows, width] or [1, rows, width]. The last rows are a square grid of
            patches; the others, before it, belong to the class token and are kept.
        num_rows: The rows wanted, with as many before the grid.
        antialias: Smooth the table before it gets fewer rows.

    Source: `interpolate_pos_encoding` of transformers, to which a test compares it.
    """
    rows, width = table.shape[-2:]
    edge = math.isqrt(rows)
    num_kept = rows - edge**2
    wanted = math.isqrt(num_rows - num_kept)
    kept, grid = table.reshape(rows, width).split([num_kept, edge**2])
    grid = grid.reshape(1, edge, edge, width).permute(0, 3, 1, 2).float()
    grid = interpolate(
        grid, size=(wanted, wanted), mode="bicubic", align_corners=False, antialias=antialias
    )
    grid = grid.permute(0, 2, 3, 1).reshape(wanted**2, width).to(table.dtype)
    return torch.cat([kept, grid]).reshape(*table.shape[:-2], num_rows, width)
