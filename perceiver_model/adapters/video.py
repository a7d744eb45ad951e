"""Video as tokens: the pixels of every frame, or space-time patches."""

import torch
from torch import nn

from perceiver_model.adapters.checks import Tokens, check_mask
from perceiver_model.adapters.configs import SpaceTimePatchesConfig, VideoInput
from perceiver_model.adapters.image import ImageStandardiser


class VideoStandardiser(nn.Module):
    """Standardise videos to float32 as `(video - mean) / std`, and expand their mask to pixels."""

    def __init__(self, video: VideoInput) -> None:
        super().__init__()
        self.standardise = ImageStandardiser(video)

    def forward(
        self, videos: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the standardised videos and the mask of their pixels.

        Args:
            videos: The videos `[batch, frames, height, width, channels]`, uint8 or floating point.
            mask: The valid frames, bool `[batch, frames]`, or the valid pixels, bool
                `[batch, frames, height, width]`, or None if all are valid.

        Returns:
            The videos, float32, with invalid pixels set to zero; and the mask, bool
            `[batch, frames, height, width]`, or None.
        """
        check_mask(mask, videos.shape[:2], videos.shape[:-1])
        if mask is not None and mask.ndim == 2:
            mask = mask[..., None, None].expand(videos.shape[:-1])
        return self.standardise(videos, mask), mask


class VideoPixelAdapter(nn.Module):
    """One token per pixel of every frame, which holds the channels of the pixel."""

    def __init__(self, video: VideoInput) -> None:
        super().__init__()
        self.standardise = VideoStandardiser(video)

    def forward(self, videos: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, frames * height * width, channels]` and the token mask.

        The arguments are those of `VideoStandardiser.forward`.
        """
        standardised, pixel_mask = self.standardise(videos, mask)
        return standardised.flatten(1, 3), None if pixel_mask is None else pixel_mask.flatten(1)


class SpaceTimePatchAdapter(nn.Module):
    """One token per box of pixels, in the order (frame, row, column, channel).

    See the paper, section 4.2.
    """

    def __init__(self, video: VideoInput, patches: SpaceTimePatchesConfig) -> None:
        super().__init__()
        self.standardise = VideoStandardiser(video)
        self.patch_shape = (patches.num_frames, patches.height, patches.width)

    def forward(self, videos: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, patches, pixels of a patch * channels]` and the token mask.

        The arguments are those of `VideoStandardiser.forward`.
        """
        standardised, pixel_mask = self.standardise(videos, mask)
        content = self._patches(standardised)
        if pixel_mask is None:
            return content, None
        return content, self._patches(pixel_mask.unsqueeze(-1)).any(dim=-1)

    def _patches(self, videos: torch.Tensor) -> torch.Tensor:
        """Reshape `[batch, frames, height, width, channels]` to `[batch, patches, values]`.

        A patch has `pixels * channels` values.
        """
        for axis, size in enumerate(self.patch_shape):
            videos = videos.unflatten(1 + 2 * axis, (-1, size))
        # (batch, time, frame, rows, row, columns, column, channel): positions first, pixels last
        return videos.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)
