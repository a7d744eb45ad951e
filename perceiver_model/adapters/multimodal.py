"""Several modalities as one array of tokens (paper, section 4.2; IO, section 4.3)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from perceiver_model.adapters.checks import Tokens
from perceiver_model.adapters.modality_padding import ModalityPadding
from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from perceiver_model.attention.tokens import InputArray
from perceiver_model.positions import build_positions


class MultimodalAdapter(nn.Module):
    """The [content | positions] of every modality, padded to one width, one after the other.

    In training, modalities are dropped and tokens are masked as `Modality` describes.

    Args:
        media: The configuration of the modalities.
        padded: The configuration of the common width.
        adapters: The adapter of each modality, by name.

    Attributes:
        uniforms: The numbers in [0, 1) that the next training passes draw with, by modality:
            float32 `[batch, 1 + tokens]`. The first column drops the modality, and the others mask
            its tokens. A modality without them draws from torch's own generator.
    """

    uniforms: dict[str, torch.Tensor]

    def __init__(
        self, media: MultimodalInput, padded: PaddedModalities, adapters: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.modalities = media.modalities
        self.uniforms = {}
        self.adapters = nn.ModuleDict(adapters)
        self.positions = nn.ModuleDict(
            {
                name: build_positions(part.positions, part.token_grid, part.max_resolution)
                for name, part in media.modalities.items()
            }
        )
        self.padding = ModalityPadding(
            {name: part.input_channels for name, part in media.modalities.items()},
            embedding_channels=padded.embedding_channels,
            padding=padded.padding,
        )
        self.mask_tokens = nn.ParameterDict()
        for name, part in media.modalities.items():
            if part.mask_probability is not None:
                token = torch.empty(1, self.padding.width)
                self.mask_tokens[name] = nn.init.trunc_normal_(token, std=0.02, a=-2.0, b=2.0)

    def forward(
        self,
        inputs: Mapping[str, Any],
        masks: Mapping[str, torch.Tensor | None] | None = None,
    ) -> Tokens:
        """Return the content `[batch, tokens, width]` and the token mask.

        The content has the dtype of the learned vectors. If a modality is masked in evaluation,
        samples without it get its mask tokens.

        Args:
            inputs: The input of each modality, as its own adapter reads it. None means that no
                sample of the batch has the modality; it then has no tokens.
            masks: The masks of some modalities, as their own adapters read them. A sample lacks a
                modality if its mask is False everywhere.

        Raises:
            ValueError: If the names differ from those of the configuration, or the inputs have
                different batch sizes.
        """
        masks = masks or {}
        self._check_names(inputs, masks)
        given = {
            name: self._tokens(name, media, masks.get(name))
            for name, media in inputs.items()
            if media is not None
        }
        # len or a set would make the batch size a constant of an exported program.
        sizes = {name: tokens.shape[0] for name, (tokens, _) in given.items()}
        batch, *others = sizes.values() or [None]
        if batch is None or any(size != batch for size in others):
            raise ValueError(f"inputs of several batch sizes, or none: {sizes}")
        for name, part in self.modalities.items():
            if name not in given and part.masked_in_evaluation:
                shape = (batch, math.prod(part.token_grid), self.padding.width)
                given[name] = self.mask_tokens[name].expand(shape), None
        ordered = {name: given[name] for name in self.modalities if name in given}
        content = torch.cat([tokens for tokens, _ in ordered.values()], dim=1)
        drops = self.training and any(self.modalities[name].dropout for name in ordered)
        if not drops and all(valid is None for _, valid in ordered.values()):
            return content, None
        valid = {
            name: content.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
            for name, (tokens, mask) in ordered.items()
        }
        return content, torch.cat(list((self._drop(valid) if drops else valid).values()), dim=1)

    def _check_names(self, inputs: Mapping[str, Any], masks: Mapping[str, Any]) -> None:
        if not isinstance(inputs, Mapping) or set(inputs) != set(self.modalities):
            given = list(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f"inputs {given}: expected a mapping from {list(self.modalities)}")
        if unknown := sorted(set(masks) - set(self.modalities)):
            raise ValueError(f"masks for {unknown}: modalities are {list(self.modalities)}")

    def _tokens(
        self, name: str, media: Any, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tokens `[batch, tokens, width]` of a modality, some masked, and their mask."""
        part = self.modalities[name]
        content, valid = self.adapters[name](media, mask)
        content = content.to(self.padding.vectors[name].dtype)
        tokens = self.padding(name, InputArray(content, self.positions[name]()).dense())
        if part.mask_probability is None or not (self.training or part.masked_in_evaluation):
            return tokens, valid
        probability = part.mask_probability if self.training else 1.0
        if self.training and name in self.uniforms:
            draws = self.uniforms[name][:, 1 : 1 + tokens.shape[1]].to(tokens.device)
        else:
            draws = torch.rand(tokens.shape[:2], device=tokens.device)
        hidden = draws < probability
        if part.masked_in_evaluation and valid is not None:
            hidden, valid = hidden | ~valid, None
        return torch.where(hidden.unsqueeze(-1), self.mask_tokens[name], tokens), valid

    def _drop(self, valid: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the masks `[batch, tokens]` without dropped modalities.

        A sample that would lose all of its modalities keeps them all.
        """
        parts = [self.modalities[name] for name in valid]
        had = torch.stack([mask.any(dim=1) for mask in valid.values()], dim=1)
        dropout = torch.tensor([part.dropout for part in parts], device=had.device)
        draws = torch.rand(had.shape, device=had.device)
        for index, name in enumerate(valid):
            if name in self.uniforms:
                draws[:, index] = self.uniforms[name][:, 0]
        kept = had & (draws >= dropout)
        # A sample of mask tokens only would carry no information.
        read = torch.tensor([not part.masked_in_evaluation for part in parts], device=had.device)
        kept = torch.where((kept & read).any(dim=1, keepdim=True), kept, had)
        return {
            name: mask & kept[:, index, None] for index, (name, mask) in enumerate(valid.items())
        }
