"""One door to the decoders, chosen by the format asked for."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.media.audio.decode import AudioFormat, decode_audio, decode_flac, encode_flac
from pipeline.media.audio.mel import MelFormat
from pipeline.media.image.decode import ImageFormat, decode_image, encode_jpeg
from pipeline.media.points.decode import PointsFormat, PointsFourier, decode_points
from pipeline.media.points.format import NUM_DIMS
from pipeline.media.points.fourier import point_features
from pipeline.media.table.decode import (
    FittedTableFormat,
    TableFormat,
    TableVocabulary,
    decode_json_row,
)
from pipeline.media.text import TextFormat, decode_text
from pipeline.media.video.decode import VideoFormat, decode_clips, decode_film

MediaFormat = ImageFormat | AudioFormat | VideoFormat | PointsFormat | TextFormat | TableFormat

__all__ = [
    "MediaFormat",
    "array_type",
    "check_array",
    "decode",
    "decode_all",
    "decode_film",
    "decode_member",
    "encode_member",
    "encode_members",
    "media_from_dict",
    "media_to_dict",
    "model_member",
]

_FORMATS: dict[str, type[MediaFormat]] = {
    fmt.modality: fmt
    for fmt in (ImageFormat, AudioFormat, VideoFormat, PointsFormat, TextFormat, TableFormat)
}


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
    data = bytes(data)
    match fmt:
        case ImageFormat():
            yield decode_image(data, fmt, strict=strict)
        case AudioFormat():
            yield decode_audio(data, fmt, suffix=PurePosixPath(name).suffix, strict=strict)
        case VideoFormat():
            yield from decode_clips(data, fmt, strict=strict)
        case PointsFormat():
            yield decode_points(data, fmt, strict=strict)
        case TextFormat():
            yield from decode_text(data, fmt, strict=strict)
        case FittedTableFormat():
            yield decode_json_row(data, fmt)
        case TableFormat():
            raise ValueError("a table's rows need a FittedTableFormat, with its vocabulary")


def array_type(fmt: MediaFormat) -> tuple[np.dtype, tuple[int, ...]]:
    """Dtype of the arrays that `decode` makes, and the shape of the longest."""
    match fmt:
        case ImageFormat():
            return np.dtype(np.uint8), (fmt.height, fmt.width, fmt.channels)
        case AudioFormat():
            return np.dtype(fmt.dtype), fmt.shape
        case VideoFormat():
            return np.dtype(np.uint8), fmt.shape
        case PointsFormat():
            return np.dtype(np.float16), (fmt.num_points, NUM_DIMS)
        case TextFormat():
            return np.dtype(np.uint8), (fmt.max_length,)
        case TableFormat():
            return np.dtype(np.float64), (len(fmt.columns),)


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
    dtype, shape = array_type(fmt)
    if isinstance(fmt, PointsFormat) and fmt.fourier and array.shape[1:] != shape[1:]:
        shape = (shape[0], fmt.fourier.channels)
    fits = array.dtype == dtype and array.ndim == len(shape) and array.shape[1:] == shape[1:]
    if isinstance(fmt, AudioFormat | PointsFormat | TextFormat):
        least = 0 if isinstance(fmt, AudioFormat) else 1
        fits = fits and least <= len(array) <= shape[0]
    else:
        fits = fits and array.shape == shape
    if not fits:
        raise ValueError(f"{array.dtype} of shape {list(array.shape)} does not fit {fmt}")


def encode_member(array: np.ndarray, fmt: MediaFormat) -> bytes:
    """The content of the shard member `fmt.member`, of an array that `decode` made."""
    from shards.npy import encode_npy

    if isinstance(fmt, ImageFormat) and fmt.encoding == "jpeg":
        return encode_jpeg(array, fmt.jpeg_quality)
    if isinstance(fmt, AudioFormat) and fmt.member.endswith(".flac"):
        return encode_flac(array, fmt.sample_rate)
    return encode_npy(array)


def encode_members(array: np.ndarray, fmt: MediaFormat) -> dict[str, bytes]:
    """All shard members of an array: its own, and points' Fourier features where they are asked."""
    members = {fmt.member: encode_member(array, fmt)}
    if isinstance(fmt, PointsFormat) and fmt.fourier is not None:
        from shards.npy import encode_npy

        members[fmt.fourier_member] = encode_npy(point_features(array, fmt))
    return members


def model_member(fmt: MediaFormat) -> str:
    """The shard member that a model reads: points' Fourier features where they are stored."""
    if isinstance(fmt, PointsFormat) and fmt.fourier is not None:
        return fmt.fourier_member
    return fmt.member


def decode_member(content: bytes | memoryview, fmt: MediaFormat) -> np.ndarray:
    """The array of a member of `encode_members`, as near as the encoding keeps it.

    Raises:
        MediaError: the content is damaged.
        shards.ShardError: likewise.
    """
    from shards.npy import decode_npy

    if isinstance(fmt, ImageFormat) and fmt.encoding == "jpeg":
        return decode_image(bytes(content), fmt)
    if isinstance(fmt, AudioFormat) and fmt.member.endswith(".flac"):
        return decode_flac(content)
    return decode_npy(content)


def media_to_dict(fmt: MediaFormat) -> dict[str, Any]:
    """JSON-safe form, with the modality under `modality`."""
    return {"modality": fmt.modality, **asdict(fmt)}


def media_from_dict(values: dict[str, Any]) -> MediaFormat:
    """The inverse of `media_to_dict`."""
    fields = dict(values)
    modality = fields.pop("modality")
    if modality == "audio" and fields.get("mel") is not None:
        fields["mel"] = MelFormat(**fields["mel"])
    if modality == "points" and fields["fourier"] is not None:
        fields["fourier"] = PointsFourier(**fields["fourier"])
    if modality == "table" and "vocabulary" in fields:
        fields["vocabulary"] = TableVocabulary.from_dict(fields["vocabulary"])
        return FittedTableFormat(**fields)
    return _FORMATS[modality](**fields)
