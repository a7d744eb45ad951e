"""Whether a sound file has all that it says, and whether libsndfile read all that it has."""

import hashlib
import io

import numpy as np

from pipeline.media.audio.files import find_samples
from pipeline.media.audio.mp3 import Frames
from pipeline.media.audio.ogg import damage_of
from pipeline.media.errors import MediaError

GSM_FRAME_BYTES = 33
MAX_MP3_SAMPLES_LESS = 10 * 1152
"""By how many of its samples a decoded MP3 may be shorter: encoders' delay, damage, the guess."""


def with_its_length(data: bytes, strict: bool) -> bytes:
    """The file, with its length in its header where that doesn't know it.

    Raises:
        MediaError: strict, and it has less sound than its header or its pages say.
    """
    if strict and data.startswith(b"OggS") and (damage := damage_of(data)):
        raise MediaError(damage)
    samples = find_samples(data)
    if samples is None:
        return data
    if strict and samples.shortage:
        raise MediaError(samples.shortage)
    return samples.told(data) if samples.declared is None else data


def is_read_in_part(frames: Frames, num_samples: int, strict: bool) -> bool:
    """Whether libsndfile, which guesses the lengths of MP3s, left out frames of one.

    Args:
        frames: what the file holds.
        num_samples: what libsndfile read of it, to its end.
        strict: whether recordings count, too, that follow those of the first one's table.
    """
    if strict and frames.declared is not None and frames.num > frames.declared + 1:
        return True
    return not frames.has_table and frames.samples > num_samples + MAX_MP3_SAMPLES_LESS


def check_flac(data: bytes) -> None:
    """Refuse a FLAC whose samples, all of them, have another MD5 than its header says.

    Many writers leave it at zeros; samples of other than 8, 16 or 24 bits are not looked at.
    """
    import soundfile

    bits = ((data[20] & 1) << 4 | data[21] >> 4) + 1
    declared = data[26:42]
    if bits not in (8, 16, 24) or not any(declared):
        return
    samples, _ = soundfile.read(io.BytesIO(data), dtype="int32", always_2d=True)
    held = (samples >> (32 - bits)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8]
    if hashlib.md5(held.tobytes(), usedforsecurity=False).digest() != declared:
        raise MediaError("damaged: the MD5 of its samples is not the one that its header says")


def check_gsm(data: bytes, strict: bool) -> None:
    """Every whole frame begins with the half-byte 0xD; strict, the last one is whole, too."""
    firsts = np.frombuffer(data, np.uint8)[: len(data) // GSM_FRAME_BYTES * GSM_FRAME_BYTES]
    firsts = firsts[::GSM_FRAME_BYTES]
    if len(firsts) == 0 or (firsts >> 4 != 0xD).any():
        raise MediaError("not GSM 06.10: a frame lacks its signature")
    if strict and (rest := len(data) % GSM_FRAME_BYTES):
        raise MediaError(
            f"cut short: {rest} of the {GSM_FRAME_BYTES} bytes of its last frame are there"
        )
