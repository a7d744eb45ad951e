"""How a model reads point clouds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perceiver_model.adapters.configs import PointsConfig, PointsInput
from perceiver_model.families.classifier_config import AdapterConfig
from pipeline.inputs.attention_view import View, parts, scatter
from pipeline.inputs.modality import ModalityInputs, check_equal
from pipeline.media.points.format import PointsFormat

if TYPE_CHECKING:
    import numpy as np
    import torch

POINTS_FIELDS = ("rotate_degrees", "scale", "flip", "jitter", "drop_points")
"""The fields of `training.augment` that change point clouds."""


class PointsInputs(ModalityInputs[PointsFormat]):
    """Clouds as float32 `[batch, num_points, 3]` with a mask `[batch, num_points]`.

    If the format stores Fourier features, the model reads these: `[batch, num_points, channels]`.
    """

    def padded_length(self, fmt: PointsFormat) -> int:
        """Return the largest number of points of a cloud."""
        return fmt.num_points

    def tensors(
        self, rows: torch.Tensor, lengths: torch.Tensor, fmt: PointsFormat
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values as float32, and the mask of the points."""
        import torch

        mask = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
        return rows.float(), mask

    def input_config(
        self, fmt: PointsFormat, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> PointsInput:
        """Return a point input.

        If the stored points already lie in the unit cube, the model does not scale them again.
        """
        return PointsInput(num_points=fmt.num_points, unit_cube=not fmt.unit_cube)

    def adapter(self, fmt: PointsFormat, adapter: AdapterConfig) -> AdapterConfig:
        """Return the same adapter.

        Raises:
            ValueError: Fourier features are stored with frequencies that differ from the adapter's.
        """
        if fmt.fourier is None or not isinstance(adapter, PointsConfig):
            return adapter
        check_equal(adapter, fmt.fourier, "data.points.fourier", "num_bands")
        read = adapter.resolution(PointsInput(num_points=fmt.num_points))
        stored = fmt.fourier.resolution(fmt.num_points)
        if read != stored:
            raise ValueError(
                f"adapter.max_resolution is {read:g}, but data.points.fourier.max_resolution is "
                f"{stored:g}; make them equal"
            )
        return adapter

    def input_picture(self, stored: torch.Tensor, fmt: PointsFormat) -> np.ndarray | None:
        """Return the first two coordinates as dots; the nearer in the third, the brighter."""
        return scatter(stored[:, :3].float()) if len(stored) else None

    def attention_view(
        self, weights: np.ndarray, stored: torch.Tensor, inputs: Any, fmt: PointsFormat
    ) -> View:
        """Return the most attended points."""
        points = stored[:, :3].float().tolist()
        return parts(
            (f"point {number} ({', '.join(f'{value:.3g}' for value in point)})", weight)
            for number, (point, weight) in enumerate(zip(points, weights.tolist(), strict=False))
        )

    def augment_fields(self, fmt: PointsFormat) -> tuple[str, ...]:
        """Return the fields that change point clouds."""
        return POINTS_FIELDS
