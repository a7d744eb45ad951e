"""Antialiased resizing of uint8 pixels: Pillow's filters, with SIMD.

All arithmetic is on integers, so that every processor gives the same bytes.
"""

import threading
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from cykooz_resizer import Resizer

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""
Filter = Literal["bicubic", "bilinear"]

HAIR = 1e-6
"""Pixels. Of noise, the worst case, 3 of 10,000 values differ by 1 from what no hair would give."""

_thread = threading.local()
_FILTERS = {"bicubic": "catmull_rom", "bilinear": "bilinear"}


def resize(
    pixels: np.ndarray,
    height: int,
    width: int,
    *,
    box: Box | None = None,
    filter: Filter = "bicubic",
) -> np.ndarray:
    """Scale an image, or a part of it; each output pixel averages all that it covers.

    Args:
        pixels: uint8 `[height, width, channels]`, 1 or 3 channels.
        height, width: of the result.
        box: the part to scale, None for the whole; pixels just beyond it count at its edges.
        filter: Pillow's bicubic (Catmull-Rom) or bilinear (triangle).

    Returns:
        uint8 `[height, width, channels]`, read-only.
    """
    from cykooz_resizer import (
        CropBox,
        FilterType,
        ImageData,
        PixelType,
        ResizeAlg,
        ResizeOptions,
    )

    rows, columns, channels = pixels.shape
    kind = PixelType.U8 if channels == 1 else PixelType.U8x3
    options = ResizeOptions(ResizeAlg.convolution(FilterType[_FILTERS[filter]]))
    if box is not None:
        left, top, box_width, box_height = box
        # Rounding must not push the box over an edge.
        left, box_width = _between_pixels(left, min(box_width, columns - left))
        top, box_height = _between_pixels(top, min(box_height, rows - top))
        options.crop_box = CropBox(left, top, box_width, box_height)
    resized = ImageData(width, height, kind)
    _resizer().resize(ImageData(columns, rows, kind, pixels.tobytes()), resized, options)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(height, width, channels)


def _between_pixels(start: float, length: float) -> tuple[float, float]:
    """A box's start and length, moved by a hair off all pixels' centres.

    Where a centre is met exactly, the filter may be 0 at the first pixel that the outermost row or
    column covers. The resizer leaves that pixel out, takes the next for the first of the whole
    box, and reads outside. By a start and an end that move unevenly no size can meet one again.
    """
    return start + HAIR, length - 3 * HAIR


def _resizer() -> "Resizer":
    """The thread's own: it keeps its buffers from call to call."""
    if not hasattr(_thread, "resizer"):
        from cykooz_resizer import Resizer

        _thread.resizer = Resizer()
    found: Resizer = _thread.resizer
    return found
