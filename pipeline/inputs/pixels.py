"""What images and films have in common."""

from typing import Any

from pipeline.media.image.decode import ImageFormat
from pipeline.media.video.format import VideoFormat

PICTURE_FIELDS = ("shift_pixels", "rotate_degrees", "scale", "flip", "crop_area")
"""The fields of `training.augment` that change images and films."""

RGB_FIELDS = ("saturation", "hue")
"""The fields that change images of 3 channels only."""

COLOUR_FIELDS = (
    "randaugment_layers",
    "randaugment_magnitude",
    "brightness",
    "contrast",
    "erase",
    *RGB_FIELDS,
)
"""The fields that change images, and not films."""


def check_shift(augment: Any, fmt: ImageFormat | VideoFormat) -> None:
    """Refuse a shift that moves nothing, or that could leave nothing of an image.

    Args:
        augment: The configuration `training.augment`.
        fmt: The format of the images or films.

    Raises:
        ValueError: The message says what is allowed.
    """
    pixels = augment.shift_pixels
    # Half a pixel is rounded down to 0.
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
