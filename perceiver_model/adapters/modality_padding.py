"""Vectors of several modalities or tasks brought to one width, and told apart by a learned vector.

(Paper, section 4.2; IO, section 3.1, and section 3.2 for output queries.)
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


class ModalityPadding(nn.Module):
    """Appends to a modality's vectors what they lack to the widest one's, and an embedding.

    Args:
        channels: of each modality.
        embedding_channels: by how much the common width exceeds the widest modality.
        padding: "learned" fills all that is appended with one vector learned for the modality;
            "zeros" learns only its last `embedding_channels`.
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
        """`[batch, tokens, channels]` of a modality to `[batch, tokens, width]`."""
        vector = self.vectors[name].to(tokens.dtype)
        vector = F.pad(vector, (self.width - tokens.shape[-1] - vector.shape[-1], 0))
        return torch.cat([tokens, vector.expand(*tokens.shape[:2], -1)], dim=-1)
