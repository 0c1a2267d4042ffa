"""Read a picture of a DICOM file, as a viewer shows it. Needs `pip install 'llavamed[dicom]'`.

The order is that of the standard: decode, rescale, window, invert. Only pixels leave this module:
no tag, overlay or text of the file is passed on.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from llavamed.errors import SampleError
from llavamed.processor.dicom_limits import check_coded, check_inflated, check_size
from llavamed.processor.gdcm_process import decode_apart
from llavamed.processor.grey_levels import (
    Values,
    apply_window,
    between,
    percentile_range,
    to_grey_pixels,
    with_square_pixels,
)
from llavamed.processor.image_files import Pixels, to_png
from llavamed.processor.tiles import Size

_NO_PICTURES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "DOC", "ECG", "HD"}
"""Modalities whose objects hold no picture of a patient, though some hold pixels."""
_MAY_SHOW_TEXT = {"US", "XA", "RF", "ES", "GM", "XC", "OT", "SC", "OP", "IVUS"}
"""Modalities whose machines write names and dates into the picture."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_COLOURS = ("Red", "Green", "Blue")
_MOST_ENTRIES = 1 << 16
"""Entries of a table whose descriptor says 0, because 16 bits cannot say more."""
_SOFT_TISSUE = (40.0, 400.0)
"""Window of a CT that states none, in Hounsfield units: centre and width."""

_STRIP_ROWS = 256
"""Rows that are mapped at once, because their values take eight bytes each."""


def read_dicom(data: bytes, frame: int = 0) -> bytes:
    """Return one frame of a DICOM file as PNG of 8 bits.

    Grey values go through the file's own rescaling and its first table or window; without one, a CT
    is shown in a window for soft tissue, and others between the 0.5th and 99.5th percentile. Pixels
    that are not square are made so.

    Args:
        frame: Position of the frame, from 0.

    Raises:
        SampleError: `dicom_support` where pydicom is not installed, `no_picture`, `no_such_frame`,
            `image_too_large` or `corrupt_image`.
    """
    dataset = _read(data)
    with _tag_errors():
        modality = str(dataset.get("Modality", ""))
        if "PixelData" not in dataset or modality in _NO_PICTURES:
            raise SampleError("no_picture", f"it is an object of modality {modality or 'unknown'}")
        num_frames = int(dataset.get("NumberOfFrames") or 1)
        if not 0 <= frame < num_frames:
            raise SampleError("no_such_frame", f"frame {frame} of {num_frames}")
        check_size(dataset)
        stored = _decode(dataset, data, frame)
        is_grey = stored.ndim == 2
        pixels = (_to_grey if is_grey else _to_8_bits)(stored, dataset, frame)
        return to_png(with_square_pixels(pixels, *_pixel_size(dataset, frame)))


def dicom_size(data: bytes) -> Size:
    """Return the height and width of the pictures of a file, by its header. Raises: SampleError."""
    dataset = _read(data)
    with _tag_errors():
        return int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0))


def check_deidentified(data: bytes) -> None:
    """Refuse a file whose tags do not attest that it, including its pixels, is de-identified.

    Source: DICOM PS3.15, Annex E.

    Raises:
        SampleError: `identifiable`, `burned_in_text`, or as `read_dicom`.
    """
    dataset = _read(data)
    with _tag_errors():
        modality = str(dataset.get("Modality", ""))
        is_removed = str(dataset.get("PatientIdentityRemoved", "")).strip().upper() == "YES"
        method = dataset.get("DeidentificationMethod") or dataset.get(
            "DeidentificationMethodCodeSequence"
        )
        burned_in = str(dataset.get("BurnedInAnnotation", "")).strip().upper()
        is_capture = str(dataset.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)
    if not is_removed or not method:
        raise SampleError(
            "identifiable",
            "its tags do not say that the patient's identity was removed, and how; have it "
            "de-identified, or list its SHA-256 in `attested`",
        )
    if burned_in == "YES" or (burned_in != "NO" and (modality in _MAY_SHOW_TEXT or is_capture)):
        raise SampleError(
            "burned_in_text",
            f"BurnedInAnnotation={burned_in or 'absent'} for modality {modality or 'unknown'}: "
            "text in the picture may name the patient; clean it, or list its SHA-256 in `attested`",
        )


def _read(data: bytes) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise SampleError(
            "dicom_support", "a DICOM file needs pydicom: pip install 'llavamed[dicom]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values of tags
            check_inflated(data)
            return pydicom.dcmread(io.BytesIO(data))
    except SampleError:
        raise
    except Exception as error:  # pydicom raises whatever its parser stumbles on
        # Its text may quote a value, such as a name.
        raise SampleError("corrupt_image", f"no DICOM file: {type(error).__name__}") from None


@contextmanager
def _tag_errors() -> Iterator[None]:
    """Turn what damaged tags raise into a SampleError, without its text, which may quote them."""
    try:
        yield
    except SampleError:
        raise
    except Exception as error:  # pydicom reads the value of a tag when it is asked for
        raise SampleError("corrupt_image", f"damaged tags: {type(error).__name__}") from None


def _decode(dataset: Any, data: bytes, index: int) -> npt.NDArray[Any]:
    """Decode one frame and nothing else, colours as RGB. Raises: SampleError, `corrupt_image`."""
    from pydicom.pixels import pixel_array

    try:
        check_coded(dataset, index)
        decoder = _decoder(dataset)
        if decoder == "gdcm":
            pixels = decode_apart(data, index)
        else:
            pixels = pixel_array(dataset, index=index, decoding_plugin=decoder)
        is_palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
        return _coloured(pixels, dataset) if is_palette else pixels
    except SampleError:
        raise
    except Exception as error:  # decoders raise whatever their C code meets
        syntax = "unknown transfer syntax"
        with suppress(Exception):  # a damaged header names none
            syntax = dataset.file_meta.TransferSyntaxUID.name
        raise SampleError("corrupt_image", f"{syntax}: {_reason(error)}") from error


def _decoder(dataset: Any) -> str:
    """Return the library that decodes a dataset: Pillow where it can, or GDCM, or "" for pydicom.

    Where both can, they make the same pixels.
    """
    from pydicom.pixels import get_decoder

    plugins = get_decoder(dataset.file_meta.TransferSyntaxUID).available_plugins
    is_deep_colour = dataset.SamplesPerPixel > 1 and dataset.BitsStored > 8  # not read by Pillow
    if "pillow" in plugins and not is_deep_colour:
        return "pillow"
    return "gdcm" if "gdcm" in plugins else ""


def _coloured(pixels: npt.NDArray[Any], dataset: Any) -> Pixels:
    """Return the colours that a palette gives to stored values."""
    from pydicom.pixels import apply_color_lut

    number, first, bits = map(int, dataset.RedPaletteColorLookupTableDescriptor)
    if "RedPaletteColorLookupTableData" in dataset:
        tables = [dataset[f"{name}PaletteColorLookupTableData"] for name in _COLOURS]
        is_little = dataset.original_encoding[1]
        colours = np.stack(
            [_look_up(pixels, number, first, each.value, is_little) for each in tables], axis=-1
        )
    else:
        last = first + (number or _MOST_ENTRIES) - 1
        colours = apply_color_lut(np.clip(pixels, first, last), dataset)
    return (colours >> max(bits - 8, 0)).astype(np.uint8)


def _look_up(
    values: npt.NDArray[Any], number: int, first: int, table: Any, is_little: bool
) -> npt.NDArray[Any]:
    """Map values by a table; those outside it get its first or last entry.

    Source: DICOM PS3.3, C.7.6.3.1.5 and C.11.1.1. pydicom's functions let some values wrap around
    where an entry has fewer bits than a value.

    Args:
        values: Whole numbers.
        number: Entries of the table, 0 for 65536.
        first: The value that its first entry is for.
        table: Its entries, as numbers or as bytes.
        is_little: Whether the low byte of an entry of 16 bits comes first.
    """
    number = number or _MOST_ENTRIES
    if isinstance(table, bytes):
        is_wide = len(table) >= 2 * number
        table = np.frombuffer(table, ("<u2" if is_little else ">u2") if is_wide else np.uint8)
    places = np.clip(values.astype(np.int64) - first, 0, number - 1)
    return np.atleast_1d(np.asarray(table))[places]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _in_strips(
    pixels: npt.NDArray[Any], work: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """Return what `work` makes of each strip of a picture, one below the other."""
    tops = range(0, len(pixels), _STRIP_ROWS)
    return np.concatenate([work(pixels[top : top + _STRIP_ROWS]) for top in tops])


def _to_8_bits(colours: npt.NDArray[Any], dataset: Any, _: int) -> Pixels:
    if colours.dtype == np.uint8:
        return colours
    scale = 255 / (2 ** int(dataset.BitsStored) - 1)
    return _in_strips(
        colours, lambda strip: (strip.astype(np.float64) * scale).round().astype(np.uint8)
    )


def _to_grey(pixels: npt.NDArray[Any], dataset: Any, index: int) -> npt.NDArray[np.uint8]:
    """Map stored values to grey levels: rescale, window, invert where bright means black."""
    rescale = _rescaling(_of_frame(dataset, index, "PixelValueTransformationSequence"))
    window = _of_frame(dataset, index, "FrameVOILUTSequence")
    show = _windowing(window, str(dataset.get("Modality", "")))
    if show is None:
        inside = _in_strips(pixels, lambda strip: rescale(strip)[_inside(strip, dataset)])
        low, high = percentile_range(inside)
        show = partial(between, low=low, high=high)

    def to_grey(strip: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        grey = show(rescale(strip))
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            grey = 1 - grey
        grey[~_inside(strip, dataset)] = 0
        return to_grey_pixels(grey)

    return _in_strips(pixels, to_grey)


def _rescaling(transform: Any) -> Callable[[npt.NDArray[Any]], Values]:
    """Return what maps stored values to those of a unit, by a table or by slope and intercept."""
    from pydicom.pixels import apply_modality_lut

    if transform.get("ModalityLUTSequence"):
        return lambda stored: _by_table(stored, transform.ModalityLUTSequence[0])
    return lambda stored: apply_modality_lut(stored, transform).astype(np.float64)


def _inside(pixels: npt.NDArray[Any], dataset: Any) -> npt.NDArray[np.bool_]:
    """Return which stored values are not padding, a value or a range of them.

    Source: DICOM PS3.3, C.7.5.1.1.2.
    """
    padding = dataset.get("PixelPaddingValue")
    if padding is None:
        return np.ones(pixels.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(padding), int(padding if limit is None else limit)))
    return (pixels < low) | (pixels > high)


def _by_table(values: npt.NDArray[Any], item: Any) -> Values:
    """Map values by the table of an item of a modality or VOI LUT sequence."""
    number, first, _ = map(int, item.LUTDescriptor)
    is_little = item.original_encoding[1]
    return _look_up(values, number, first, item.LUTData, is_little).astype(np.float64)


def _pixel_size(dataset: Any, index: int) -> tuple[float, float]:
    """Return the height and width of a pixel, in millimetres or in proportion; 0 if unknown."""
    measures = _of_frame(dataset, index, "PixelMeasuresSequence")
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        found = measures.get(name) or dataset.get(name)
        if found and len(found) == 2:
            return float(found[0]), float(found[1])
    return 0.0, 0.0


def _of_frame(dataset: Any, index: int, name: str) -> Any:
    """Return the part of a dataset that holds for a frame: its own, the shared one, or itself."""
    for groups, number in (
        ("PerFrameFunctionalGroupsSequence", index),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        found = dataset.get(groups)
        if found and number < len(found) and found[number].get(name):
            return found[number][name][0]
    return dataset


def _windowing(window: Any, modality: str) -> Callable[[Values], Values] | None:
    """Return what maps values to 0..1: a table, a window or a preset for CT; None without them."""
    if window.get("VOILUTSequence"):
        table = window.VOILUTSequence[0]
        largest = 2 ** int(table.LUTDescriptor[2]) - 1
        return lambda values: np.clip(_by_table(np.rint(values), table) / largest, 0, 1)
    centre, width = _first(window, "WindowCenter"), _first(window, "WindowWidth")
    if centre is not None and width is not None and width > 0:
        function = str(window.get("VOILUTFunction", "LINEAR"))
        return lambda values: apply_window(values, centre, width, function)
    return (lambda values: apply_window(values, *_SOFT_TISSUE)) if modality == "CT" else None


def _first(dataset: Any, name: str) -> float | None:
    value = dataset.get(name)
    if value is None or value == "":
        return None
    number = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    return number if math.isfinite(number) else None
