"""Check that a sound file is complete and undamaged, and that libsndfile read all of it."""

import hashlib
import io

import numpy as np

from pipeline.media.audio.files import find_samples
from pipeline.media.audio.mp3 import Frames
from pipeline.media.audio.ogg import damage_of
from pipeline.media.errors import MediaError

GSM_FRAME_BYTES = 33
MAX_MP3_SAMPLES_LESS = 10 * 1152
"""How many samples shorter a decoded MP3 may be: encoder delay, damage and libsndfile's guess."""


def with_its_length(data: bytes, strict: bool) -> bytes:
    """Return the file, with its length written into a header that does not know it.

    Args:
        data: The file's bytes.
        strict: Whether to refuse a file that is cut short or damaged.

    Raises:
        MediaError: `strict` is set, and the file has less sound than its header or its Ogg pages
            say.
    """
    if strict and data.startswith(b"OggS") and (damage := damage_of(data)):
        raise MediaError(damage)
    samples = find_samples(data)
    if samples is None:
        return data
    if strict and samples.shortage:
        raise MediaError(samples.shortage)
    return samples.with_sizes(data) if samples.declared is None else data


def is_read_in_part(frames: Frames, num_samples: int, strict: bool) -> bool:
    """Return whether libsndfile left out frames of an MP3, whose length it guesses.

    Args:
        frames: The frames that the file holds.
        num_samples: The number of samples that libsndfile read, up to its end.
        strict: Whether recordings that follow the first one, beyond its table, also count.
    """
    if strict and frames.declared is not None and frames.num > frames.declared + 1:
        return True
    return not frames.has_table and frames.samples > num_samples + MAX_MP3_SAMPLES_LESS


def check_flac(data: bytes) -> None:
    """Refuse a FLAC file whose samples do not have the MD5 that its header declares.

    Many writers leave the MD5 at zeros; then there is nothing to check. Files whose samples do not
    have 8, 16 or 24 bits are not checked either.

    Raises:
        MediaError: The MD5 differs.
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
    """Check that every whole frame begins with the half-byte 0xD.

    Args:
        data: The file's bytes.
        strict: Whether the last frame must also be whole.

    Raises:
        MediaError: A frame has no signature, or the last frame is cut short.
    """
    firsts = np.frombuffer(data, np.uint8)[: len(data) // GSM_FRAME_BYTES * GSM_FRAME_BYTES]
    firsts = firsts[::GSM_FRAME_BYTES]
    if len(firsts) == 0 or (firsts >> 4 != 0xD).any():
        raise MediaError("not GSM 06.10: a frame lacks its signature")
    if strict and (rest := len(data) % GSM_FRAME_BYTES):
        raise MediaError(
            f"cut short: {rest} of the {GSM_FRAME_BYTES} bytes of its last frame are there"
        )
