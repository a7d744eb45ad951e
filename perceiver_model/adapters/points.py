"""Point clouds as tokens: every point with the Fourier features of its coordinates."""

import torch
from torch import nn

from perceiver_model.adapters.checks import Tokens, check_inputs
from perceiver_model.adapters.configs import PointsConfig, PointsInput
from perceiver_model.fourier import fourier_features


class PointAdapter(nn.Module):
    """One token per point: [features | Fourier features of the coordinates]."""

    def __init__(self, points: PointsInput, adapter: PointsConfig) -> None:
        super().__init__()
        self.shape = (points.num_points, points.channels)
        self.content_shape = (points.num_points, adapter.content_channels(points))
        self.num_dims = points.num_dims
        self.unit_cube = points.unit_cube
        self.num_bands = adapter.num_bands
        self.max_resolution = (adapter.resolution(points),) * points.num_dims

    def forward(self, points: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content and the token mask.

        The content is `[batch, num_points, num_features + num_dims * (2 * num_bands + 1)]`, with
        zeros for invalid points.

        Args:
            points: The points, floating point `[batch, num_points, num_dims + num_features]`, or
                the content itself if it was computed before.
            mask: The valid points, bool `[batch, num_points]`, or None if all are valid.
        """
        is_content = points.shape[1:] == self.content_shape
        check_inputs(points, mask, self.content_shape if is_content else self.shape)
        points = points.float()
        invalid = None if mask is None else ~mask.unsqueeze(-1)
        if is_content:
            return points if invalid is None else points.masked_fill(invalid, 0.0), mask
        if invalid is not None:
            points = points.masked_fill(invalid, 0.0)
        coordinates, features = points.tensor_split([self.num_dims], dim=-1)
        if self.unit_cube:
            # A frequency of 10³ radians turns float32's rounding error into one of 10⁻⁴.
            coordinates = to_unit_cube(coordinates.double(), mask)
        positions = fourier_features(coordinates, self.num_bands, self.max_resolution)
        content = torch.cat([features, positions], dim=-1)
        return content if invalid is None else content.masked_fill(invalid, 0.0), mask


def to_unit_cube(coordinates: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Move point clouds to zero mean and scale all dimensions alike into [-1, 1].

    Args:
        coordinates: The points, floating point `[batch, points, dims]`, with zeros where `mask` is
            False.
        mask: The valid points, bool `[batch, points]`, or None if all are valid.

    Returns:
        The points in the same shape, with zeros where `mask` is False. A cloud whose points all
        coincide becomes zero.
    """
    if mask is None:
        centred = coordinates - coordinates.mean(dim=1, keepdim=True)
    else:
        valid = mask.unsqueeze(-1)
        count = valid.sum(dim=1, keepdim=True).clamp(min=1)
        centred = coordinates - coordinates.sum(dim=1, keepdim=True) / count
        centred = centred.masked_fill(~valid, 0.0)
    extent = centred.abs().amax(dim=(1, 2), keepdim=True)
    return centred / torch.where(extent > 0, extent, 1.0)
