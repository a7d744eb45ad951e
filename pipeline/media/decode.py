"""One door to the decoders, chosen by the format asked for."""

from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.media.audio import AudioFormat, decode_audio
from pipeline.media.images import ImageFormat, decode_image

MediaFormat = ImageFormat | AudioFormat


def decode(data: bytes, fmt: MediaFormat, *, name: str = "") -> np.ndarray:
    """Decode raw media bytes to the array a model takes.

    Args:
        data: the file's bytes.
        fmt: what to make of them; its type says whether they are an image or sound.
        name: the file's name, for formats that only their extension tells.

    Returns:
        uint8 ``[height, width, channels]`` or int16 ``[samples]``.

    Raises:
        MediaError: the file cannot be used; the text is the reason.
    """
    if isinstance(fmt, ImageFormat):
        return decode_image(data, fmt)
    return decode_audio(data, fmt, suffix=PurePosixPath(name).suffix)


def media_to_dict(fmt: MediaFormat) -> dict[str, Any]:
    """JSON-safe form, with the modality under ``modality``."""
    modality = "image" if isinstance(fmt, ImageFormat) else "audio"
    return {"modality": modality, **asdict(fmt)}


def media_from_dict(values: dict[str, Any]) -> MediaFormat:
    """The inverse of :func:`media_to_dict`."""
    fields = dict(values)
    modality = fields.pop("modality")
    return ImageFormat(**fields) if modality == "image" else AudioFormat(**fields)
