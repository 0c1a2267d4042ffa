"""Decide how an image is cut into tiles, and how many tokens it takes in the text.

A LLaVA-NeXT sees an image twice: as a whole in one tile, and enlarged in several ("anyres"). Its
grid pinpoints are the sizes an image may be enlarged to. Features of the padding around the image
are removed, and each row of features ends with a learned newline. So the size of an image alone
decides its tiles and tokens, and nothing needs to be decoded to count them. A LLaVA without
pinpoints sees an image in one tile.

Source: LLaVA-NeXT as transformers implements it; the tests compare with its tokens and logits.
"""

import math
from dataclasses import dataclass

from llavamed.errors import ConfigError, SampleError
from llavamed.processor.tower import Tower

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Tiling:
    """How a model cuts images into tiles."""

    tile_size: int
    """Width and height of a tile, in pixels."""
    num_tile_tokens: int
    """Tokens of the whole image in one tile."""
    pinpoints: tuple[Size, ...] = ()
    """Sizes an image may be enlarged to; without any, an image is one tile."""

    def num_tiles(self, size: Size) -> int:
        """Return the number of tiles of an image of this size. Raises: SampleError."""
        return self._tiles_within(self.pinpoint(size)) if self.pinpoints else 1

    def num_tokens(self, size: Size) -> int:
        """Return the number of tokens of an image of this size. Raises: SampleError."""
        if not self.pinpoints:
            return self.num_tile_tokens
        (height, width), (rows, columns) = size, self._grid(self.pinpoint(size))
        # Rounding to seven digits keeps exact products whole, as in transformers.
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        return self.num_tile_tokens + rows * (columns + 1)

    @property
    def most_tiles(self) -> int:
        """The largest number of tiles of an image."""
        return max((self._tiles_within(size) for size in self.pinpoints), default=1)

    @property
    def most_tokens(self) -> int:
        """The largest number of tokens of an image, one that fills a pinpoint."""
        grids = (self._grid(size) for size in self.pinpoints)
        enlarged = max((rows * (columns + 1) for rows, columns in grids), default=0)
        return self.num_tile_tokens + enlarged

    def check_fits(self, max_length: int) -> None:
        """Raise ConfigError if the largest image leaves no room for a text in `data.max_length`."""
        if self.pinpoints and self.most_tokens >= max_length:
            raise ConfigError(
                f"data.max_length={max_length}: an image takes up to {self.most_tokens} tokens "
                "with model.image_grid_pinpoints, and images are never cut; raise it, or choose "
                "smaller pinpoints"
            )

    def pinpoint(self, size: Size) -> Size:
        """Return the pinpoint for an image: that which shows most of its pixels and wastes least.

        Raises:
            SampleError: `corrupt_image`, if the image would be less than a pixel high or wide.
        """
        height, width = size
        best, best_shown, best_wasted = None, 0, 0
        for high, wide in self.pinpoints:
            scale = min(wide / width, high / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            wasted = high * wide - shown
            if shown > best_shown or (shown == best_shown and wasted < best_wasted):
                best, best_shown, best_wasted = (high, wide), shown, wasted
        if best is None:
            raise SampleError("corrupt_image", f"{width}x{height} pixels is a line, not a picture")
        return best

    def _tiles_within(self, pinpoint: Size) -> int:
        high, wide = pinpoint
        return 1 + (high // self.tile_size) * (wide // self.tile_size)

    def _grid(self, pinpoint: Size) -> Size:
        """Return the rows and columns of the features of a pinpoint."""
        edge = math.isqrt(self.num_tile_tokens)
        high, wide = pinpoint
        return high // self.tile_size * edge, wide // self.tile_size * edge


def fitted_size(size: Size, pinpoint: Size) -> Size:
    """Return the size of an image that is enlarged to fit into a pinpoint, with its proportions."""
    (height, width), (high, wide) = size, pinpoint
    if wide / width < high / height:
        return min(math.ceil(height * (wide / width)), high), wide
    return high, min(math.ceil(width * (high / height)), wide)


def check_pinpoints(pinpoints: tuple[Size, ...], tower: Tower, key: str) -> None:
    """Check that a tower can read the tiles of these pinpoints.

    Args:
        key: The config key of the pinpoints, for errors.

    Raises:
        ConfigError: A pinpoint is not made of whole tiles, or the tower's tokens are not a grid.
    """
    patches = (tower.image_size // tower.patch_size) ** 2
    if tower.num_image_tokens(tower.strategy) != patches:
        raise ConfigError(
            f"{key}: the tower makes {tower.num_image_tokens(tower.strategy)} tokens of a tile, "
            f"which are not a grid of {patches} patches, because it has "
            f"{tower.num_prefix_tokens} tokens before them; use a tower with one or none, or "
            "leave the pinpoints out"
        )
    for high, wide in pinpoints:
        if high % tower.image_size or wide % tower.image_size:
            raise ConfigError(
                f"{key}=[{high}, {wide}]: is not made of whole tiles of {tower.image_size} pixels, "
                "the size of the tower's images; use multiples of it"
            )
