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
    """One token per pixel: the patches around it in both frames, followed by a linear layer.

    The pixels of the patches are in the order (frame, row, column, channel), with zeros outside of
    the frame. The linear layer of every patch is computed as a convolution.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.standardise = VideoStandardiser(config.input)
        self.patch_shape = (2, config.patch_size, config.patch_size, config.input.channels)
        self.project = linear(torch.Size(self.patch_shape).numel(), config.num_channels)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, height * width, num_channels]` and the token mask.

        The arguments are those of `OpticalFlow.forward`.
        """
        standardised, pixel_mask = self.standardise(frames, mask)
        # From [out, frame, row, column, channel] to [out, (frame, channel), row, column].
        weight = self.project.weight.unflatten(1, self.patch_shape).permute(0, 1, 4, 2, 3)
        stacked = standardised.permute(0, 1, 4, 2, 3).flatten(1, 2).to(weight.dtype)
        content = F.conv2d(stacked, weight.flatten(1, 2), self.project.bias, padding="same")
        content = content.flatten(2).transpose(1, 2)
        return content, None if pixel_mask is None else pixel_mask.any(dim=1).flatten(1)


class OpticalFlow(nn.Module):
    """A model of how far each pixel of the first frame moves in the second.

    Args:
        config: The configuration of the model.
        positions: The table of the pixels' Fourier features, as in `FourierPositions`. None
            computes it.

    Raises:
        ValueError: If the table does not fit the frames of the configuration.
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
        # As in DeepMind's code, training starts from zero flow.
        assert isinstance(self.decoder.output, nn.Linear)
        nn.init.zeros_(self.decoder.output.weight)

    def input_array(self, frames: torch.Tensor, mask: torch.Tensor | None = None) -> InputArray:
        """Return the tokens, which are also the queries. The arguments are those of `forward`."""
        content, token_mask = self.adapter(frames, mask)
        return InputArray(content.to(self.encoder.latents.dtype), self.positions(), token_mask)

    def forward(
        self,
        frames: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        chunk_size: int | None = None,
    ) -> torch.Tensor:
        """Return the flow in pixels, `[batch, height, width, 2]`, as (along x, along y).

        The flow is float32, or float64 for a float64 model.

        Args:
            frames: The two frames `[batch, 2, height, width, channels]`, uint8, or floating point
                in [0, 1]. Pad and mask smaller frames. For larger frames, use `tiled_flow`.
            mask: The valid pixels, bool `[batch, 2, height, width]`, or the valid frames, bool
                `[batch, 2]`, or None if all are valid. A token is read if its own pixel is valid in
                either frame. The flow at invalid pixels has no meaning.
            chunk_size: The number of pixels to decode at a time, which saves memory. None decodes
                all at once.

        Raises:
            ValueError: If a shape or a dtype is wrong.
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
    """Return the flow in pixels, `[batch, height, width, 2]`, of frames larger than the model's.

    The frames are cut into tiles of the model's size. The last tiles end at the border, and tiles
    overlap by at least `min_overlap` pixels. In an overlap, each tile is weighted by the distance
    of the pixel to the border of the tile.

    Args:
        model: The model.
        frames: The two frames `[batch, 2, height, width, channels]`, at least as large as the
            model's.
        min_overlap: The smallest overlap of two tiles in pixels.
        chunk_size: The number of pixels to decode at a time, as in `OpticalFlow.forward`.

    Raises:
        ValueError: If the frames are smaller, or the overlap is not smaller than a tile.
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
