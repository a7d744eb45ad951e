"""Augment point clouds in training, with the same result at any world size."""

import math

import torch

from perceiver_model.adapters.points import to_unit_cube
from pipeline.config.augment import asked
from pipeline.config.training import AugmentConfig
from pipeline.inputs.points import POINTS_FIELDS
from pipeline.media import PointsFormat
from pipeline.media.points.format import NUM_DIMS
from pipeline.training.augmentation.draws import own_rows, step_seed, uniform_draws

DROP_STREAM = 9
"""Separates the random numbers of hidden points from those of the other augmentations."""


def augment_points(
    points: torch.Tensor,
    mask: torch.Tensor,
    config: AugmentConfig,
    media: PointsFormat,
    *,
    seed: int,
    rank: int,
    global_batch: int,
) -> torch.Tensor:
    """Rotate, scale and mirror each cloud, and add noise to its points.

    Args:
        points: float32 `[batch, num_points, 3]`, or their Fourier features, whose first channels
            are the coordinates.
        mask: bool `[batch, num_points]`, True where there is a point.
        config: The configuration of the augmentation.
        media: The format of the clouds. If it has `unit_cube`, the result is scaled into the unit
            cube again.
        seed: The seed of this step, equal on all ranks.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        The moved coordinates, float32 `[batch, num_points, 3]`, zero where the mask is False; the
        model then computes their features itself. Or `points` if the configuration changes nothing.
    """
    if not asked(config, POINTS_FIELDS):
        return points
    batch, num_points, _ = points.shape
    device = points.device
    cloud = points[..., :NUM_DIMS].double()
    draws = uniform_draws(seed, 6 + config.flip, batch, rank, global_batch).double().to(device)
    turned = _centred(cloud, mask) @ _rotations(draws[:3], config.rotate_degrees)
    low, high = config.scale
    factors = (low + (high - low) * draws[3:6]).T.unsqueeze(1)
    if config.flip:
        factors[:, :, 0] *= torch.where(draws[6] < 0.5, -1.0, 1.0).unsqueeze(1)
    scaled = turned * factors
    noise = _normal(seed, batch, num_points, rank, global_batch).to(device)
    half_size = scaled.abs().amax(dim=(1, 2), keepdim=True)
    moved = scaled + noise * config.jitter * half_size
    if media.unit_cube:
        moved = to_unit_cube(moved.masked_fill(~mask.unsqueeze(-1), 0.0), mask)
    else:
        moved = moved + (cloud - _centred(cloud, mask))
    return moved.masked_fill(~mask.unsqueeze(-1), 0.0).float()


def change_points(
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    config: AugmentConfig,
    media: PointsFormat,
    **share: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Augment point clouds, as `pipeline.training.augmentation.batch.change` describes."""
    if mask is None:
        return inputs, mask
    if config.drop_points:
        mask = mask & ~_dropped(mask, config.drop_points, **share)
    return augment_points(inputs, mask, config, media, **share), mask


def _dropped(
    mask: torch.Tensor, largest: float, *, seed: int, rank: int, global_batch: int
) -> torch.Tensor:
    """Return which points are hidden, bool `[batch, num_points]`; a cloud keeps at least one.

    Args:
        mask: The valid points, bool `[batch, num_points]`. They are the first ones.
        largest: The largest share of the points that is hidden.
        seed: The seed of this step, equal on all ranks.
        rank: The rank.
        global_batch: The number of rows of all ranks together, without padding.
    """
    batch, num_points = mask.shape
    generator = torch.Generator().manual_seed(step_seed(seed, DROP_STREAM))
    draws = torch.rand(global_batch, num_points, generator=generator)
    draws = own_rows(draws, batch, rank).to(mask.device)
    dropped = draws < largest * draws[:, :1]
    dropped[:, 0] = False  # its number is the share of the others
    return dropped


def _centred(cloud: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the cloud with zero mean; zero where there is no point."""
    valid = mask.unsqueeze(-1)
    count = valid.sum(dim=1, keepdim=True).clamp(min=1)
    mean = cloud.masked_fill(~valid, 0.0).sum(dim=1, keepdim=True) / count
    return (cloud - mean).masked_fill(~valid, 0.0)


def _rotations(draws: torch.Tensor, degrees: float) -> torch.Tensor:
    """Return rotations about axes spread evenly over the sphere, float64 `[batch, 3, 3]`.

    Args:
        draws: float64 `[3, batch]` in [0, 1), for the angle and the axis.
        degrees: The largest angle in either direction.
    """
    angle = (2 * draws[0] - 1) * math.radians(degrees)
    z, longitude = 2 * draws[1] - 1, 2 * math.pi * draws[2]
    radius = (1 - z * z).clamp(min=0).sqrt()
    axis = torch.stack([radius * longitude.cos(), radius * longitude.sin(), z], dim=1)
    x, y, z = axis.unbind(dim=1)
    none = torch.zeros_like(x)
    cross = torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=1).unflatten(1, (3, 3))
    sin, cos = angle.sin()[:, None, None], angle.cos()[:, None, None]
    same = torch.eye(3, dtype=draws.dtype, device=draws.device)
    return same + sin * cross + (1 - cos) * (cross @ cross)


def _normal(seed: int, batch: int, num_points: int, rank: int, global_batch: int) -> torch.Tensor:
    """Return normal numbers for this rank's part of the batch, float64 `[batch, num_points, 3]`."""
    generator = torch.Generator().manual_seed(seed + 1)
    everyone = torch.randn(global_batch, num_points, NUM_DIMS, generator=generator)
    return own_rows(everyone, batch, rank).double()
