"""Pad the vectors of several modalities or tasks to one width, and add a learned vector to each.

See the paper, section 4.2, and Perceiver IO, section 3.1; for output queries, see IO, section 3.2.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


class ModalityPadding(nn.Module):
    """Append padding and a learned embedding to the vectors of a modality.

    Args:
        channels: The number of channels of each modality.
        embedding_channels: The number of channels by which the common width exceeds the widest
            modality.
        padding: "learned" fills all appended channels with one vector that is learned for the
            modality. "zeros" learns only the last `embedding_channels`.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        *,
        embedding_channels: int,
        padding: Literal["learned", "zeros"] = "learned",
    ) -> None:
        super().__init__()
        self.width = max(channels.values()) + embedding_channels
        self.vectors = nn.ParameterDict()
        for name, size in channels.items():
            learned = self.width - size if padding == "learned" else embedding_channels
            vector = torch.empty(1, learned)
            self.vectors[name] = nn.init.trunc_normal_(vector, std=0.02, a=-2.0, b=2.0)

    def forward(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        """Pad the tokens of one modality to the common width.

        Args:
            name: The name of the modality.
            tokens: The tokens `[batch, tokens, channels]`.

        Returns:
            The padded tokens `[batch, tokens, width]`, in the dtype of `tokens`.
        """
        vector = self.vectors[name].to(tokens.dtype)
        vector = F.pad(vector, (self.width - tokens.shape[-1] - vector.shape[-1], 0))
        return torch.cat([tokens, vector.expand(*tokens.shape[:2], -1)], dim=-1)
