"""Augment texts in training, with the same result at any world size."""

import torch
import torch.nn.functional as F

from perceiver_model.adapters.text import MASK
from pipeline.config.training import AugmentConfig
from pipeline.media.text.decode import TextFormat
from pipeline.training.augmentation.draws import own_rows, step_seed

TEXT_STREAM = 8
"""Separates the random numbers of this module from those of the other augmentations."""
RUN = 6
"""The number of neighbouring bytes that are hidden together: about a word."""


def change_text(
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    config: AugmentConfig,
    media: TextFormat,
    *,
    seed: int,
    rank: int,
    global_batch: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hide runs of bytes, as `pipeline.training.augmentation.batch.change` describes.

    Args:
        inputs: The token ids, int64 `[batch, longest]`.
        mask: The valid tokens, bool `[batch, longest]`.
        config: The configuration of the augmentation.
        media: The format of the texts.
        seed: The seed of this step, equal on all ranks.
        rank: The rank, which says which part of the global batch this is.
        global_batch: The number of rows of all ranks together, without padding.

    Returns:
        The ids, with MASK where a byte is hidden, and the mask as it is.
    """
    if not config.mask_bytes or mask is None:
        return inputs, mask
    # The draws of a text must not depend on the longest one of a rank's part of the batch.
    batch, longest = inputs.shape
    generator = torch.Generator().manual_seed(step_seed(seed, TEXT_STREAM))
    draws = torch.rand(global_batch, media.max_length + RUN - 1, generator=generator)
    mine = own_rows(draws, batch, rank)[:, : longest + RUN - 1].to(inputs.device)
    begins = mine < 1 - (1 - config.mask_bytes) ** (1 / RUN)
    is_hidden = F.max_pool1d(begins.float().unsqueeze(1), RUN, stride=1).squeeze(1) > 0
    return inputs.masked_fill(is_hidden & mask, MASK), mask
