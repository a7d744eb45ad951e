"""How a model reads point clouds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perceiver_model.adapters.configs import Points, PointsInput
from perceiver_model.families.classifier_config import AdapterConfig
from pipeline.inputs.modality import ModalityInputs, check_equal
from pipeline.media.points.format import PointsFormat

if TYPE_CHECKING:
    import torch

POINTS_FIELDS = ("rotate_degrees", "scale", "jitter")
"""Fields of `training.augment`."""


class PointsInputs(ModalityInputs[PointsFormat]):
    """float32 `[batch, num_points, 3]` and `[batch, num_points]`.

    Where the format has Fourier features stored, these are read: `[batch, num_points, channels]`.
    """

    def padded_length(self, fmt: PointsFormat) -> int:
        """The most points."""
        return fmt.num_points

    def tensors(
        self, rows: torch.Tensor, lengths: torch.Tensor, fmt: PointsFormat
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The numbers in float32."""
        import torch

        mask = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
        return rows.float(), mask

    def input_config(
        self, fmt: PointsFormat, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> PointsInput:
        """Points. Those stored in the unit cube are read as they are.

        So features are of the stored coordinates.
        """
        return PointsInput(num_points=fmt.num_points, unit_cube=not fmt.unit_cube)

    def adapter(self, fmt: PointsFormat, adapter: AdapterConfig) -> AdapterConfig:
        """The same; one of other frequencies than the stored features' is refused."""
        if fmt.fourier is None or not isinstance(adapter, Points):
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

    def augment_fields(self, fmt: PointsFormat) -> tuple[str, ...]:
        """Those of points."""
        return POINTS_FIELDS
