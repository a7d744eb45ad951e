"""How a model reads recordings: as samples or as log-mel frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perceiver_model.adapters.configs import (
    AudioInput,
    FeatureMapInput,
    MelConfig,
    MelConvConfig,
    PixelsConfig,
)
from perceiver_model.families.classifier_config import AdapterConfig
from pipeline.inputs.attention_view import View, curve, grey, wave
from pipeline.inputs.modality import ModalityInputs, check_equal
from pipeline.media.audio.decode import AudioFormat

if TYPE_CHECKING:
    import numpy as np
    import torch

SOUND_FIELDS = ("shift_seconds", "gain_db", "noise")
MEL_FIELDS = ("shift_seconds", "noise", "mask_seconds", "mask_bands", "band_gain")
"""The fields of `training.augment` for log-mel frames.

A gain is not among them: each sample's frames are standardised, which would undo it.
"""


class AudioInputs(ModalityInputs[AudioFormat]):
    """Recordings as int16 `[batch, samples]` with a mask `[batch, samples]`.

    Log-mel frames are float32 `[batch, frames, 1, num_mels]` with a mask `[batch, frames, 1]`. Each
    sample's frames are standardised as the model's own front end does it.
    """

    def padded_length(self, fmt: AudioFormat) -> int:
        """Return the length of a full recording, in samples or frames."""
        return fmt.shape[0]

    def tensors(
        self, rows: torch.Tensor, lengths: torch.Tensor, fmt: AudioFormat
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the samples as they are stored, or the standardised frames, and their mask."""
        import torch

        from perceiver_model.adapters.mel import standardise_frames

        mask = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
        if fmt.mel is None:
            return rows, mask
        # A feature map of one column, whose channels are the bands.
        return standardise_frames(rows.float(), mask).unsqueeze(2), mask.unsqueeze(2)

    def input_config(
        self, fmt: AudioFormat, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> AudioInput | FeatureMapInput:
        """Return an audio input, or a feature map if log-mel frames are stored.

        The feature map has one column, and its channels are the mel bands.
        """
        if fmt.mel is not None:
            frames, num_mels = fmt.shape
            return FeatureMapInput(height=frames, width=1, channels=num_mels)
        return AudioInput(sample_rate=fmt.sample_rate, num_samples=fmt.num_samples)

    def adapter(self, fmt: AudioFormat, adapter: AdapterConfig) -> AdapterConfig:
        """Return the adapter; if log-mel frames are stored, one that reads them as they are.

        Raises:
            ValueError: Frames are stored, and the adapter is neither `mel_conv` nor `mel` with
                `tokens=frames`, or its `num_mels`, `window` or `hop` differ from those of the
                stored frames.
        """
        if fmt.mel is None:
            return adapter
        if isinstance(adapter, MelConvConfig):
            check_equal(adapter, fmt.mel, "data.audio.mel", "num_mels window hop")
            return adapter
        if not isinstance(adapter, MelConfig) or adapter.tokens != "frames":
            raise ValueError(
                "data.audio.mel stores log-mel frames, which adapters mel_conv, and mel with "
                "tokens=frames, read; give one of them, or leave data.audio.mel out"
            )
        check_equal(adapter, fmt.mel, "data.audio.mel", "num_mels window hop")
        return PixelsConfig()

    def input_picture(self, stored: torch.Tensor, fmt: AudioFormat) -> np.ndarray | None:
        """Return the log-mel frames with time to the right and low bands below, or the wave."""
        if not len(stored):
            return None
        return wave(stored) if fmt.mel is None else grey(stored.float().numpy().T[::-1])

    def attention_view(
        self, weights: np.ndarray, stored: torch.Tensor, inputs: Any, fmt: AudioFormat
    ) -> View:
        """Return the weights over time."""
        return curve(weights, "seconds", float(fmt.num_samples / fmt.sample_rate))

    def augment_fields(self, fmt: AudioFormat) -> tuple[str, ...]:
        """Return the fields that change samples, or those that change log-mel frames."""
        return SOUND_FIELDS if fmt.mel is None else MEL_FIELDS

    def mix_fields(self, fmt: AudioFormat) -> tuple[str, ...]:
        """Return MixUp: sounds have no box to cut."""
        return ("mixup",)

    def check_augment(self, augment: Any, fmt: AudioFormat) -> None:
        """Refuse times and numbers of bands that change nothing or leave nothing of a recording.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        step = 1 / fmt.sample_rate
        if fmt.mel is not None:
            step = fmt.mel.hop_length(fmt.sample_rate) / fmt.sample_rate
            if augment.mask_bands >= fmt.mel.num_mels:
                raise ValueError(
                    f"training.augment.mask_bands is {augment.mask_bands}, but data.audio.mel has "
                    f"{fmt.mel.num_mels} bands; hide fewer"
                )
        taken = self.augment_fields(fmt)
        for field in ("shift_seconds", "mask_seconds"):
            seconds = getattr(augment, field)
            if field in taken and 0 < seconds <= step / 2:
                raise ValueError(
                    f"training.augment.{field} is {seconds:g}, but the sound has a step of "
                    f"{step:g} seconds; give more than half of that"
                )
            if field in taken and seconds >= fmt.seconds:
                raise ValueError(
                    f"training.augment.{field} is {seconds:g}, but data.audio.seconds is "
                    f"{fmt.seconds:g}; nothing might be left of a recording"
                )

    def stored_as(self, fmt: AudioFormat) -> str:
        """Return ` stored as mel` if the shards hold log-mel frames, else an empty string."""
        return "" if fmt.mel is None else " stored as mel"
