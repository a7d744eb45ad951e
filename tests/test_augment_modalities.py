"""What `training.augment` asks for is done to every modality that takes it, or refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from augment_samples import (
    ASKED,
    COLOURED,
    IMAGE,
    KINDS,
    MIXED,
    REPEATED,
    TAKEN,
    changed,
    config_of,
    inputs_of,
)
from modality_samples import ADAPTERS, COLUMNS, FORMATS, POINTS, make_config

from pipeline.config.training import AugmentConfig
from pipeline.config.tree import Config
from pipeline.media import MediaFormat, media_to_dict
from pipeline.training.augmentation.batch import augment_batch


def test_every_field_is_tried():
    assert {*ASKED, *MIXED, *COLOURED, *REPEATED} == {*AugmentConfig.model_fields}
    assert set().union(*TAKEN.values()) == {*ASKED} and {*TAKEN} == {*KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ASKED)
def test_a_field_changes_the_modality_or_is_refused_with_those_that_do(kind, field):
    asked = {field: ASKED[field]}
    if field not in TAKEN[kind]:
        with pytest.raises(ValueError, match=rf"training.augment.{field} changes none") as caught:
            config_of(kind, asked)
        told = str(caught.value).rpartition("takes ")[2]
        fields = {name for name in ASKED if name in told.replace(",", " ").split()}
        assert fields == TAKEN[kind] and ("no augmentation" in told) == (not fields)
        return
    assert getattr(config_of(kind, asked).training.augment, field) == ASKED[field]
    inputs, mask = inputs_of(kind)
    after, after_mask = changed(kind, inputs, mask, asked)
    again, again_mask = changed(kind, inputs, mask, asked)
    other, _ = changed(kind, inputs, mask, asked, seed=4)
    assert torch.equal(after, again) and not torch.equal(after, other)
    assert after_mask is again_mask is None or torch.equal(after_mask, again_mask)
    # Each sample alike, on however many workers.
    parts = [
        changed(kind, inputs[half], None if mask is None else mask[half], asked,
                rank=rank, global_batch=16)
        for rank, half in enumerate((slice(0, 8), slice(8, 16)))
    ]  # fmt: skip
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), after, rtol=0, atol=1e-6)
    # Something happens to most samples, and what is no sample stays nothing.
    before = inputs[..., :3] if kind == "points" else inputs
    scale = {torch.uint8: 255.0, torch.int16: 32768.0}.get(before.dtype, 1.0)
    differs = (after - before / scale).abs().flatten(1).amax(dim=1) > 1e-4
    assert differs.float().mean() >= (0.25 if field == "flip" else 0.7)
    if after_mask is not None:
        assert after_mask.shape == mask.shape and after_mask.any(dim=1).all()
        assert not after.reshape(*after_mask.shape, -1)[~after_mask].any()


@pytest.mark.parametrize("kind", KINDS)
def test_without_augmentation_a_batch_stays_as_it_is(kind):
    inputs, mask = inputs_of(kind)
    after, after_mask = changed(kind, inputs, mask, {})
    assert after is inputs and after_mask is mask


# --- films ---


def test_all_frames_of_a_film_change_as_one_picture_does():
    film = torch.randint(0, 256, (6, 1, 9, 8, 3), dtype=torch.uint8)
    asked = {"flip": True, "rotate_degrees": 30.0, "crop_area": (0.5, 1.0)}
    after, _ = changed("video", film.expand(6, 5, 9, 8, 3), None, asked)
    still, _ = changed("image", film[:, 0], None, asked)
    for frame in range(5):
        assert torch.equal(after[:, frame], still)


# --- amounts ---


@pytest.mark.parametrize(
    ("kind", "augment", "told"),
    [
        ("mel", {"shift_seconds": 0.005}, "shift_seconds is 0.005, but the sound has a step"),
        ("mel", {"mask_seconds": 0.005}, "mask_seconds is 0.005, but the sound has a step"),
        ("image", {"shift_pixels": 0.5}, "shift_pixels is 0.5, but images move by whole pixels"),
        ("image", {"shift_pixels": 10.0}, "shift_pixels is 10, but data.image is 12 x 10 pixels"),
        ("video", {"shift_pixels": 8.0}, "shift_pixels is 8, but data.video is 8 x 8 pixels"),
        ("mel", {"shift_seconds": 0.004}, "shift_seconds is 0.004, but the sound has a step"),
        ("mel", {"mask_bands": 8}, "mask_bands is 8, but data.audio.mel has 8 bands"),
        ("mel", {"mask_seconds": 0.5}, "mask_seconds is 0.5, but data.audio.seconds is 0.5"),
        ("sound", {"shift_seconds": 0.0001}, "shift_seconds is 0.0001, but the sound has a step"),
        ("sound", {"shift_seconds": 2.0}, "shift_seconds is 2, but data.audio.seconds is 0.5"),
        ("video", {"shift_pixels": 0.3}, "shift_pixels is 0.3, but images move by whole pixels"),
    ],
)
def test_amounts_that_would_change_nothing_or_leave_nothing_are_refused(kind, augment, told):
    with pytest.raises(ValueError, match=told):
        config_of(kind, augment)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("image", {"shift_pixels": 0.55}),
        ("sound", {"shift_seconds": 0.55 / 4000}),
        ("mel", {"shift_seconds": 0.0055}),
        ("mel", {"mask_seconds": 0.0055}),
    ],
)
def test_the_least_amounts_that_are_taken_change_something(kind, asked):
    config_of(kind, asked)
    inputs, mask = inputs_of(kind, 64)
    after, _ = changed(kind, inputs, mask, asked)
    scale = {"image": 255, "sound": 32768, "mel": 1}[kind]
    assert not torch.allclose(after, inputs / scale, atol=1e-4)


# --- several modalities ---


def joint_formats() -> dict[str, MediaFormat]:
    return {"image": IMAGE, "audio": FORMATS["sound"], "points": POINTS, "text": FORMATS["text"]}


def joint_batch():
    kinds = {"image": "image", "audio": "sound", "points": "points", "text": "text"}
    made = {name: inputs_of(kind) for name, kind in kinds.items()}
    masks = {name: mask for name, (_, mask) in made.items() if mask is not None}
    return {name: inputs for name, (inputs, _) in made.items()}, masks


def test_each_of_several_modalities_changes_by_its_own_fields_and_draws():
    inputs, masks = joint_batch()
    asked = {"flip": True, "gain_db": 6.0, "scale": (0.5, 0.9)}
    after, after_masks = augment_batch(
        inputs, masks, joint_formats(), AugmentConfig(**asked), seed=1, rank=0, global_batch=16
    )
    assert after["text"] is inputs["text"] and {*after_masks} == {*masks}
    assert after["image"].dtype == after["audio"].dtype == torch.float32
    assert after["points"].shape == (16, 32, 3)
    # The same draws for two modalities would tie what happens to them.
    twins = {"image": inputs["image"], "video": inputs["image"].unsqueeze(1)}
    video = replace(FORMATS["video"], num_frames=1, height=12, width=10)
    formats = {"image": IMAGE, "video": video}
    moved, none = augment_batch(
        twins, None, formats, AugmentConfig(flip=True), seed=1, rank=0, global_batch=16
    )
    assert none is None and not torch.equal(moved["image"], moved["video"][:, 0])


def test_the_mask_of_one_of_several_modalities_follows_its_shift():
    inputs, masks = joint_batch()
    after, after_masks = augment_batch(
        inputs, masks, joint_formats(), AugmentConfig(shift_seconds=0.1), seed=1, rank=0,
        global_batch=16,
    )  # fmt: skip
    assert not torch.equal(after_masks["audio"], masks["audio"])
    assert not after["audio"][~after_masks["audio"]].any()
    assert all(after_masks[name] is masks[name] for name in ("points", "text"))


def test_a_field_that_none_of_several_modalities_takes_is_refused_by_all_their_names():
    config = make_config("text", Path("/nowhere")).tree()
    for kind in ("table", "points"):
        config["data"][kind] = media_to_dict(COLUMNS if kind == "table" else POINTS)
        del config["data"][kind]["modality"]
    config["model"]["modalities"] = {name: {"adapter": ADAPTERS[name]}
                                     for name in ("text", "table", "points")}  # fmt: skip
    config["model"]["adapter"] = None
    config["training"]["augment"] = {"gain_db": 6.0}
    told = (
        "gain_db changes none of the data: points takes .*; text takes mask_bytes; table takes no"
    )
    with pytest.raises(ValueError, match=told):
        Config.model_validate(config, strict=False)
    config["training"]["augment"] = {"jitter": 0.1}
    Config.model_validate(config, strict=False)
