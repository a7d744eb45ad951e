"""How a model reads films."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perceiver_model.adapters.configs import VideoInput
from pipeline.inputs.attention_view import View, as_picture, curve, heat_map
from pipeline.inputs.modality import MIX_FIELDS, ModalityInputs
from pipeline.inputs.pixels import PICTURE_FIELDS, check_shift
from pipeline.media.video.format import VideoFormat

if TYPE_CHECKING:
    import numpy as np
    import torch


class VideoInputs(ModalityInputs[VideoFormat]):
    """Films as uint8 `[batch, frames, height, width, channels]`, without a mask."""

    def tensors(
        self, rows: torch.Tensor, lengths: torch.Tensor, fmt: VideoFormat
    ) -> tuple[torch.Tensor, None]:
        """Return the frames as they are stored, and no mask."""
        return rows, None

    def mask_of_present(self, present: torch.Tensor, fmt: VideoFormat) -> torch.Tensor:
        """Return a bool mask `[batch, frames]`."""
        return present[:, None].expand(-1, fmt.num_frames)

    def input_config(
        self, fmt: VideoFormat, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> VideoInput:
        """Return a video input."""
        return VideoInput(
            num_frames=fmt.num_frames,
            height=fmt.height,
            width=fmt.width,
            channels=fmt.channels,
            mean=pixel_mean,
            std=pixel_std,
        )

    def input_picture(self, stored: torch.Tensor, fmt: VideoFormat) -> np.ndarray | None:
        """Return the frame in the middle, if it has 1 or 3 channels."""
        return as_picture(stored[len(stored) // 2]) if len(stored) else None

    def attention_view(
        self, weights: np.ndarray, stored: torch.Tensor, inputs: Any, fmt: VideoFormat
    ) -> View:
        """Return the weights over the frames, and a heat map over the most attended one."""
        over_time = weights.reshape(len(weights), -1).sum(axis=1)
        step, num_frames = int(over_time.argmax()), len(stored)
        frame = stored[min(num_frames - 1, step * num_frames // len(over_time))]
        heat = weights[step].reshape(weights.shape[1:3])
        return {**curve(weights, "frames", num_frames), "png": heat_map(frame, heat)}

    def augment_fields(self, fmt: VideoFormat) -> tuple[str, ...]:
        """Return the fields that change films."""
        return PICTURE_FIELDS

    def mix_fields(self, fmt: VideoFormat) -> tuple[str, ...]:
        """Return all fields that mix samples."""
        return MIX_FIELDS

    def check_augment(self, augment: Any, fmt: VideoFormat) -> None:
        """Refuse a shift that these films cannot take."""
        check_shift(augment, fmt)
