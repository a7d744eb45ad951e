"""Log-mel spectrograms as tokens, through a convolutional front end."""

import torch

from perceiver_model.adapters.audio import MelAdapter
from perceiver_model.adapters.checks import Tokens, check_inputs
from perceiver_model.adapters.configs import AudioInput, FeatureMapInput, MelConvConfig
from perceiver_model.adapters.image import ConvTokens


class MelConvAdapter(ConvTokens):
    """The tokens of a spectrogram of sound, or of log-mel frames that are stored."""

    def __init__(self, media: AudioInput | FeatureMapInput, config: MelConvConfig) -> None:
        super().__init__(1, config.num_channels, config.stages)
        self.mel = None
        if isinstance(media, AudioInput):
            self.mel = MelAdapter(media, config.mel)
        else:
            self.shape = (*media.grid, media.channels)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, tokens, channels]` and the token mask.

        `MelConvConfig.token_grid` and `content_channels` say how many there are.

        Args:
            inputs: The sound `[batch, num_samples]`, int16 or floating point; or its standardised
                frames, floating point `[batch, frames, 1, num_mels]`.
            mask: The valid samples, bool `[batch, num_samples]`, or the valid frames, bool
                `[batch, frames, 1]`. None if all are valid.
        """
        if self.mel is not None:
            frames, valid = self.mel(inputs, mask)
        else:
            check_inputs(inputs, mask, self.shape)
            frames = inputs.squeeze(2)
            valid = None if mask is None else mask.squeeze(2)
            if valid is not None:
                frames = frames.masked_fill(~valid.unsqueeze(-1), 0.0)
        cells = None if valid is None else valid.unsqueeze(-1).expand_as(frames)
        return self.tokens(frames.unsqueeze(1), cells)
