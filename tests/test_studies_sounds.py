"""The sounds of studies: the recordings of a sound font, their split, and the set made of them."""

import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_studies_data import base_of_digits

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.studies import sound_data
from pipeline.studies.data import make_set
from pipeline.studies.sets import split_loader
from pipeline.studies.sound_data import (
    INSTRUMENTS,
    NUM_SAMPLES,
    SOUNDS,
    Recording,
    crop,
    recordings,
    split_recordings,
)

RATE = 22_050


def font(*samples: tuple[str, int, int, int]) -> bytes:
    """A sound font of one second, with samples of a name, start, end and rate."""
    pcm = (np.arange(RATE) % 1000).astype("<i2").tobytes()
    headers = b"".join(
        struct.pack("<20s5I2b2H", name.encode(), start, end, 0, 0, rate, 60, 0, 0, 1)
        for name, start, end, rate in samples
    )
    parts = ((b"smpl", pcm), (b"shdr", headers))
    chunks = b"".join(name + struct.pack("<I", len(data)) + data for name, data in parts)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"sfbk" + chunks


def config_of_sounds(output: Path) -> Config:
    values = {
        "data.image": None,
        "data.audio": {"sample_rate": 8000, "seconds": 0.25},
        "model.adapter": {"kind": "chunks", "chunk_size": 8},
        "model.positions": {"num_bands": 2},
    }
    return with_values(base_of_digits(output), values)


def test_long_recordings_are_read_by_name_and_rate() -> None:
    made = font(("Oboe C4", 0, RATE, RATE), ("short", 0, 100, RATE), ("EOS", 0, 0, 0))
    (found,) = recordings(made)
    assert (found.name, found.rate) == ("Oboe C4", RATE)
    assert found.samples[:1001].tolist() == [*range(1000), 0]
    for wrong in (b"", made[:4], made[4:], made.replace(b"shdr", b"xxxx"), made[:30]):
        with pytest.raises(UserError, match="is no SoundFont 2; install pretty_midi again"):
            recordings(wrong)


def test_no_recording_is_in_both_splits_and_each_instrument_is_in_both() -> None:
    spec = find_spec("pretty_midi")
    assert spec is not None and spec.origin is not None
    found = recordings((Path(spec.origin).parent / "TimGM6mb.sf2").read_bytes())
    parts = split_recordings(found)
    names = {split: {(label, r.name) for label in INSTRUMENTS for r in parts[split][label]}
             for split in parts}  # fmt: skip
    assert not names["train"] & names["test"]
    counts = {split: [len(parts[split][label]) for label in INSTRUMENTS] for split in parts}
    assert counts == {
        "train": [8, 5, 5, 7, 7, 4, 6, 7, 7, 5],
        "test": [3, 2, 2, 3, 2, 2, 2, 2, 2, 2],
    }


def test_a_crop_is_a_part_of_the_recording_at_another_pitch() -> None:
    tone = np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE)
    recording = Recording("tone", (20_000 * tone).astype("<i2"), RATE)
    random = np.random.default_rng(0)
    for _ in range(5):
        sound = crop(recording, random)
        assert sound.dtype == np.int16 and len(sound) == NUM_SAMPLES
        assert 0.2 * 32767 <= np.abs(sound.astype(int)).max() <= 0.9 * 32767 + 1
        loudest = np.abs(np.fft.rfft(sound * np.hanning(NUM_SAMPLES))).argmax() * 4
        assert 400 / 2 ** (2 / 12) - 4 <= loudest <= 400 * 2 ** (2 / 12) + 4
    short = crop(Recording("click", recording.samples[:100], RATE), random)
    assert len(short) == NUM_SAMPLES and not short[200:].any()


def test_a_set_holds_the_sounds(
    tmp_path: Path, ray_cluster: None, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_data, "_CROPS", {"train": 3, "test": 1})
    config = config_of_sounds(tmp_path)
    with pytest.raises(UserError, match="has no folder sounds/train of class folders"):
        make_set(config, SOUNDS, 0, tmp_path, tmp_path, console)
    found = make_set(config, SOUNDS, 0, tmp_path, None, console)
    assert found.manifest.counts == {"train": 30, "test": 10}
    assert list(found.manifest.classes) == sorted(INSTRUMENTS)
    (batch,) = split_loader(config, found, "test")
    there = batch.weights > 0
    assert batch.fields["audio"][there].shape[:2] == (10, NUM_SAMPLES)
    assert sorted(batch.targets[there].tolist()) == list(range(10))
