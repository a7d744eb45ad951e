"""The Perceiver's encoder: latents that read the input by cross-attends and then process it.

(Paper: arXiv 2103.03206, section 3 and figure 1.)
"""

import torch
from torch import nn

from perceiver_model.attention import CrossAttend, SelfAttend
from perceiver_model.config import EncoderConfig


class PerceiverEncoder(nn.Module):
    """Learned latents, cross-attends and latent blocks, with the weight sharing of the config.

    Each set of weights is registered once, whatever the number of times it is applied.
    """

    def __init__(self, config: EncoderConfig, *, input_channels: int) -> None:
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.empty(config.num_latents, config.latent_dim))
        # The bounds are the paper's, read as values; at its std of 0.02 they cut nothing off.
        nn.init.trunc_normal_(self.latents, std=config.latent_init_std, a=-2.0, b=2.0)
        num_cross_attends = 1 + self._cross_attend_weights(config.num_cross_attends - 1)
        self.cross_attends = nn.ModuleList(
            CrossAttend(config, input_channels=input_channels) for _ in range(num_cross_attends)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(SelfAttend(config) for _ in range(config.num_self_attends)))
            for _ in range(1 if config.share_self_attends else config.num_blocks)
        )

    def _cross_attend_weights(self, index: int) -> int:
        """Which set of weights the cross-attend number `index` uses."""
        if self.config.share_cross_attends == "all":
            return 0
        return min(index, 1) if self.config.share_cross_attends == "after_first" else index

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Latents `[batch, num_latents, latent_dim]` that have read the input.

        inputs: tokens `[batch, tokens, input_channels]` in the parameters' dtype.
        mask: bool `[batch, tokens]`, True where a token may be attended; None for everywhere.
        """
        latents = self.latents.expand(inputs.shape[0], -1, -1)
        cross_index = 0
        for block_index, num_cross_attends in enumerate(self.config.cross_attends_before_block):
            for _ in range(num_cross_attends):
                cross_attend = self.cross_attends[self._cross_attend_weights(cross_index)]
                latents = cross_attend(latents, inputs, mask)
                cross_index += 1
            block = self.blocks[0 if self.config.share_self_attends else block_index]
            latents = block(latents)
        return latents
