"""Modality dropout and masked modalities: the same samples lose them at any world size."""

import math

from torch import nn

from perceiver_model.adapters.multimodal import MultimodalAdapter
from pipeline.training.augmentation.draws import sample_uniforms, step_seed

DROPPING = 16
"""Separates the random numbers of this module from those of the augmentations."""


class ModalityDraws:
    """Give a model the random numbers with which it drops and masks modalities in training.

    Args:
        model: The model. If it reads a single modality, nothing is drawn.
    """

    def __init__(self, model: nn.Module) -> None:
        adapters = [part for part in model.modules() if isinstance(part, MultimodalAdapter)]
        self._adapters = [
            (adapter, name, 0 if part.mask_probability is None else math.prod(part.token_grid))
            for adapter in adapters
            for name, part in adapter.modalities.items()
            if part.dropout or part.mask_probability is not None
        ]

    def draw(self, batch: int, *, seed: int, rank: int) -> None:
        """Draw the numbers of the next training pass.

        Args:
            batch: The number of samples on each rank.
            seed: The seed of this step, equal on all ranks.
            rank: The rank.
        """
        for adapter, name, tokens in self._adapters:
            own = step_seed(seed, DROPPING, *name.encode())
            adapter.uniforms[name] = sample_uniforms(own, 1 + tokens, batch, rank)
