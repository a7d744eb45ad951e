"""Sounds for studies: recorded notes of instruments, or sounds that a person gives."""

import math
import re
import struct
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.storage import remove_folder
from pipeline.studies.image_data import WITHOUT_TABLES
from pipeline.studies.sets import SPLITS, build_set, given_source
from shards import ShardSet

SOUNDS = "sounds"
SAMPLE_RATE, NUM_SAMPLES = 8000, 2000
INSTRUMENTS = {
    "alto": r"Alto(?!Alt)\w+",
    "baritone": r"Bari\w+",
    "choir": r"Choir-.*",
    "flute": r"Flute\w+#?\w*",
    "horn": r"FRHORN\d+|\w#?\d FrenchHorn1",
    "oboe": r"Oboe .*",
    "piano": r"Piano .*",
    "soprano": r"Sop\w+",
    "strings": r"ensstrings\w+",
    "trumpet": r"Trump\w+#?\w*",
}
"""The classes, and the names of their recordings in the sound font. `alto`, `baritone` and
`soprano` are saxophones."""
_SHORTEST, _SEMITONES = 0.3, 2.0
_TEST, _CROPS = 4, {"train": 320, "test": 60}
"""Every fourth recording of an instrument, from the second on, is a test's; and the sounds of each
instrument in each split."""
_SEED = 20170324
_FONT = "TimGM6mb.sf2"
_HEADER = struct.Struct("<20s5I2b2H")
"""A sample's name, start, end, two ends of its loop, rate, pitch, correction, link and type
(SoundFont 2.04, section 7.10)."""


class Recording(NamedTuple):
    """A recorded note.

    Attributes:
        name: Its name in the sound font.
        samples: int16 `[samples]`.
        rate: The samples in a second.
    """

    name: str
    samples: np.ndarray
    rate: int


def recordings(font: bytes) -> list[Recording]:
    """Return the recordings of a sound font that are long enough, in the order of the file.

    Raises:
        UserError: It is no SoundFont 2.
    """
    headers, samples = _chunk(font, b"shdr"), _chunk(font, b"smpl")
    if font[:4] != b"RIFF" or font[8:12] != b"sfbk" or headers is None or samples is None:
        raise UserError(f"{_FONT} of pretty_midi is no SoundFont 2; install pretty_midi again")
    pcm = np.frombuffer(samples, "<i2")
    found = []
    for at in range(0, len(headers) - _HEADER.size + 1, _HEADER.size):
        name, start, end, _, _, rate, *_ = _HEADER.unpack_from(headers, at)
        if rate and (end - start) / rate >= _SHORTEST:
            told = name.split(b"\0")[0].decode("latin-1").strip()
            found.append(Recording(told, pcm[start:end], rate))
    return found


def _chunk(font: bytes, name: bytes) -> bytes | None:
    """Return the content of the chunk of this name; None if there is none."""
    at = font.find(name)
    if at < 0 or len(font) < at + 8:
        return None
    (size,) = struct.unpack_from("<I", font, at + 4)
    return font[at + 8 : at + 8 + size]


def split_recordings(found: list[Recording]) -> dict[str, dict[str, list[Recording]]]:
    """Return the recordings by split and instrument, none in both splits."""
    parts: dict[str, dict[str, list[Recording]]] = {split: {} for split in SPLITS}
    for label, pattern in INSTRUMENTS.items():
        own = [each for each in found if re.fullmatch(pattern, each.name)]
        for split in SPLITS:
            is_test = split == "test"
            parts[split][label] = [
                each for number, each in enumerate(own) if (number % _TEST == 1) == is_test
            ]
    return parts


def crop(recording: Recording, random: np.random.Generator) -> np.ndarray:
    """Return a quarter of a second from a random place of a recording, int16 `[NUM_SAMPLES]`.

    It is played up to two semitones lower or higher, and louder or softer.
    """
    import soxr

    rate = recording.rate * 2 ** (random.uniform(-_SEMITONES, _SEMITONES) / 12)
    needed = math.ceil(NUM_SAMPLES * rate / SAMPLE_RATE)
    start = random.integers(max(1, len(recording.samples) - needed + 1))
    part = recording.samples[start : start + needed].astype(np.float32) / 32768
    played = soxr.resample(part, rate, SAMPLE_RATE)[:NUM_SAMPLES]
    sound = np.pad(played, (0, NUM_SAMPLES - len(played)))
    loudest = max(float(np.abs(sound).max()), 1e-4)
    return np.rint(sound / loudest * random.uniform(0.2, 0.9) * 32767).astype("<i2")


def sound_set(config: Config, folder: Path, given: Path | None, console: Console) -> ShardSet:
    """Make the set of sounds, or find it made.

    Args:
        config: The configuration with the section `data.audio`.
        folder: The folder of the study's data.
        given: The folder that the person gives, with class folders in `sounds/train` and
            `sounds/test`; None takes recorded notes of a sound font.
        console: The console, which shows the progress.

    Returns:
        The set, without position tables.

    Raises:
        UserError: The folder has no sounds, or pretty_midi is not installed.
    """
    if given is not None:
        source = given_source(given, SOUNDS)
    else:
        source = folder / "notes"
        if not (source / ".whole").exists():
            remove_folder(source)
            _write_notes(source)
            (source / ".whole").touch()
    config = with_values(config, WITHOUT_TABLES)
    return build_set(config, SOUNDS, (source / "train", source / "test"), folder, console)


def _write_notes(to: Path) -> None:
    package = find_spec("pretty_midi")
    if package is None or package.origin is None:
        raise UserError(
            "the study needs the sound font of pretty_midi: pip install "
            "'perceiver-pipeline[studies]'"
        )
    parts = split_recordings(recordings((Path(package.origin).parent / _FONT).read_bytes()))
    for split, labels in parts.items():
        for number, (label, own) in enumerate(labels.items()):
            random = np.random.default_rng((_SEED, split == "test", number))
            (to / split / label).mkdir(parents=True, exist_ok=True)
            for index in range(_CROPS[split]):
                with wave.open(str(to / split / label / f"{index:04d}.wav"), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(SAMPLE_RATE)
                    file.writeframes(crop(own[index % len(own)], random).tobytes())
