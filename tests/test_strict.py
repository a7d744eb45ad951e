"""`data.strict`, clips: what reaches the decoders, and that older sets keep their digests."""

from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import ValidationError
from small_media import refusal
from sounds import encoded, tone

from pipeline.config.data import DataConfig
from pipeline.config.load import load_config
from pipeline.media import AudioFormat, VideoFormat, media_to_dict
from pipeline.media.members import MemberMaker
from pipeline.media.targets import TargetConfig
from pipeline.preprocess.identity import sandbox_settings, set_identity

CONFIG = "name: x\ndata: {train: raw, audio: {}}\nmodel: {adapter: {kind: chunks}}\n"


def loaded(folder: Path, *overrides: str):
    (folder / "x.yaml").write_text(CONFIG)
    return load_config(folder / "x.yaml", list(overrides))


def test_the_decoders_are_strict_unless_the_configuration_says_otherwise():
    wav = encoded(tone(440, 16_000), 16_000)
    settings = {
        "formats": {"audio": media_to_dict(AudioFormat())},
        "allow_missing": [],
        "target": asdict(TargetConfig(kind="none")),
        "classes": [],
    }
    parts = {"audio": (wav[: len(wav) // 2], "a.wav")}
    strict = MemberMaker({**settings, "strict": True})
    assert refusal(lambda: list(strict(parts, {}))).startswith("cut short: ")
    (members,) = MemberMaker({**settings, "strict": False})(parts, {})
    assert list(members) == ["audio.npy"]


def test_strict_is_part_of_a_sets_settings_only_where_it_is_off(tmp_path):
    on, off = loaded(tmp_path), loaded(tmp_path, "data.strict=false")
    assert on.data.strict and "data.strict" not in set_identity(on)
    assert set_identity(off)["data.strict"] is False
    assert sandbox_settings(on.data, (), {})["strict"] is True
    assert sandbox_settings(off.data, (), {})["strict"] is False


@pytest.mark.parametrize("clips", ["first", "all"])
def test_sets_of_whole_clips_keep_the_identity_of_older_ones(clips: str) -> None:
    config = load_config("audio", [f"data.audio.clips={clips}"])
    audio = set_identity(config)["data.audio"]
    assert audio.get("clips", "first") == clips and ("clips" in audio) == (clips == "all")


def test_two_modalities_cannot_both_be_cut_into_parts() -> None:
    films = VideoFormat(num_frames=2, height=8, width=8, clips="all")
    with pytest.raises(ValidationError, match="audio and video are both cut into parts"):
        DataConfig(train="films", video=films, audio=AudioFormat(clips="all"))
    DataConfig(train="films", video=films, audio=AudioFormat())
