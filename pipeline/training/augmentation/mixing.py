"""Mix pairs of samples of a training batch: MixUp and CutMix.

The partner of a sample may lie on any rank. The ranks draw the same permutation of the global
micro-batch from the seed of the step, and each sends the others the samples that they need. So the
mix is the same at any world size, and a rank holds no more than twice its own part of the batch.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist

from pipeline.config.augment import asked
from pipeline.config.training import AugmentConfig
from pipeline.inputs.modality import MIX_FIELDS
from pipeline.training.augmentation.draws import step_seed
from pipeline.training.objectives.batch import Batch, Mix

MIX_STREAM = 7
"""Separates the random numbers of this module from those of the other augmentations."""

_SCALES = {torch.uint8: 255.0, torch.int16: 32768.0}
"""What stored pixels and sound samples are divided by, as in the other augmentations."""


@dataclass(frozen=True)
class MixPlan:
    """How the samples of a global micro-batch are mixed.

    Attributes:
        partners: The index of each sample's partner, a permutation, int64 `[samples]`.
        shares: MixUp's share of the sample itself, float64 `[samples]`; 1 if it is not mixed.
        boxes: CutMix's box, which shows the partner, as top, left, bottom and right edge relative
            to the height and width, float64 `[samples, 4]`; all 0 if nothing is cut.
    """

    partners: torch.Tensor
    shares: torch.Tensor
    boxes: torch.Tensor

    def padded(self, size: int) -> "MixPlan":
        """Return a plan for so many rows. The added ones are padding, and stay as they are."""
        added = size - len(self.shares)
        return MixPlan(
            torch.cat([self.partners, torch.arange(len(self.shares), size)]),
            torch.cat([self.shares, self.shares.new_ones(added)]),
            torch.cat([self.boxes, self.boxes.new_zeros(added, 4)]),
        )


def draw_plan(config: AugmentConfig, samples: int, seed: int) -> MixPlan:
    """Draw how the samples of a global micro-batch are mixed.

    If both fields are given, each sample takes one of the two with probability 1/2.

    Args:
        config: The configuration of the augmentation.
        samples: The number of samples of the global micro-batch.
        seed: The seed of this step, equal on all ranks.
    """
    random = np.random.Generator(np.random.PCG64(step_seed(seed, MIX_STREAM)))
    partners = random.permutation(samples)
    is_cut = random.random(samples) < {(True, False): 0.0, (False, True): 1.0}.get(
        (config.mixup > 0, config.cutmix > 0), 0.5
    )
    mixed = random.beta(config.mixup or 1.0, config.mixup or 1.0, samples)
    kept = random.beta(config.cutmix or 1.0, config.cutmix or 1.0, samples)
    half = np.sqrt(1 - kept)[:, None] / 2
    centre = random.random((samples, 2))
    edges = np.concatenate([centre - half, centre + half], axis=1).clip(0, 1)
    return MixPlan(
        torch.from_numpy(partners),
        torch.from_numpy(np.where(is_cut, 1.0, mixed)),
        torch.from_numpy(np.where(is_cut[:, None], edges, 0.0)),
    )


def mix_batch(
    batch: Batch, config: AugmentConfig, *, seed: int, rank: int, global_batch: int
) -> Batch:
    """Mix each sample of a training batch with another one of the global micro-batch.

    A sample whose partner could not be read stays as it is.

    Args:
        batch: The samples of this rank, of one modality. Images are `[batch, height, width,
            channels]`, films `[batch, frames, height, width, channels]`; MixUp takes any shape.
        config: The configuration of the augmentation.
        seed: The seed of this step, equal on all ranks.
        rank: The rank.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        The batch with float32 inputs and its `mix`; or `batch` itself if the configuration mixes
            nothing.
    """
    if not asked(config, MIX_FIELDS):
        return batch
    inputs, mask = batch.inputs, batch.mask
    assert isinstance(inputs, torch.Tensor) and not isinstance(mask, dict)
    size = len(inputs)
    plan = draw_plan(config, global_batch, seed).padded(size * _world_size())

    def partner(rows: torch.Tensor) -> torch.Tensor:
        return partner_rows(rows, plan.partners, rank)

    part = slice(rank * size, (rank + 1) * size)
    own, other = _floats(inputs), _floats(partner(inputs))
    is_good = partner(batch.weights) > 0
    share = torch.where(is_good.cpu(), plan.shares[part], 1.0)
    blend = share.to(own).reshape(-1, *[1] * (own.ndim - 1))
    mixed = own * blend + other * (1 - blend)
    if config.cutmix:
        height, width = own.shape[-3:-1]
        boxes = torch.where(is_good.cpu()[:, None], plan.boxes[part], 0.0)
        is_cut, area = _cuts(boxes, height, width)
        # One box for all frames of a film.
        where = is_cut.reshape(size, *[1] * (own.ndim - 4), height, width, 1)
        mixed = torch.where(where.to(own.device), other, mixed)
        share = share - area
    if mask is not None:
        both = (share < 1).to(mask.device).reshape(-1, *[1] * (mask.ndim - 1))
        mask = mask | (partner(mask) & both)
    mix = Mix(partner(batch.targets), share.to(batch.weights))
    return replace(batch, inputs=mixed, mask=mask, mix=mix, cache={})


def partner_rows(rows: torch.Tensor, partners: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the partner's row for each row of this rank. All ranks must call this together.

    Args:
        rows: `[batch, …]`, of the same shape on all ranks.
        partners: A permutation of the rows of all ranks, int64 `[ranks * batch]` on the CPU.
        rank: The rank.
    """
    size = len(rows)
    world_size = len(partners) // size
    if world_size == 1:
        return rows[partners.to(rows.device)]
    owners = partners // size
    mine = slice(rank * size, (rank + 1) * size)
    sent = [
        partners[first : first + size][owners[first : first + size] == rank] - rank * size
        for first in range(0, size * world_size, size)
    ]
    # Rows come grouped by their owners, in the order of the rows that need them.
    order = owners[mine].argsort(stable=True).to(rows.device)
    outgoing = rows[torch.cat(sent).to(rows.device)].contiguous()
    # The bytes travel, since not every backend knows every dtype.
    flat = outgoing.reshape(size, -1).view(torch.uint8)
    incoming = torch.empty_like(flat)
    dist.all_to_all_single(
        incoming,
        flat,
        owners[mine].bincount(minlength=world_size).tolist(),
        [len(each) for each in sent],
    )
    came = incoming.view(rows.dtype).reshape(rows.shape)
    result = torch.empty_like(came)
    result[order] = came
    return result


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _floats(inputs: torch.Tensor) -> torch.Tensor:
    """Return pixels in [0, 1] or sound in [-1, 1] as float32; floats stay as they are."""
    scale = _SCALES.get(inputs.dtype)
    return inputs if scale is None else inputs.float() / scale


def _cuts(boxes: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which pixels lie in the boxes, and the share of the image that they cover.

    Args:
        boxes: float64 `[batch, 4]`, as in `MixPlan`.
        height: The height in pixels.
        width: The width in pixels.

    Returns:
        bool `[batch, height, width]` and float64 `[batch]`.
    """
    edges = (boxes * torch.tensor([height, width, height, width])).round()
    top, left, bottom, right = edges[:, :, None].unbind(dim=1)
    row, column = torch.arange(height), torch.arange(width)
    in_rows, in_columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    is_cut = in_rows[:, :, None] & in_columns[:, None, :]
    return is_cut, is_cut.double().mean(dim=(1, 2))
