"""Map the values of scans to grey levels: by a window, or between percentiles."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from llavamed.errors import SampleError

Values = npt.NDArray[np.float64]

_SQUARE = 0.01
"""Pixels whose height and width differ by no more than this fraction stay as they are."""
_LONGEST = 50
"""Pixels that are longer than this in one direction are taken for a mistake."""


def apply_window(values: Values, centre: float, width: float, function: str = "LINEAR") -> Values:
    """Map values to 0..1 by a window. Source: DICOM PS3.3, C.11.2.1.2.1 and C.11.2.1.3.

    Args:
        values: Values after rescaling.
        centre: Centre of the window.
        width: Width of the window, above 0.
        function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def percentile_range(values: Values) -> tuple[float, float]:
    """Return the 0.5th and the 99.5th percentile of finite values.

    Raises:
        SampleError: `corrupt_image`, if there are not two different values.
    """
    chosen = values[np.isfinite(values)]
    if not chosen.size:
        raise SampleError("corrupt_image", "no pixel has a value")
    low, high = np.percentile(chosen, [0.5, 99.5], overwrite_input=True)
    if high <= low:
        low, high = float(chosen.min()), float(chosen.max())
    if high <= low:
        raise SampleError("corrupt_image", f"every pixel is {low:g}")
    return low, high


def between(values: Values, low: float, high: float) -> Values:
    """Map values to 0..1 between two of them."""
    return np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)


def to_grey_pixels(levels: Values) -> npt.NDArray[np.uint8]:
    """Return levels from 0 to 1 as uint8 of the same shape."""
    return (levels * 255).round().astype(np.uint8)


def with_square_pixels(
    pixels: npt.NDArray[np.uint8], height: float, width: float
) -> npt.NDArray[np.uint8]:
    """Return a picture as a viewer shows it, enlarged in the direction of the longer pixels.

    Args:
        pixels: uint8 array of shape [height, width], or with colours as a third axis.
        height: The height of a pixel, in any unit; 0 or not finite if it is not known.
        width: Its width, in the same unit.

    Raises:
        SampleError: `corrupt_image`, if no scanner makes pixels of this shape.
    """
    if not (height > 0 and width > 0 and math.isfinite(height) and math.isfinite(width)):
        return pixels
    ratio = height / width
    if abs(ratio - 1) <= _SQUARE:
        return pixels
    if not 1 / _LONGEST <= ratio <= _LONGEST:
        raise SampleError("corrupt_image", f"pixels of {height:g} x {width:g}")
    rows, columns = pixels.shape[:2]
    rows, columns = max(rows, round(rows * ratio)), max(columns, round(columns / ratio))
    return np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR))
