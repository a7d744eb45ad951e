"""One door to the decoders, chosen by the format asked for."""

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
    """Decode raw media bytes to the array a model takes: the whole, or the first clip or context.

    Args:
        data: the file's bytes.
        fmt: what to make of them; its type says which modality they are. Rows of tables are one
            JSON object, and need a `FittedTableFormat`.
        name: the file's name, for formats that only their extension tells.
        strict: whether a file is refused that is damaged or cut short, and of which a decoder would
            make something all the same: lengths that are declared and not there, checksums that are
            wrong, and what decoders warn of.

    Returns:
        As `check_array` says.

    Raises:
        MediaError: the file cannot be used; the text is the reason.
    """
    return next(decode_all(data, fmt, name=name, strict=strict))


def decode_all(
    data: bytes, fmt: MediaFormat, *, name: str = "", strict: bool = True
) -> Iterator[np.ndarray]:
    """Every clip of a film and every context of a text, in order; of others the one array.

    Arguments and errors are those of `decode`. A film that is damaged further on raises after
    its first clips.
    """
    yield from modality_of(fmt).decode(bytes(data), fmt, name=name, strict=strict)


def array_type(fmt: MediaFormat) -> tuple[np.dtype, tuple[int, ...]]:
    """Dtype of the arrays that `decode` makes, and the shape of the longest."""
    return modality_of(fmt).array_type(fmt)


def check_array(array: np.ndarray, fmt: MediaFormat) -> None:
    """Refuse an array that is not what `decode` makes.

    These are: image, uint8 `[height, width, channels]`; audio, int16 `[samples]` or float16
    `[frames, num_mels]`; video, uint8 `[num_frames, height, width, channels]`; points, float16
    `[points, 3]`; text, uint8 `[bytes]`; table, float64 `[columns]`. Sound, points and text
    may be shorter than the format says, but points and text not empty. Points' Fourier features,
    float16 `[points, channels]`, fit a format that has them stored.

    Raises:
        ValueError: another dtype or shape.
    """
    if not modality_of(fmt).fits(array, fmt):
        raise ValueError(f"{array.dtype} of shape {list(array.shape)} does not fit {fmt}")


def encode_member(array: np.ndarray, fmt: MediaFormat) -> bytes:
    """The content of the shard member `fmt.member`, of an array that `decode` made."""
    return modality_of(fmt).encode(array, fmt)


def encode_members(array: np.ndarray, fmt: MediaFormat) -> dict[str, bytes]:
    """All shard members of an array: its own, and points' Fourier features where they are asked."""
    return modality_of(fmt).encode_members(array, fmt)


def model_member(fmt: MediaFormat) -> str:
    """The shard member that a model reads: points' Fourier features where they are stored."""
    return modality_of(fmt).model_member(fmt)


def decode_member(content: bytes | memoryview, fmt: MediaFormat) -> np.ndarray:
    """The array of a member of `encode_members`, as near as the encoding keeps it.

    Raises:
        MediaError: the content is damaged.
        shards.ShardError: likewise.
    """
    return modality_of(fmt).decode_member(content, fmt)


def media_to_dict(fmt: MediaFormat) -> dict[str, Any]:
    """JSON-safe form, with the modality under `modality`."""
    return {"modality": fmt.modality, **asdict(fmt)}


def media_from_dict(values: dict[str, Any]) -> MediaFormat:
    """The inverse of `media_to_dict`."""
    fields = dict(values)
    fmt: MediaFormat = modality(fields.pop("modality")).from_dict(fields)
    return fmt
