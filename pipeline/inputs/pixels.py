"""What images and films have in common: whole samples of pixels."""

from typing import Any

from pipeline.media.image.decode import ImageFormat
from pipeline.media.video.format import VideoFormat

PICTURE_FIELDS = ("shift_pixels", "rotate_degrees", "scale", "flip", "crop_area")
"""Fields of `training.augment`."""


def check_shift(augment: Any, fmt: ImageFormat | VideoFormat) -> None:
    """Refuse a shift that moves nothing, or that leaves nothing of an image.

    Raises:
        ValueError: says what is allowed.
    """
    pixels = augment.shift_pixels
    # Half a pixel is rounded to none.
    if 0 < pixels <= 0.5:
        raise ValueError(
            f"training.augment.shift_pixels is {pixels:g}, but images move by whole pixels; give "
            "more than 0.5"
        )
    if pixels >= min(fmt.height, fmt.width):
        raise ValueError(
            f"training.augment.shift_pixels is {pixels:g}, but data.{fmt.modality} is "
            f"{fmt.height} x {fmt.width} pixels; nothing might be left of an image"
        )
