"""Turn raw media into arrays, in the same way for preprocessing and for a served model.

This package imports numpy. A decoder imports the one library that it needs when it is called,
because this package is part of every registered model.
"""

from pipeline.media.audio.decode import AudioFormat
from pipeline.media.audio.mel import MelFormat
from pipeline.media.decode import (
    array_type,
    check_array,
    decode,
    decode_all,
    decode_member,
    encode_member,
    encode_members,
    media_from_dict,
    media_to_dict,
    model_member,
)
from pipeline.media.errors import MediaError
from pipeline.media.format import MediaFormat
from pipeline.media.image.decode import ImageFormat
from pipeline.media.points.decode import PointsFormat, PointsFourier
from pipeline.media.table.decode import (
    FittedTableFormat,
    TableFormat,
    TableVocabulary,
    fit_vocabulary,
)
from pipeline.media.text.decode import TextFormat
from pipeline.media.video.decode import VideoFormat, decode_film

__all__ = [
    "AudioFormat",
    "FittedTableFormat",
    "ImageFormat",
    "MediaError",
    "MediaFormat",
    "MelFormat",
    "PointsFormat",
    "PointsFourier",
    "TableFormat",
    "TableVocabulary",
    "TextFormat",
    "VideoFormat",
    "array_type",
    "check_array",
    "decode",
    "decode_all",
    "decode_film",
    "decode_member",
    "encode_member",
    "encode_members",
    "fit_vocabulary",
    "media_from_dict",
    "media_to_dict",
    "model_member",
]
