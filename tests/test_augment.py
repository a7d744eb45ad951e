"""Augmentation of images and of sound: by the seed alone, whatever the rank."""

import pytest
import torch

from pipeline.config.training import AugmentConfig
from pipeline.training.augmentation.draws import step_seed
from pipeline.training.augmentation.images import augment_images, augment_masks
from pipeline.training.augmentation.sound import augment_audio

# --- augmentation of images ---

EVERYTHING = AugmentConfig(
    shift_pixels=3.0, rotate_degrees=20.0, scale=(0.8, 1.2), flip=True, crop_area=(0.5, 1.0)
)


def some_images(batch: int = 8, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, height, width, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def augmented(images: torch.Tensor, config: AugmentConfig, seed: int = 1) -> torch.Tensor:
    return augment_images(images, config, seed=seed, rank=0, global_batch=len(images))


@pytest.mark.parametrize("config", [AugmentConfig(), AugmentConfig(shift_seconds=0.1, gain_db=3.0)])
def test_images_that_nothing_is_to_change_come_back_as_they_are(config):
    images = some_images()
    assert augmented(images, config) is images


@pytest.mark.parametrize(
    "config",
    [
        EVERYTHING,
        AugmentConfig(shift_pixels=3.0),
        AugmentConfig(rotate_degrees=180.0),
        AugmentConfig(scale=(0.5, 2.0)),
        AugmentConfig(crop_area=(0.08, 1.0)),
        AugmentConfig(flip=True),
    ],
)
def test_images_change_by_the_seed_alone_and_stay_images(config):
    images = some_images(32)
    once = augmented(images, config)
    assert torch.equal(once, augmented(images, config))
    assert not torch.equal(once, augmented(images, config, seed=2))
    assert (once.dtype, once.shape) == (torch.float32, images.shape)
    assert once.min() >= 0 and once.max() <= 1 + 1e-6
    assert not torch.allclose(once, images / 255, atol=0.1)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_what_happens_to_an_image_does_not_depend_on_its_rank(world_size):
    images = some_images()
    whole = augmented(images, EVERYTHING)
    size = -(-len(images) // world_size)
    padded = torch.cat([images, images[: world_size * size - len(images)]])  # the last rank's rows
    parts = [
        augment_images(part, EVERYTHING, seed=1, rank=rank, global_batch=len(images))
        for rank, part in enumerate(padded.split(size))
    ]
    assert torch.allclose(torch.cat(parts)[: len(images)], whole, atol=1e-6)


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """An image moved by whole pixels, zeros where nothing came in."""
    height, width, _ = image.shape
    result = torch.zeros_like(image)
    rows, columns = (
        slice(max(0, down), height + min(0, down)),
        slice(max(0, right), width + min(0, right)),
    )
    from_rows = slice(max(0, -down), height + min(0, -down))
    from_columns = slice(max(0, -right), width + min(0, -right))
    result[rows, columns] = image[from_rows, from_columns]
    return result


def test_shifts_move_whole_pixels_and_fill_with_zeros():
    images = some_images(40)
    after = augmented(images, AugmentConfig(shift_pixels=2.0))
    found = set()
    for image, result in zip(images.float() / 255, after, strict=True):
        fits = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.allclose(moved(image, down, right), result, atol=1e-4)
        ]
        assert len(fits) == 1
        found.add(fits[0])
    assert {down for down, _ in found} == {right for _, right in found} == {-2, -1, 0, 1, 2}


def test_masks_move_with_their_images():
    # The pixels of large blocks say their class, so that a moved image tells its moved mask.
    classes = torch.randint(0, 4, (16, 4, 4), generator=torch.Generator().manual_seed(0))
    masks = classes.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    share = {"seed": 1, "rank": 0, "global_batch": len(masks)}
    after = augment_masks(masks, EVERYTHING, **share)
    images = augmented((masks * 50 + 50)[..., None], EVERYTHING)[..., 0] * 255
    assert after.dtype == torch.uint8 and {*after.unique().tolist()} == {0, 1, 2, 3, 255}
    inside = after != 255
    near = (images - (after * 50.0 + 50)).abs() < 1
    assert near[inside].float().mean() > 0.7  # others lie at the blocks' borders
    assert (images[~inside] == 0).float().mean() > 0.5  # at the border itself zeros blend in
    assert augment_masks(masks, AugmentConfig(brightness=0.1), **share) is masks
    halves = [
        augment_masks(part, EVERYTHING, seed=1, rank=rank, global_batch=16)
        for rank, part in enumerate(masks.chunk(2))
    ]
    assert (torch.cat(halves) == after).float().mean() > 0.999
    assert (augment_masks(masks * 0 + 255, EVERYTHING, **share) == 255).all()


def test_flip_mirrors_about_half_of_the_images():
    images = some_images(64)
    after = augmented(images, AugmentConfig(flip=True))
    before = images.float() / 255
    kept = [torch.allclose(a, b, atol=1e-4) for a, b in zip(after, before, strict=True)]
    mirrored = [torch.allclose(a, b.flip(1), atol=1e-4) for a, b in zip(after, before, strict=True)]
    assert all(k != m for k, m in zip(kept, mirrored, strict=True))
    assert 16 < sum(mirrored) < 48


def ramp(height: int, width: int) -> torch.Tensor:
    """Red grows to the right and green downwards: a pixel tells where it came from."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x * 4, y * 4, x * 0], dim=-1).to(torch.uint8)


def test_a_crop_keeps_its_share_of_the_area():
    images = ramp(60, 60).expand(50, 60, 60, 3)
    after = augmented(images, AugmentConfig(crop_area=(0.25, 0.5))) * 255 / 4
    inner = after[:, 5:-5, 5:-5]  # away from the border, where zeros blend in
    spans = [inner[..., 0].amax((1, 2)) - inner[..., 0].amin((1, 2)),
             inner[..., 1].amax((1, 2)) - inner[..., 1].amin((1, 2))]  # fmt: skip
    shares = spans[0] * spans[1] / 49**2
    assert shares.min() > 0.24 and shares.max() < 0.51
    assert shares.max() - shares.min() > 0.15
    aspects = spans[0] / spans[1]
    assert 0.74 < aspects.min() < 0.85 and 1.18 < aspects.max() < 1.35


@pytest.mark.parametrize(("scale", "span"), [((2.0, 2.0), 0.5), ((0.5, 0.5), 2.0)])
def test_scale_grows_and_shrinks_about_the_centre(scale, span):
    after = augmented(ramp(60, 60)[None], AugmentConfig(scale=scale))[0] * 255 / 4
    centre = after[20:40, 20:40]
    assert centre[10, 19, 0] - centre[10, 0, 0] == pytest.approx(19 * span, abs=0.1)
    assert (centre[10, 9, 0] + centre[10, 10, 0]) / 2 == pytest.approx(29.5, abs=0.1)


def test_turning_keeps_distances_in_oblong_images():
    images = ramp(30, 60).expand(20, 30, 60, 3)
    after = augmented(images, AugmentConfig(rotate_degrees=30.0)) * 255 / 4
    step_right = after[:, 15, 31, :2] - after[:, 15, 30, :2]
    step_down = after[:, 16, 30, :2] - after[:, 15, 30, :2]
    assert torch.allclose(step_right.norm(dim=1), torch.ones(20), atol=0.02)
    assert torch.allclose(step_down.norm(dim=1), torch.ones(20), atol=0.02)
    angles = torch.rad2deg(torch.atan2(step_right[:, 1], step_right[:, 0]))
    assert angles.abs().max() < 31 and angles.std() > 8


def test_a_crop_lies_anywhere_in_the_image_and_never_beyond():
    images = ramp(60, 60).expand(64, 60, 60, 3)
    after = augmented(images, AugmentConfig(crop_area=(0.25, 0.25))) * 255 / 4
    centres = after[:, 29:31, 29:31, :2].mean(dim=(1, 2))
    assert (centres.amin(dim=0) < 20).all() and (centres.amax(dim=0) > 40).all()
    white = torch.full((64, 60, 60, 3), 255, dtype=torch.uint8)
    after = augmented(white, AugmentConfig(crop_area=(0.9, 1.0)))
    assert after[:, 1:-1, 1:-1].min() > 0.999  # at the border itself zeros blend in


def unrelated(*values: torch.Tensor) -> bool:
    """Whether what was drawn for 256 samples says nothing of each other."""
    related = torch.corrcoef(torch.stack([value.double() for value in values]))
    return bool((related - torch.eye(len(values))).abs().max() < 0.25)


def test_the_changes_of_an_image_are_drawn_independently():
    images = ramp(60, 60).expand(256, 60, 60, 3)
    turned = augmented(images, AugmentConfig(rotate_degrees=30.0, scale=(0.8, 1.2), flip=True))
    turned = turned * 255 / 4
    step_right = turned[:, 30, 31, :2] - turned[:, 30, 30, :2]
    step_down = turned[:, 31, 30, :2] - turned[:, 30, 30, :2]
    angle, zoom = torch.atan2(step_down[:, 0], step_down[:, 1]), 1 / step_down.norm(dim=1)
    assert unrelated(angle, zoom, step_right[:, 0].sign())
    cropped = augmented(images, AugmentConfig(crop_area=(0.2, 0.6))) * 255 / 4
    width = cropped[:, 30, 31, 0] - cropped[:, 30, 30, 0]
    height = cropped[:, 31, 30, 1] - cropped[:, 30, 30, 1]
    place = (cropped[:, 30, 30, :2] - 29.5) / (1 - torch.stack([width, height], dim=1))
    assert unrelated(width * height, width / height, *place.T)


def test_step_seeds_differ_by_every_part_and_place():
    seeds = {step_seed(*parts) for parts in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 11), (0, 1, 1)]}
    assert len(seeds) == 5
    assert step_seed(3, 4) == step_seed(3, 4) < 2**63
    torch.Generator().manual_seed(step_seed(3, 4))


# --- augmentation of sound ---

SOUND = AugmentConfig(shift_seconds=0.1, gain_db=6.0)


def some_sound(batch: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Constant within each recording; the second half of each row is no sound."""
    sound = torch.full((batch, 200), 8192, dtype=torch.int16)
    mask = torch.arange(200).expand(batch, 200) < 100
    return sound * mask, mask.clone()


def augmented_sound(sound, mask, config, **parts):
    where = {"seed": 5, "rank": 0, "global_batch": len(sound)} | parts
    return augment_audio(sound, mask, config, sample_rate=100, **where)


@pytest.mark.parametrize("config", [AugmentConfig(), AugmentConfig(flip=True, shift_pixels=2.0)])
def test_sound_that_nothing_is_to_change_comes_back_as_it_is(config):
    sound, mask = some_sound()
    same_sound, same_mask = augmented_sound(sound, mask, config)
    assert same_sound is sound and same_mask is mask


def test_a_shift_takes_the_mask_along():
    sound, mask = some_sound(64)
    after, after_mask = augmented_sound(sound, mask, AugmentConfig(shift_seconds=0.1))
    assert after.dtype == torch.float32 and after_mask.dtype == torch.bool
    assert torch.equal(after != 0, after_mask)
    assert torch.allclose(after[after_mask], torch.tensor(0.25))
    ends = {int(row.nonzero().max()) + 1 for row in after_mask}
    assert 90 <= min(ends) < 95 and 105 < max(ends) <= 110  # 0.1 s at 100 Hz, each way
    starts = [int(row.nonzero().min()) for row in after_mask]
    assert min(starts) == 0 and 5 < max(starts) <= 10


def test_gain_stays_within_its_decibels():
    sound, mask = some_sound(64)
    after, after_mask = augmented_sound(sound, mask, AugmentConfig(gain_db=6.0))
    assert torch.equal(after_mask, mask)
    decibels = 20 * torch.log10(after[:, 0] / 0.25)
    assert decibels.abs().max() <= 6.001 and decibels.min() < -3 and decibels.max() > 3


def test_gain_and_shift_are_drawn_independently():
    sound, mask = some_sound(256)
    after, after_mask = augmented_sound(sound, mask, SOUND)
    ends = after_mask.int().cumsum(dim=1).argmax(dim=1)
    assert unrelated(ends, torch.log(after.amax(dim=1)))


def test_noise_is_white_and_up_to_its_share_of_the_recording():
    sound, mask = some_sound(256)
    after, after_mask = augmented_sound(sound, mask, AugmentConfig(noise=0.5))
    assert torch.equal(after_mask, mask) and not after[~mask].any()
    noise = after[:, :100] - 0.25
    shares = noise.square().mean(dim=1).sqrt() / 0.25
    assert (
        shares.max() < 0.6
        and shares.min() < 0.05
        and shares.mean() == pytest.approx(0.25, abs=0.03)
    )
    assert unrelated(noise[:, 0], noise[:, 1], noise[:, 50], shares)
    parts = [
        augmented_sound(part, mask[:64], AugmentConfig(noise=0.5), rank=rank, global_batch=256)[0]
        for rank, part in enumerate(sound.chunk(4))
    ]
    torch.testing.assert_close(torch.cat(parts), after)


def test_loud_sound_is_clipped():
    sound = torch.full((32, 10), -32768, dtype=torch.int16)
    after, _ = augmented_sound(
        sound, torch.ones(32, 10, dtype=torch.bool), AugmentConfig(gain_db=20.0)
    )
    assert after.min() == -1


def test_what_happens_to_a_recording_does_not_depend_on_its_rank():
    sound, mask = some_sound()
    whole = augmented_sound(sound, mask, SOUND)
    parts = [
        augmented_sound(sound[half], mask[half], SOUND, rank=rank, global_batch=16)
        for rank, half in enumerate((slice(0, 8), slice(8, 16)))
    ]
    for index in range(2):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])
    assert not torch.equal(whole[0], augmented_sound(sound, mask, SOUND, seed=6)[0])
