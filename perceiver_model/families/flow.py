"""Optical flow with Perceiver IO (IO, section 4.2 and appendix H)."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.adapters.checks import Tokens
from perceiver_model.adapters.video import VideoStandardiser
from perceiver_model.attention.multi_head import linear
from perceiver_model.attention.tokens import InputArray
from perceiver_model.decoder import PerceiverDecoder
from perceiver_model.families.flow_config import FlowConfig
from perceiver_model.output_queries import index_parts, tokens_at
from perceiver_model.perceiver import PerceiverEncoder
from perceiver_model.positions import build_positions


class FramePairAdapter(nn.Module):
    """One token per pixel: the patches around it in both frames, through a linear layer.

    The patches' pixels come in the order (frame, row, column, channel), zero outside the frame. A
    linear layer of every pixel's patch is a convolution, and is computed as one.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.standardise = VideoStandardiser(config.input)
        self.patch_shape = (2, config.patch_size, config.patch_size, config.input.channels)
        self.project = linear(torch.Size(self.patch_shape).numel(), config.num_channels)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Content `[batch, height * width, num_channels]`; arguments as of `OpticalFlow`."""
        standardised, pixel_mask = self.standardise(frames, mask)
        # [out, frame, row, column, channel] to [out, (frame, channel), row, column]
        weight = self.project.weight.unflatten(1, self.patch_shape).permute(0, 1, 4, 2, 3)
        stacked = standardised.permute(0, 1, 4, 2, 3).flatten(1, 2).to(weight.dtype)
        content = F.conv2d(stacked, weight.flatten(1, 2), self.project.bias, padding="same")
        content = content.flatten(2).transpose(1, 2)
        return content, None if pixel_mask is None else pixel_mask.any(dim=1).flatten(1)


class OpticalFlow(nn.Module):
    """How far every pixel of the first of two frames moves to the second.

    Raises ValueError for a table of positions that is not of the configuration's frames.
    """

    def __init__(self, config: FlowConfig, positions: torch.Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.positions = build_positions(
            config.positions, config.token_grid, config.max_resolution, positions
        )
        self.adapter = FramePairAdapter(config)
        self.encoder = PerceiverEncoder(config.encoder, input_channels=config.input_channels)
        self.decoder = PerceiverDecoder(
            config.decoder,
            query_channels=config.input_channels,
            latent_dim=config.encoder.latent_dim,
            output_channels=2,
        )
        # DeepMind's: training starts from no flow at all.
        assert isinstance(self.decoder.output, nn.Linear)
        nn.init.zeros_(self.decoder.output.weight)

    def input_array(self, frames: torch.Tensor, mask: torch.Tensor | None = None) -> InputArray:
        """The tokens that the encoder reads, and the queries; arguments as of `forward`."""
        content, token_mask = self.adapter(frames, mask)
        return InputArray(content.to(self.encoder.latents.dtype), self.positions(), token_mask)

    def forward(
        self,
        frames: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        chunk_size: int | None = None,
    ) -> torch.Tensor:
        """Flow in pixels `[batch, height, width, 2]`, (along x, along y).

        Args:
            frames: `[batch, 2, height, width, channels]`, uint8 or floating in [0, 1].
            mask: bool `[batch, 2, height, width]`, or `[batch, 2]` for whole frames, True where a
                pixel is valid; None for everywhere. A token is read if its own pixel is valid in
                either frame. Smaller frames are padded and masked; flow at invalid pixels is of no
                meaning. Larger ones: `tiled_flow`.
            chunk_size: decode so many pixels at a time, for less memory.

        The result is float32 or, of a float64 model, float64. Raises ValueError for frames or
        masks of another shape or dtype.
        """
        tokens = self.input_array(frames, mask)
        latents = self.encoder(tokens)
        asked = torch.arange(tokens.content.shape[1], device=latents.device)
        parts = (tokens_at(tokens, part) for part in index_parts(asked, chunk_size))
        flow = torch.cat(list(self.decoder.decode_parts(parts, latents)), dim=1)
        flow = flow if flow.dtype == torch.float64 else flow.float()
        scale = self.config.flow_scale / self.config.rescale_factor
        return scale * flow.unflatten(1, self.config.token_grid)


def tiled_flow(
    model: OpticalFlow,
    frames: torch.Tensor,
    *,
    min_overlap: int = 20,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Flow in pixels `[batch, height, width, 2]` of frames larger than the model's, in tiles.

    Tiles are of the model's size, the last ones flush with the border, and overlap by at least
    `min_overlap` pixels; where they do, each counts by its pixel's distance to its own border.

    Args:
        frames: `[batch, 2, height, width, channels]`, at least of the model's size.

    Raises ValueError for smaller frames, and for an overlap that isn't smaller than a tile.
    """
    size = model.config.token_grid
    extent = tuple(frames.shape[2:4])
    if frames.ndim != 5 or extent[0] < size[0] or extent[1] < size[1]:
        raise ValueError(
            f"frames of shape {list(frames.shape)}: expected [batch, 2, height, width, channels] "
            f"of at least {size[0]} × {size[1]} pixels; pad and mask smaller ones"
        )
    if not 0 <= min_overlap < min(size):
        raise ValueError(f"min_overlap {min_overlap}: must be at least 0 and below {min(size)}")
    starts = [
        [min(start, whole - tile) for start in range(0, whole - min_overlap, tile - min_overlap)]
        for whole, tile in zip(extent, size, strict=True)
    ]
    distances = [
        torch.minimum(torch.arange(1, tile + 1), torch.arange(tile, 0, -1)) for tile in size
    ]
    weight = torch.minimum(distances[0].unsqueeze(1), distances[1]).to(frames.device)
    dtype = torch.promote_types(model.encoder.latents.dtype, torch.float32)
    flow = torch.zeros(len(frames), *extent, 2, dtype=dtype, device=frames.device)
    total = torch.zeros(extent, dtype=dtype, device=frames.device)
    for row, column in itertools.product(*starts):
        rows, columns = slice(row, row + size[0]), slice(column, column + size[1])
        tile_flow = model(frames[:, :, rows, columns], chunk_size=chunk_size)
        flow[:, rows, columns] += weight.unsqueeze(-1) * tile_flow
        total[rows, columns] += weight
    return flow / total.unsqueeze(-1)
