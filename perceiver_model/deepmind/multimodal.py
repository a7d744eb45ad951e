"""Perceiver IO's autoencoder of Kinetics: video, sound and class label.

DeepMind's model reads 16 frames of 224 × 224 pixels in [0, 1], 30,720 samples of sound at 48 kHz,
and a label that is always masked, so that it classifies. The modalities are named "image", "audio"
and "label". The label may be None.

transformers differs from DeepMind in one point, and `Fidelity` chooses between them: its MLPs use
the exact GELU instead of the tanh approximation. There are two further differences:

- transformers cannot decode without output indices. Without them it takes the width of a token for
  the shape of the output grid.
- transformers computes Fourier features in float32, as DeepMind does. The precision here is
  float64. At 30,720 samples, the angles of the highest band reach 48,000 radians, where
  neighbouring float32 numbers are 0.004 apart.

In both, outputs that are selected by index lie at -1 + 2 i / n. Inputs, in contrast, are evenly
spaced from -1 to 1; see `fourier.Spacing`.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch

from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    OneHotConfig,
    SpaceTimePatchesConfig,
    VideoInput,
)
from perceiver_model.config import DecoderConfig
from perceiver_model.deepmind.architecture import Architecture, explicit_positions
from perceiver_model.deepmind.layers import (
    PREPROCESSOR,
    TensorMap,
    decoder_map,
    encoder_map,
    layer_map,
    tensor_map,
)
from perceiver_model.deepmind.settings import (
    Fidelity,
    label_settings,
    num_classes,
    read_encoder,
    read_gelu,
    read_precision,
    setting,
    write_encoder,
)
from perceiver_model.families.autoencoder import MultimodalAutoencoder
from perceiver_model.families.autoencoder_config import AutoencoderConfig, GridOutput, VectorOutput
from perceiver_model.families.kinetics_config import kinetics_autoencoder

MODALITIES = ("audio", "image", "label")
FRAMES_PER_SECOND = 25
_HEADS = "perceiver.output_postprocessor.modalities"


class KineticsAutoencoder(Architecture[AutoencoderConfig]):
    """The class `PerceiverForMultimodalAutoencoding`."""

    name = "PerceiverForMultimodalAutoencoding"
    model = MultimodalAutoencoder
    irrelevant = frozenset(
        {
            "input.modalities.audio.input.sample_rate",
            "input.modalities.image.input.mean",
            "input.modalities.image.input.std",
            *(
                f"input.modalities.{name}.{field}"
                for name in MODALITIES
                for field in ("dropout", "mask_probability")  # Used in training only.
            ),
        }
    )

    def recognises(self, names: Collection[str]) -> bool:
        return f"{PREPROCESSOR}.mask.label" in names

    def fits(self, config: object) -> bool:
        return (
            isinstance(config, AutoencoderConfig)
            and {*config.input.modalities} == {*config.outputs} == {*MODALITIES}
            and all(part.mask_probability is not None for part in config.input.modalities.values())
            and isinstance(config.input.modalities["audio"].adapter, ChunksConfig)
            and isinstance(config.input.modalities["image"].adapter, SpaceTimePatchesConfig)
            and isinstance(config.input.modalities["label"].adapter, OneHotConfig)
            and isinstance(config.outputs["label"], VectorOutput)
        )

    def read_config(
        self,
        settings: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        fidelity: Fidelity,
        image_size: tuple[int, int] | None,
    ) -> AutoencoderConfig:
        _, num_frames, height, width = setting(settings, "output_shape")
        height, width = image_size or (height, width)
        per_frame, frames = (
            setting(settings, name) for name in ("audio_samples_per_frame", "num_frames")
        )
        size = setting(settings, "image_size")
        return kinetics_autoencoder(
            num_frames=num_frames,
            height=height,
            width=width,
            num_samples=frames * per_frame,
            sample_rate=FRAMES_PER_SECOND * per_frame,
            samples_per_token=setting(settings, "samples_per_patch"),
            num_classes=num_classes(settings, state_dict, f"{_HEADS}.label.classifier"),
            max_resolution=(frames, size, size),
            encoder=read_encoder(settings, fidelity),
            decoder=DecoderConfig(query_residual=False, gelu=read_gelu(settings, fidelity)),
            label_query_channels=setting(settings, "_label_trainable_num_channels"),
            decoded_channels=setting(settings, "output_num_channels"),
            position_precision=read_precision(fidelity),
        )

    def write_settings(self, config: AutoencoderConfig) -> dict[str, Any]:
        audio, image = (config.input.modalities[name] for name in ("audio", "image"))
        assert isinstance(audio.input, AudioInput) and isinstance(audio.adapter, ChunksConfig)
        assert isinstance(image.input, VideoInput)
        label = config.outputs["label"]
        frames, size, _ = image.max_resolution
        return {
            **write_encoder(config.encoder, config.input_channels),
            **label_settings(label.num_channels),
            "num_frames": int(frames),
            "image_size": int(size),
            "audio_samples_per_frame": audio.input.num_samples // int(frames),
            "samples_per_patch": audio.adapter.chunk_size,
            "output_shape": [1, *image.input.grid],
            "output_num_channels": config.decoded_channels,
            "_label_trainable_num_channels": label.query_channels,
        }

    def image_size(self, config: AutoencoderConfig) -> tuple[int, int]:
        image = config.input.modalities["image"].input
        assert isinstance(image, VideoInput)
        return image.height, image.width

    def explicit(self, config: AutoencoderConfig) -> AutoencoderConfig:
        modalities = {
            name: dataclasses.replace(
                part, positions=explicit_positions(part.positions, part.token_grid)
            )
            for name, part in config.input.modalities.items()
        }
        outputs = {
            name: dataclasses.replace(
                output, positions=explicit_positions(output.positions, output.grid)
            )
            if isinstance(output, GridOutput)
            else output
            for name, output in config.outputs.items()
        }
        media = dataclasses.replace(config.input, modalities=modalities)
        return dataclasses.replace(super().explicit(config), input=media, outputs=outputs)

    def tensors(self, config: AutoencoderConfig) -> list[TensorMap]:
        label = "perceiver.decoder.modalities.label.decoder.output_position_encodings"
        entries = [
            *encoder_map(config.encoder),
            *tensor_map("queries.label.queries", f"{label}.position_embeddings"),
            *decoder_map("decoder", output=True),
        ]
        for name in MODALITIES:
            entries += [
                *tensor_map(f"adapter.padding.vectors.{name}", f"{PREPROCESSOR}.padding.{name}"),
                *tensor_map(f"adapter.mask_tokens.{name}", f"{PREPROCESSOR}.mask.{name}"),
                *tensor_map(f"query_padding.vectors.{name}", f"perceiver.decoder.padding.{name}"),
                *layer_map(f"outputs.{name}", f"{_HEADS}.{name}.classifier"),
            ]
        return entries
