"""Augment images and films in training, on the device, with the same result at any world size.

What happens to a sample depends only on the seed and its index in the global batch, not on its
rank.
"""

import math

import torch
import torch.nn.functional as F

from pipeline.config.augment import asked
from pipeline.config.training import AugmentConfig
from pipeline.inputs.pixels import PICTURE_FIELDS
from pipeline.media.format import MediaFormat
from pipeline.training.augmentation.draws import uniform_draws

UNLABELLED = 255
"""The value of a mask's pixels that belong to no class."""


def augment_images(
    images: torch.Tensor, config: AugmentConfig, *, seed: int, rank: int, global_batch: int
) -> torch.Tensor:
    """Shift, rotate, scale, crop and mirror each image with one affine map and bilinear sampling.

    Args:
        images: uint8 `[batch, height, width, channels]`.
        config: The configuration of the augmentation.
        seed: The seed of this step, equal on all ranks.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        float32 in [0, 1] of the same shape; or `images` itself if the configuration changes
            nothing.
    """
    if not asked(config, PICTURE_FIELDS):
        return images
    batch, height, width, _ = images.shape
    maps = _affine_maps(batch, height, width, config, seed, rank, global_batch).to(images.device)
    planes = images.permute(0, 3, 1, 2).float() / 255
    grid = F.affine_grid(maps, list(planes.shape), align_corners=False)
    moved = F.grid_sample(planes, grid, mode="bilinear", align_corners=False)
    return moved.permute(0, 2, 3, 1).contiguous()


def augment_masks(
    masks: torch.Tensor, config: AugmentConfig, *, seed: int, rank: int, global_batch: int
) -> torch.Tensor:
    """Move masks as `augment_images` moves their images, with the nearest pixel's class.

    Args:
        masks: uint8 `[batch, height, width]`, as large as the images.
        config: The configuration of the augmentation.
        seed: The seed of the images' augmentation.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        uint8 of the same shape, 255 where nothing came in; or `masks` itself if the configuration
            moves nothing.
    """
    if not asked(config, PICTURE_FIELDS):
        return masks
    batch, height, width = masks.shape
    maps = _affine_maps(batch, height, width, config, seed, rank, global_batch).to(masks.device)
    planes = masks[:, None].float() + 1  # grid_sample fills with 0
    grid = F.affine_grid(maps, list(planes.shape), align_corners=False)
    moved = F.grid_sample(planes, grid, mode="nearest", align_corners=False)[:, 0].round().long()
    return torch.where(moved == 0, UNLABELLED, moved - 1).to(torch.uint8)


def _affine_maps(
    batch: int,
    height: int,
    width: int,
    config: AugmentConfig,
    seed: int,
    rank: int,
    global_batch: int,
) -> torch.Tensor:
    """Return the map of each image, as `torch.nn.functional.affine_grid` takes it.

    Returns:
        float32 `[batch, 2, 3]`.
    """
    draws = uniform_draws(seed, 7, batch, rank, global_batch)
    angle = (2 * draws[0] - 1) * math.radians(config.rotate_degrees)
    low, high = config.scale
    zoom = low + (high - low) * draws[1]
    # The width and height of a crop of this area and aspect ratio, relative to the image's.
    area = config.crop_area[0] + (config.crop_area[1] - config.crop_area[0]) * draws[2]
    ratio = torch.exp((2 * draws[3] - 1) * math.log(4 / 3))
    if config.crop_area == (1.0, 1.0):
        ratio = torch.ones_like(ratio)
    crop_x = (area * ratio).sqrt().clamp(max=1.0)
    crop_y = (area / ratio).sqrt().clamp(max=1.0)
    # Shifts are whole pixels. In grid_sample's coordinates, the image spans [-1, 1].
    to_side = 2 * draws[4:6] - 1
    shift_x, shift_y = torch.round(to_side * config.shift_pixels) * 2
    shift_x = shift_x / width + to_side[0] * (1 - crop_x)
    shift_y = shift_y / height + to_side[1] * (1 - crop_y)
    mirror = torch.where(draws[6] < 0.5, -1.0, 1.0) if config.flip else torch.ones(batch)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    aspect = height / width
    rows = (
        torch.stack([mirror * crop_x * cos, -crop_y * sin * aspect, shift_x], dim=1),
        torch.stack([mirror * crop_x * sin / aspect, crop_y * cos, shift_y], dim=1),
    )
    return torch.stack(rows, dim=1)


def augment_films(
    films: torch.Tensor, config: AugmentConfig, *, seed: int, rank: int, global_batch: int
) -> torch.Tensor:
    """Augment films like `augment_images`, with the same change for all frames of a film.

    Args:
        films: uint8 `[batch, frames, height, width, channels]`.
        config: The configuration of the augmentation.
        seed: The seed of this step, equal on all ranks.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        float32 in [0, 1] of the same shape; or `films` itself if the configuration changes nothing.
    """
    frames = films.shape[1]
    pictures = films.permute(0, 2, 3, 1, 4).flatten(3)
    moved = augment_images(pictures, config, seed=seed, rank=rank, global_batch=global_batch)
    if moved is pictures:
        return films
    return moved.unflatten(3, (frames, -1)).permute(0, 3, 1, 2, 4).contiguous()


def change_images(
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    config: AugmentConfig,
    media: MediaFormat,
    **share: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Augment images, as `pipeline.training.augmentation.batch.change` describes."""
    from pipeline.training.augmentation.colours import augment_colours

    moved = augment_images(inputs, config, **share)
    return augment_colours(moved, config, **share), mask


def change_films(
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    config: AugmentConfig,
    media: MediaFormat,
    **share: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Augment films, as `pipeline.training.augmentation.batch.change` describes."""
    return augment_films(inputs, config, **share), mask
