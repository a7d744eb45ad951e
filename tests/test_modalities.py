"""What a modality says of itself, as the rest of the pipeline asks it."""

import numpy as np
import pytest
from modality_samples import MEL, POINTS, SOUND, TABLE, TEXT, VIDEO
from small_media import film, grey_frames, tone

from pipeline.inputs.modality import inputs_of
from pipeline.media import MediaError, check_array, media_from_dict, media_to_dict
from pipeline.media.members import MemberMaker
from pipeline.media.registered import MODALITIES, modality

FORMATS = (VIDEO, POINTS, TEXT, SOUND, MEL, TABLE)
SILENT = film(grey_frames([60] * 8), fps=4)
LOUD = film(grey_frames([60] * 8), fps=4, sound=tone(2.0, 48000))


def test_every_registered_modality_has_the_name_of_its_format():
    for name in MODALITIES:
        assert modality(name).format.modality == name
        assert all(each.islower() for each in modality(name).extensions if each.isalpha())


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.modality)
def test_a_format_survives_json(fmt):
    assert media_from_dict(media_to_dict(fmt)) == fmt


@pytest.mark.parametrize("fmt", [SOUND, POINTS, TEXT], ids=lambda fmt: fmt.modality)
def test_sound_alone_may_be_empty(fmt):
    dtype, shape = modality(fmt.modality).array_type(fmt)
    empty = np.zeros((0, *shape[1:]), dtype)
    if fmt is SOUND:
        check_array(empty, fmt)
    else:
        with pytest.raises(ValueError, match="does not fit"):
            check_array(empty, fmt)


def test_texts_have_one_length_where_all_batches_must():
    inputs = inputs_of(TEXT)
    assert (inputs.padded_length(TEXT), inputs.full_length(TEXT)) == (None, TEXT.max_length)


def members_of(data, allow_missing):
    make = MemberMaker(
        {
            "formats": {"audio": media_to_dict(SOUND), "video": media_to_dict(VIDEO)},
            "allow_missing": allow_missing,
            "target": {"kind": "none"},
            "classes": [],
            "strict": True,
        }
    )
    return [set(members) for members in make({"video": (data, "a.mp4")}, {})]


def test_a_film_brings_its_sound_and_must_unless_it_may_lack_it():
    assert members_of(LOUD, []) == [{"video.npy", "audio.flac"}]
    assert members_of(SILENT, ["audio"]) == [{"video.npy"}]
    with pytest.raises(MediaError, match="the film has no sound track"):
        members_of(SILENT, [])
