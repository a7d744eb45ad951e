"""What ``training.augment`` asks for is done to every modality that takes it, or refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from modality_samples import ADAPTERS, COLUMNS, FORMATS, POINTS, make_config, make_shards, raw_media

from perceiver_model.classifier import PerceiverClassifier
from pipeline.augment_batch import augment_batch
from pipeline.batches import inputs_on, media_loader
from pipeline.collate import collate
from pipeline.config import Config
from pipeline.config_training import AugmentConfig
from pipeline.media import ImageFormat, MediaFormat, PointsFormat, array_type, decode, media_to_dict
from pipeline.train_loop import TrainLoop
from shards import ShardReader

IMAGE = ImageFormat(height=12, width=10, channels=1)
KINDS: dict[str, MediaFormat] = {**FORMATS, "image": IMAGE}

ASKED = {
    "shift_pixels": 2.0,
    "rotate_degrees": 25.0,
    "scale": (0.7, 0.9),
    "flip": True,
    "crop_area": (0.3, 0.6),
    "jitter": 0.02,
    "shift_seconds": 0.1,
    "gain_db": 6.0,
    "mask_seconds": 0.1,
    "mask_bands": 3,
}
"""A value for every field that changes something."""

PICTURES = {"shift_pixels", "rotate_degrees", "scale", "flip", "crop_area"}
TAKEN = {
    "image": PICTURES,
    "video": PICTURES,
    "points": {"rotate_degrees", "scale", "jitter"},
    "sound": {"shift_seconds", "gain_db"},
    "mel": {"shift_seconds", "mask_seconds", "mask_bands"},
    "text": set(),
    "table": set(),
}


def inputs_of(kind: str, count: int = 16, media: MediaFormat | None = None):
    """Inputs and mask of a batch of real media."""
    media = media or KINDS[kind]
    if kind in ("image", "video"):  # the sample films are of one grey
        generator, (_, shape) = np.random.default_rng(0), array_type(media)
        arrays = [generator.integers(0, 256, shape, np.uint8) for _ in range(count)]
    else:
        arrays = [decode(raw_media(kind, number), media) for number in range(count)]
    return collate(arrays, media)


def changed(kind: str, inputs, mask, asked: dict, media: MediaFormat | None = None, **share):
    where = {"seed": 3, "rank": 0, "world_size": 1} | share
    formats = {kind: media or KINDS[kind]}
    return augment_batch(inputs, mask, formats, AugmentConfig(**asked), **where)


def test_every_field_is_tried():
    assert {*ASKED} == {*AugmentConfig.model_fields}
    assert set().union(*TAKEN.values()) == {*ASKED} and {*TAKEN} == {*KINDS}


def config_of(kind: str, augment: dict) -> Config:
    if kind == "image":
        config = make_config("text", Path("/nowhere")).tree()
        config["data"]["text"], config["data"]["image"] = None, media_to_dict(IMAGE)
        del config["data"]["image"]["modality"]
        config["model"]["adapter"] = {"kind": "pixels"}
        config["training"]["augment"] = augment
        return Config.model_validate(config, strict=False)
    return make_config(kind, Path("/nowhere"), augment=augment)


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
                rank=rank, world_size=2)
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


# --- points ---

PLAIN = replace(POINTS, fourier=None)


def test_stored_features_are_computed_anew_from_the_moved_points():
    asked = {"rotate_degrees": 90.0, "scale": (0.5, 2.0)}
    features, mask = inputs_of("points")
    points, _ = inputs_of("points", media=PLAIN)
    assert features.shape[2] == POINTS.fourier.channels
    after, _ = changed("points", features, mask, asked)
    plain, _ = changed("points", points, mask, asked, media=PLAIN)
    assert after.shape == points.shape and torch.equal(after, plain)
    model = PerceiverClassifier(make_config("points", Path("/nowhere")).classifier(2)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(after, mask), model(plain, mask))
        assert not torch.allclose(model(after, mask), model(features, mask), atol=1e-4)


def test_clouds_of_the_unit_cube_stay_in_it():
    points, mask = inputs_of("points", media=PLAIN)
    mask[:, 20:] = False
    asked = {"rotate_degrees": 180.0, "scale": (0.5, 3.0), "jitter": 0.1}
    after, _ = changed("points", points, mask, asked, media=PLAIN)
    assert torch.allclose(after.abs().amax(dim=(1, 2)), torch.ones(16))
    assert after[:, :20].mean(dim=1).abs().max() < 1e-5 and not after[:, 20:].any()


def distances(points):
    return (points[:, :, None].double() - points[:, None]).norm(dim=3)


def test_other_clouds_keep_their_place_and_a_turn_their_shape():
    media = PointsFormat(num_points=32, unit_cube=False)
    points, mask = inputs_of("points", media=PLAIN)
    points = points * 3 + 40
    after, _ = changed("points", points, mask, {"rotate_degrees": 60.0}, media=media)
    torch.testing.assert_close(after.mean(dim=1), points.mean(dim=1), rtol=0, atol=1e-3)
    assert torch.allclose(distances(after), distances(points), atol=1e-4)
    centred, turned = (cloud - cloud.mean(dim=1, keepdim=True) for cloud in (points, after))
    cosines = torch.nn.functional.cosine_similarity(centred, turned, dim=2)
    assert torch.rad2deg(cosines.clamp(-1, 1).acos()).max() < 60.1
    jittered, _ = changed("points", points, mask, {"jitter": 0.02}, media=media)
    half = centred.abs().amax(dim=(1, 2))
    assert torch.allclose((jittered - points).std(dim=(1, 2)) / half, torch.tensor(0.02), rtol=0.3)


# --- stored mel ---


def mel_frames(batch: int = 64):
    """Frames that say their own number, and 16 of them that hold sound."""
    media = FORMATS["mel"]
    length, num_mels = media.shape
    frames = torch.arange(1.0, length + 1)[None, :, None, None].expand(batch, length, 1, num_mels)
    mask = (torch.arange(length) < 16)[None, :, None].expand(batch, length, 1)
    return frames * mask.unsqueeze(-1), mask, length


def test_mel_frames_shift_by_whole_frames_with_their_mask():
    frames, mask, _ = mel_frames()
    after, after_mask = changed("mel", frames, mask, {"shift_seconds": 0.05})
    assert torch.equal(after[..., 0] != 0, after_mask)
    firsts = {int(row[:, 0].int().argmax()) - int(values[row[:, 0]][0, 0, 0]) + 1
              for row, values in zip(after_mask, after, strict=True)}  # fmt: skip
    assert firsts == {*range(-5, 6)}  # 10 ms a frame


def test_mel_masks_hide_no_more_than_asked_and_leave_half():
    frames, mask, _ = mel_frames(256)
    after, after_mask = changed("mel", frames, mask, {"mask_seconds": 0.03})
    assert torch.equal(after_mask, mask)
    hidden = ((after == 0) & mask.unsqueeze(-1)).all(dim=3).sum(dim=(1, 2))
    assert {*hidden.tolist()} == {0, 1, 2, 3}
    after, _ = changed("mel", frames, mask, {"mask_seconds": 0.4})
    assert ((after == 0) & mask.unsqueeze(-1)).all(dim=3).sum(dim=(1, 2)).max() == 8
    after, _ = changed("mel", frames, mask, {"mask_bands": 2})
    bands = ((after == 0) | ~mask.unsqueeze(-1)).all(dim=1).sum(dim=(1, 2))
    assert {*bands.tolist()} == {0, 1, 2}


@pytest.mark.parametrize(
    ("kind", "augment", "told"),
    [
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
        inputs, masks, joint_formats(), AugmentConfig(**asked), seed=1, rank=0, world_size=1
    )
    assert after["text"] is inputs["text"] and {*after_masks} == {*masks}
    assert after["image"].dtype == after["audio"].dtype == torch.float32
    assert after["points"].shape == (16, 32, 3)
    # The same draws for two modalities would tie what happens to them.
    twins = {"image": inputs["image"], "video": inputs["image"].unsqueeze(1)}
    video = replace(FORMATS["video"], num_frames=1, height=12, width=10)
    formats = {"image": IMAGE, "video": video}
    moved, none = augment_batch(
        twins, None, formats, AugmentConfig(flip=True), seed=1, rank=0, world_size=1
    )
    assert none is None and not torch.equal(moved["image"], moved["video"][:, 0])


def test_a_field_that_none_of_several_modalities_takes_is_refused_by_all_their_names():
    config = make_config("text", Path("/nowhere")).tree()
    for kind in ("table", "points"):
        config["data"][kind] = media_to_dict(COLUMNS if kind == "table" else POINTS)
        del config["data"][kind]["modality"]
    config["model"]["modalities"] = {name: {"adapter": ADAPTERS[name]}
                                     for name in ("text", "table", "points")}  # fmt: skip
    config["model"]["adapter"] = None
    config["training"]["augment"] = {"flip": True}
    told = "flip changes none of the data: points takes .*; text takes no aug.*; table takes no aug"
    with pytest.raises(ValueError, match=told):
        Config.model_validate(config, strict=False)
    config["training"]["augment"] = {"jitter": 0.1}
    Config.model_validate(config, strict=False)


# --- the training loop ---


@pytest.mark.parametrize("kind", ["video", "points", "mel", "sound"])
def test_the_training_loop_changes_its_batches(kind, tmp_path):
    asked = {field: ASKED[field] for field in TAKEN[kind]}
    config = make_config(kind, tmp_path, augment=asked)
    reader = ShardReader(make_shards(kind, tmp_path, config, count=8), "train")
    (batch,) = media_loader(reader, config.data.formats, batch_size=8, shuffle=False)
    place = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    found, mask = TrainLoop._augment(SimpleNamespace(config=config, place=place), batch, 3)
    inputs, inputs_mask = inputs_on(batch, config.data.formats, place.device)
    expected, expected_mask = changed(kind, inputs, inputs_mask, asked)
    assert torch.equal(found, expected)
    assert (mask is None and expected_mask is None) or torch.equal(mask, expected_mask)
    assert found.shape != inputs.shape or not torch.equal(found, inputs)
