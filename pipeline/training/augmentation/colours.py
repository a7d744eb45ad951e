"""Change the colours of training images: RandAugment, colour jitter and random erasing.

What happens to an image depends only on the seed and its index in the global batch. The operations
on pixels are kornia's, with our own random numbers: kornia draws one operation for a whole batch.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from pipeline.config.augment import asked
from pipeline.config.training import AugmentConfig
from pipeline.inputs.pixels import COLOUR_FIELDS
from pipeline.training.augmentation.draws import step_seed, uniform_draws

Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes float32 planes `[images, channels, height, width]` in [0, 1] and a signed strength in
[-1, 1] for each image."""

RAND_AUGMENT, JITTER, ERASE = 11, 12, 13
"""Separate the random numbers of the three."""


def augment_colours(
    images: torch.Tensor, config: AugmentConfig, *, seed: int, rank: int, global_batch: int
) -> torch.Tensor:
    """Apply RandAugment, colour jitter and random erasing, in this order.

    Args:
        images: uint8, or float32 in [0, 1], `[batch, height, width, channels]`.
        config: The configuration of the augmentation.
        seed: The seed of this step, equal on all ranks.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        float32 in [0, 1] of the same shape; or `images` itself if the configuration changes
            nothing.
    """
    fields = asked(config, COLOUR_FIELDS)
    if not fields:
        return images
    planes = images.permute(0, 3, 1, 2).float()
    planes = planes / 255 if images.dtype == torch.uint8 else planes

    def draws(stream: int, count: int) -> torch.Tensor:
        return uniform_draws(step_seed(seed, stream), count, len(images), rank, global_batch)

    if config.randaugment_layers:
        planes = _rand_augment(planes, config, draws(RAND_AUGMENT, 2 * config.randaugment_layers))
    if set(fields) & {"brightness", "contrast", "saturation", "hue"}:
        planes = _jitter(planes, config, draws(JITTER, 4))
    if config.erase:
        planes = _erase(planes, config.erase, draws(ERASE, 5))
    return planes.permute(0, 2, 3, 1).contiguous()


def _rand_augment(planes: torch.Tensor, config: AugmentConfig, draws: torch.Tensor) -> torch.Tensor:
    """Apply `randaugment_layers` operations to each image (Cubuk et al., arXiv 1909.13719).

    Pixels are rounded to 8 bits before each operation, as in the reference implementation. So the
    rounding of one does not grow in the next, and the images are equal at any world size.
    """
    operations = _operations(planes.shape[1], min(planes.shape[2:]))
    strength, planes = config.randaugment_magnitude / 10, _eight_bits(planes)
    for chosen, side in draws.unflatten(0, (-1, 2)):
        number = (chosen * len(operations)).long()
        signed = torch.where(side < 0.5, -strength, strength).to(planes)
        changed = planes.clone()
        for index, operation in enumerate(operations):
            rows = torch.where(number == index)[0].to(planes.device)
            if len(rows):
                changed[rows] = operation(planes[rows], signed[rows])
        planes = _eight_bits(changed)
    return planes


def _operations(channels: int, side: int) -> list[Operation]:
    """Return the operations of RandAugment for images of a size.

    Args:
        channels: The number of channels. Saturation needs 3.
        side: The shorter side in pixels. Sharpness needs 3.
    """
    from kornia import enhance
    from kornia.enhance.normalize import normalize_min_max

    operations: list[Operation] = [
        lambda planes, _: planes,
        lambda planes, _: normalize_min_max(planes),
        lambda planes, _: enhance.equalize(planes),
        lambda planes, _: 1 - planes,
        lambda planes, s: enhance.posterize(planes, (8 - 4 * s.abs()).round().int()),
        lambda planes, s: torch.where(planes < 1 - _wide(s.abs()), planes, 1 - planes),
        lambda planes, s: torch.where(
            planes < 0.5, (planes + 0.43 * _wide(s.abs())).clamp(max=1), planes
        ),
        lambda planes, s: enhance.adjust_contrast_with_mean_subtraction(planes, 1 + 0.9 * s),
        lambda planes, s: enhance.adjust_brightness_accumulative(planes, 1 + 0.9 * s),
        lambda planes, s: _moved(planes, angle=s * math.radians(30)),
        lambda planes, s: _moved(planes, shear_x=s * 0.3),
        lambda planes, s: _moved(planes, shear_y=s * 0.3),
        lambda planes, s: _moved(planes, right=s * 0.45),
        lambda planes, s: _moved(planes, down=s * 0.45),
    ]
    if channels == 3:
        operations.append(
            lambda planes, s: enhance.adjust_saturation_with_gray_subtraction(planes, 1 + 0.9 * s)
        )
    if side >= 3:
        operations.append(lambda planes, s: enhance.sharpness(planes, 1 + 0.9 * s))
    return operations


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def _eight_bits(planes: torch.Tensor) -> torch.Tensor:
    return (planes.clamp(0, 1) * 255).round() / 255


def _moved(
    planes: torch.Tensor,
    *,
    angle: torch.Tensor | None = None,
    shear_x: torch.Tensor | None = None,
    shear_y: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
    down: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turn (radians), shear or shift (shares of the side) images; zeros where nothing comes in."""
    height, width = planes.shape[2:]
    none = planes.new_zeros(len(planes))
    turn = none if angle is None else angle
    aspect = height / width
    across = -turn.sin() * aspect + (none if shear_x is None else shear_x * aspect)
    along = turn.sin() / aspect + (none if shear_y is None else shear_y / aspect)
    rows = (
        torch.stack([turn.cos(), across, none if right is None else -2 * right], dim=1),
        torch.stack([along, turn.cos(), none if down is None else -2 * down], dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, mode="bilinear", align_corners=False)


def _jitter(planes: torch.Tensor, config: AugmentConfig, draws: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue by factors drawn for each image."""
    from kornia import enhance

    sides = (2 * draws - 1).to(planes)
    if config.brightness:
        factor = 1 + config.brightness * sides[0]
        planes = enhance.adjust_brightness_accumulative(planes, factor)
    if config.contrast:
        factor = 1 + config.contrast * sides[1]
        planes = enhance.adjust_contrast_with_mean_subtraction(planes, factor)
    if config.saturation:
        factor = 1 + config.saturation * sides[2]
        planes = enhance.adjust_saturation_with_gray_subtraction(planes, factor)
    if config.hue:
        planes = enhance.adjust_hue(planes, 2 * math.pi * config.hue * sides[3])
    return planes.clamp(0, 1)


def _erase(planes: torch.Tensor, probability: float, draws: torch.Tensor) -> torch.Tensor:
    """Set a box of some images to 0 (Zhong et al., arXiv 1708.04896).

    The box covers 2% to 33% of the image, before it is cut off at the border, at an aspect ratio of
    0.3 to 1 / 0.3. It covers at least one pixel.
    """
    height, width = planes.shape[2:]
    area = (0.02 + 0.31 * draws[1]) * height * width
    ratio = torch.exp((2 * draws[2] - 1) * math.log(1 / 0.3))
    box_height = (area * ratio).sqrt().round().clamp(1, height)
    box_width = (area / ratio).sqrt().round().clamp(1, width)
    top = (draws[3] * (height - box_height + 1)).floor()[:, None]
    left = (draws[4] * (width - box_width + 1)).floor()[:, None]
    row, column = torch.arange(height), torch.arange(width)
    in_rows = (row >= top) & (row < top + box_height[:, None])
    in_columns = (column >= left) & (column < left + box_width[:, None])
    is_erased = in_rows[:, :, None] & in_columns[:, None, :]
    is_erased &= (draws[0] < probability)[:, None, None]
    return planes.masked_fill(is_erased[:, None].to(planes.device), 0.0)
