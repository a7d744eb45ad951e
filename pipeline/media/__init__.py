"""Raw media to arrays: what preprocessing and a served model do alike.

Imports numpy and, when a decoder is called, Pillow or soundfile: this package travels with every
registered model.
"""

from pipeline.media.audio import AudioFormat
from pipeline.media.decode import MediaFormat, decode, media_from_dict, media_to_dict
from pipeline.media.errors import MediaError
from pipeline.media.images import ImageFormat

__all__ = [
    "AudioFormat",
    "ImageFormat",
    "MediaError",
    "MediaFormat",
    "decode",
    "media_from_dict",
    "media_to_dict",
]
