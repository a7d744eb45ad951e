"""The common interface of all decoders. The type of the format selects the decoder."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.media.format import MediaFormat
from pipeline.media.registered import modality, modality_of

__all__ = [
    "MediaFormat",
    "array_type",
    "check_array",
    "decode",
    "decode_all",
    "decode_member",
    "encode_member",
    "encode_members",
    "media_from_dict",
    "media_to_dict",
    "model_member",
]


def decode(data: bytes, fmt: MediaFormat, *, name: str = "", strict: bool = True) -> np.ndarray:
    """Decode media bytes to the array that a model takes: all, or the first clip or context.

    Args:
        data: The bytes of the file.
        fmt: The format of the array, whose type determines the modality. A row of a table is one
            JSON object, and needs a `FittedTableFormat`.
        name: The name of the file. Some formats are recognised only by their extension.
        strict: Whether to reject a file that is damaged or cut short even if a decoder accepts it:
            missing data, wrong checksums, and warnings of decoders.

    Returns:
        An array that `check_array` accepts.

    Raises:
        MediaError: The file cannot be used; the message is the reason.
    """
    return next(decode_all(data, fmt, name=name, strict=strict))


def decode_all(
    data: bytes, fmt: MediaFormat, *, name: str = "", strict: bool = True
) -> Iterator[np.ndarray]:
    """Yield all clips of a film or all contexts of a text, in order, or the one array of others.

    The arguments and errors are those of `decode`. If only a later part of a film is damaged, the
    first clips are yielded before the error.
    """
    yield from modality_of(fmt).decode(bytes(data), fmt, name=name, strict=strict)


def array_type(fmt: MediaFormat) -> tuple[np.dtype, tuple[int, ...]]:
    """Return the dtype of the arrays that `decode` returns, and the shape of the longest one."""
    return modality_of(fmt).array_type(fmt)


def check_array(array: np.ndarray, fmt: MediaFormat) -> None:
    """Reject an array that `decode` could not have returned.

    `decode` returns, by modality:

    - image: uint8 `[height, width, channels]`
    - audio: int16 `[samples]` or float16 `[frames, num_mels]`
    - video: uint8 `[num_frames, height, width, channels]`
    - points: float16 `[points, 3]`
    - text: uint8 `[bytes]`
    - table: float64 `[columns]`

    Audio, points and text may be shorter than the format says, but points and text are not empty.
    A format that stores points' Fourier features also accepts these, float16 `[points, channels]`.

    Raises:
        ValueError: The dtype or the shape does not fit.
    """
    if not modality_of(fmt).fits(array, fmt):
        raise ValueError(f"{array.dtype} of shape {list(array.shape)} does not fit {fmt}")


def encode_member(array: np.ndarray, fmt: MediaFormat) -> bytes:
    """Encode an array from `decode` as the content of the shard member `fmt.member`."""
    return modality_of(fmt).encode(array, fmt)


def encode_members(array: np.ndarray, fmt: MediaFormat) -> dict[str, bytes]:
    """Encode an array as all its shard members, with points' Fourier features if requested."""
    return modality_of(fmt).encode_members(array, fmt)


def model_member(fmt: MediaFormat) -> str:
    """Return the shard member that a model reads, which may hold points' Fourier features."""
    return modality_of(fmt).model_member(fmt)


def decode_member(content: bytes | memoryview, fmt: MediaFormat) -> np.ndarray:
    """Decode a member of `encode_members` to its array, as exactly as the encoding allows.

    Raises:
        MediaError: The content is damaged.
        shards.ShardError: The content is damaged.
    """
    return modality_of(fmt).decode_member(content, fmt)


def media_to_dict(fmt: MediaFormat) -> dict[str, Any]:
    """Return a format as a dictionary for JSON, with the name of the modality as `modality`."""
    return {"modality": fmt.modality, **asdict(fmt)}


def media_from_dict(values: dict[str, Any]) -> MediaFormat:
    """Return the format of a dictionary from `media_to_dict`."""
    fields = dict(values)
    fmt: MediaFormat = modality(fields.pop("modality")).from_dict(fields)
    return fmt
