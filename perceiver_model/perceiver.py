"""The Perceiver's encoder: latents read the input by cross-attends and then process it.

See the paper, arXiv 2103.03206, section 3 and figure 1.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from perceiver_model.attention.cross_attend import CrossAttend, Memory
from perceiver_model.attention.multi_head import SelfAttend
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import EncoderConfig

EncoderInputs = InputArray | tuple[InputArray, ...]
"""The array that all cross-attends read, or several that they read in turn."""


class PerceiverEncoder(nn.Module):
    """Learned latents, cross-attends and latent blocks, with the configured weight sharing.

    Each set of weights is registered once, even if it is applied several times.

    Args:
        config: The configuration of the encoder.
        input_channels: The number of channels of the input's tokens.

    Attributes:
        checkpointed_share: The fraction of the self-attends, from the first on, that keep only
            their input for the backward pass and compute the rest again. The backward pass reaches
            the first ones last, when the memory of the others is free again.
    """

    checkpointed_share: float = 0.0

    def __init__(self, config: EncoderConfig, *, input_channels: int) -> None:
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.empty(config.num_latents, config.latent_dim))
        # The bounds are the paper's, in absolute values. At a std of 0.02 they cut nothing off.
        nn.init.trunc_normal_(self.latents, std=config.latent_init_std, a=-2.0, b=2.0)
        num_cross_attends = 1 + self._cross_attend_weights(config.num_cross_attends - 1)
        self.cross_attends = nn.ModuleList(
            CrossAttend(
                query_channels=config.latent_dim,
                input_channels=input_channels,
                num_heads=config.num_cross_heads,
                qk_channels=config.cross_channels,
                value_channels=config.cross_value_channels,
                widening=config.cross_widening,
                gelu=config.gelu,
                dropout=config.dropout,
            )
            for _ in range(num_cross_attends)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_self_attend(config) for _ in range(config.num_self_attends)))
            for _ in range(1 if config.share_self_attends else config.num_blocks)
        )

    def _cross_attend_weights(self, index: int) -> int:
        """Return the index of the weights that cross-attend `index` uses."""
        if self.config.share_cross_attends == "all":
            return 0
        return min(index, 1) if self.config.share_cross_attends == "after_first" else index

    def forward(
        self,
        inputs: EncoderInputs,
        state: torch.Tensor | None = None,
        starts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return latents `[batch, num_latents, latent_dim]` that have read the input.

        Args:
            inputs: The tokens, with `input_channels` channels, in the dtype of the parameters. If
                there are several arrays, the first cross-attend reads the first one, and so on; if
                there are more cross-attends, they begin again with the first array.
            state: The latents to start from, `[batch, num_latents, latent_dim]`, as an earlier call
                returned them. A stream is read part by part in this way. None means the learned
                latents.
            starts: Which samples of `state` begin from the learned latents all the same, bool
                `[batch]`. None means that none does.
        """
        # The learned latents have a batch of 1 until the first cross-attend.
        latents = self.latents.unsqueeze(0)
        if state is not None:
            latents = (
                state if starts is None else torch.where(starts[:, None, None], latents, state)
            )
        arrays = (inputs,) if isinstance(inputs, InputArray) else inputs
        memories: dict[tuple[int, int], Memory] = {}
        cross_index = 0
        num_self_attends = self.config.num_blocks * self.config.num_self_attends
        num_checkpointed = round(self.checkpointed_share * num_self_attends) if self.training else 0
        for block_index, num_cross_attends in enumerate(self.config.cross_attends_before_block):
            for _ in range(num_cross_attends):
                weights = self._cross_attend_weights(cross_index)
                number = cross_index % len(arrays)
                latents, memories[weights, number] = self.cross_attends[weights](
                    latents, arrays[number], memories.get((weights, number))
                )
                cross_index += 1
            block = self.blocks[0 if self.config.share_self_attends else block_index]
            for self_attend in block.children():
                if num_checkpointed > 0:
                    latents = checkpoint(self_attend, latents, use_reentrant=False)
                else:
                    latents = self_attend(latents)
                num_checkpointed -= 1
        return latents


def _self_attend(config: EncoderConfig) -> SelfAttend:
    return SelfAttend(
        channels=config.latent_dim,
        num_heads=config.num_self_heads,
        qk_channels=config.self_channels,
        value_channels=config.self_value_channels,
        widening=config.self_widening,
        gelu=config.gelu,
        dropout=config.dropout,
    )
