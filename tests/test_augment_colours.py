"""RandAugment, colour jitter and random erasing: for each image by itself, at any world size."""

from importlib import metadata

import pytest
import torch
from augment_samples import IMAGE, changed, config_of

from pipeline.config.training import AugmentConfig
from pipeline.media import ImageFormat
from pipeline.training.augmentation.colours import _operations, augment_colours

RGB = ImageFormat(height=12, width=10, channels=3)


def some_images(count: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 12, 10, 3), generator=generator, dtype=torch.uint8)


def coloured(images: torch.Tensor, seed: int = 3, rank: int = 0, ranks: int = 1, **asked):
    return augment_colours(
        images, AugmentConfig(**asked), seed=seed, rank=rank, global_batch=ranks * len(images)
    )


def test_kornia_needs_no_torchvision():
    coloured(some_images(2), randaugment_layers=2, hue=0.1)
    needed = [line for line in metadata.requires("kornia") if "extra ==" not in line]
    assert needed and not any("torchvision" in line for line in needed)


@pytest.mark.parametrize(
    "asked",
    [
        {"randaugment_layers": 4},
        {"randaugment_layers": 2, "randaugment_magnitude": 9.0},
        {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        {"saturation": 0.9},
        {"hue": 0.4},
        {"erase": 0.5},
    ],
)
def test_an_image_changes_by_the_seed_alone_whatever_its_rank(asked):
    images = some_images()
    whole = coloured(images, **asked)
    assert (whole.dtype, whole.shape) == (torch.float32, images.shape)
    assert whole.min() >= 0 and whole.max() <= 1
    assert not torch.equal(whole, coloured(images, seed=4, **asked))
    chunks = enumerate(images.chunk(4))
    parts = [coloured(part, rank=rank, ranks=4, **asked) for rank, part in chunks]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
    differs = (whole - images / 255).abs().flatten(1).amax(dim=1) > 1e-3
    assert differs.float().mean() > (0.3 if "erase" in asked else 0.85)


def test_images_draw_their_operations_one_by_one():
    same = some_images(1).expand(64, -1, -1, -1)
    after = coloured(same, randaugment_layers=1)
    kinds = {image.numpy().tobytes() for image in after}
    assert 12 <= len(kinds) <= 28  # 16 operations, of which most have two signs


def test_every_operation_of_randaugment_changes_an_image_at_magnitude_5():
    planes = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.7
    strength = torch.tensor([0.5, -0.5, 0.5, -0.5])
    identity, *operations = _operations(3, 64)
    assert identity(planes, strength) is planes and len(operations) == 15
    for operation in operations:
        assert ((operation(planes, strength) - planes).abs().flatten(1).amax(dim=1) > 0.01).all()


def test_erasing_blackens_one_box_with_its_probability():
    white = torch.full((400, 12, 10, 3), 255, dtype=torch.uint8)
    black = coloured(white, erase=0.3).amax(dim=3) == 0
    assert black.any(dim=(1, 2)).float().mean() == pytest.approx(0.3, abs=0.07)
    for image in black[black.any(dim=(1, 2))]:
        assert torch.equal(image, image.any(dim=1)[:, None] & image.any(dim=0)[None, :])
        assert 0.01 <= image.float().mean() <= 0.4


def test_jitter_stays_within_its_factors():
    grey = torch.full((200, 4, 4, 3), 100, dtype=torch.uint8)
    factor = coloured(grey, brightness=0.4)[:, 0, 0, 0] * 255 / 100
    assert factor.min() < 0.7 and factor.max() > 1.3
    assert factor.min() > 0.599 and factor.max() < 1.401


def test_a_batch_of_the_training_is_moved_and_then_coloured():
    images = some_images()
    after, _ = changed("image", images, None, {"flip": True, "erase": 1.0}, RGB)
    moved, _ = changed("image", images, None, {"flip": True}, RGB)
    assert torch.equal(after, coloured(moved, erase=1.0)) and not torch.equal(after, moved)


def test_what_would_change_nothing_is_refused():
    with pytest.raises(ValueError, match="randaugment_magnitude changes nothing without"):
        AugmentConfig(randaugment_magnitude=7.0)
    assert IMAGE.channels == 1
    for field in ("saturation", "hue"):
        with pytest.raises(ValueError, match=rf"augment.{field} changes none of the data: image"):
            config_of("image", {field: 0.2})
    with pytest.raises(ValueError, match=r"augment.erase changes none of the data: video takes"):
        config_of("video", {"erase": 0.2})
