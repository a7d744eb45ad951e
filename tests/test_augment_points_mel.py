"""Clouds of points and log-mel frames as `training.augment` changes them."""

from dataclasses import replace
from pathlib import Path

import torch
from augment_samples import changed, inputs_of
from modality_samples import FORMATS, POINTS, make_config

from perceiver_model.families.classifier import PerceiverClassifier
from pipeline.media import PointsFormat

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


def test_what_is_no_point_has_no_say_in_where_a_cloud_turns():
    media = PointsFormat(num_points=32, unit_cube=False)
    points, mask = inputs_of("points", media=PLAIN)
    points = points * 3 + 40
    mask[:, 20:] = False
    after, _ = changed("points", points, mask, {"rotate_degrees": 60.0}, media=media)
    centre, was = after[:, :20].mean(dim=1), points[:, :20].mean(dim=1)
    torch.testing.assert_close(centre, was, rtol=0, atol=1e-3)
    assert torch.allclose(distances(after[:, :20]), distances(points[:, :20]), atol=1e-4)
    assert not after[:, 20:].any()


def test_every_axis_of_a_cloud_has_a_scale_of_its_own_and_turns_go_every_way():
    media = PointsFormat(num_points=8, unit_cube=False)
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1, 1) for z in (-1, 1)])
    clouds, mask = corners.expand(256, 8, 3), torch.ones(256, 8, dtype=torch.bool)
    after, _ = changed("points", clouds, mask, {"scale": (0.5, 2.0)}, media=media)
    scales = (after / clouds)[:, 0]
    assert torch.allclose(after, clouds * scales[:, None])
    assert (scales.amin(dim=0) < 0.6).all() and (scales.amax(dim=0) > 1.9).all()
    related = torch.corrcoef(scales.T.double()) - torch.eye(3)
    assert related.abs().max() < 0.25
    turned, _ = changed("points", clouds, mask, {"rotate_degrees": 90.0}, media=media)
    turns = torch.linalg.lstsq(clouds, turned).solution
    axes = torch.stack([turns[:, 1, 2] - turns[:, 2, 1], turns[:, 2, 0] - turns[:, 0, 2],
                        turns[:, 0, 1] - turns[:, 1, 0]], dim=1)  # fmt: skip
    axes = axes / axes.norm(dim=1, keepdim=True)
    assert (axes.mean(dim=0).abs() < 0.15).all()
    assert ((axes**2).mean(dim=0) - 1 / 3).abs().max() < 0.08, "evenly over the sphere"


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


def test_mel_masks_lie_anywhere_in_the_sound_whatever_its_shift():
    frames, mask, length = mel_frames(256)
    asked = {"shift_seconds": 0.05, "mask_seconds": 0.06}
    after, after_mask = changed("mel", frames, mask, asked)
    kept, numbers = after_mask[:, :, 0], after[:, :, 0, 0]
    shift = (torch.arange(length) + 1 - numbers).masked_fill(numbers == 0, -99).amax(dim=1)
    hidden = kept & (numbers == 0)
    whole = shift >= 3  # away from the first frame
    assert whole.any() and torch.equal(kept[whole].int().argmax(dim=1), shift[whole].long())
    places = {place - int(right) for row, right in zip(hidden[whole], shift[whole], strict=True)
              for place in row.nonzero().flatten().tolist()}  # fmt: skip
    assert places == {*range(16)}
    related = torch.corrcoef(torch.stack([shift, hidden.sum(dim=1).float()]))[0, 1]
    assert related.abs() < 0.25
    after, _ = changed("mel", frames, mask, {"mask_bands": 2})
    bands = (after[:, :16, 0] == 0).all(dim=1)
    assert bands.any(dim=0).all(), "each band is hidden from some recording"


def test_a_curve_over_the_bands_is_the_same_in_all_frames_and_within_its_bound():
    frames, mask = inputs_of("mel", 64)
    after, kept = changed("mel", frames, mask, {"band_gain": 0.5})
    assert torch.equal(kept, mask)
    curves = (after - frames)[:, 0, 0]
    assert torch.allclose((after - frames)[mask], curves[:, None, None].expand_as(frames)[mask],
                          atol=1e-5)  # fmt: skip
    assert curves.abs().max() <= 0.5 + 1e-5 and curves.abs().amax(dim=0).min() > 0.3
    assert curves.std(dim=1).min() > 0.01 and not after[~mask].any()
    still, _ = changed("mel", frames, mask, {"shift_seconds": 0.1})
    both, _ = changed("mel", frames, mask, {"shift_seconds": 0.1, "band_gain": 1e-6})
    torch.testing.assert_close(both, still, rtol=0, atol=1e-5)  # the other draws stay


def test_the_noise_of_mel_frames_is_up_to_its_share_of_the_recording():
    frames, mask, _ = mel_frames(256)
    after, after_mask = changed("mel", frames, mask, {"noise": 0.5})
    assert torch.equal(after_mask, mask)
    noise = (after - frames)[mask].reshape(256, -1)
    assert not (after - frames)[~mask].any()
    loudness = frames[mask].reshape(256, -1).square().mean(dim=1).sqrt()
    shares = noise.square().mean(dim=1).sqrt() / loudness
    assert 0.4 < shares.max() < 0.6 and shares.min() < 0.1
    assert noise.mean().abs() < 0.1 * loudness.mean()
