"""DeepMind's autoencoder of Kinetics: video, sound and class label (IO, section 4.3)."""

from typing import Literal

from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    ClassInput,
    OneHotConfig,
    SpaceTimePatchesConfig,
    VideoInput,
)
from perceiver_model.adapters.multimodal_config import Modality, MultimodalInput, PaddedModalities
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig
from perceiver_model.families.autoencoder_config import AutoencoderConfig, GridOutput, VectorOutput

KINETICS_ENCODER = EncoderConfig(
    num_latents=784,
    latent_dim=512,
    num_blocks=1,
    num_cross_attends=1,
    num_self_attends=8,
    num_self_heads=8,
)


def kinetics_autoencoder(
    *,
    num_frames: int = 16,
    height: int = 224,
    width: int = 224,
    num_samples: int = 30_720,
    sample_rate: int = 48_000,
    samples_per_token: int = 16,
    num_classes: int = 700,
    max_resolution: tuple[float, ...] = (16, 56, 56),
    encoder: EncoderConfig = KINETICS_ENCODER,
    decoder: DecoderConfig = DecoderConfig(query_residual=False),
    label_query_channels: int = 1024,
    decoded_channels: int = 512,
    position_precision: Literal["float64", "float32"] = "float64",
) -> AutoencoderConfig:
    """Return the configuration of the released model, or of a variant.

    The released model reads 52,097 tokens of 704 channels and decodes 804,737 queries. The
    modalities and outputs are:

    - "audio", with tokens of `samples_per_token` samples;
    - "image", with tokens of 4 × 4 pixels of one frame, from videos in [0, 1] that are not
      standardised;
    - "label", which is always masked in evaluation, so that the model classifies.

    The paper counts 50,657 tokens and 803,297 queries, which corresponds to 64 samples per token.

    Args:
        num_frames: The number of frames of a video.
        height: The number of pixel rows.
        width: The number of pixel columns.
        num_samples: The number of samples of the sound.
        sample_rate: The sample rate in Hz.
        samples_per_token: The number of samples in a token, a divisor of `num_samples`.
        num_classes: The number of classes.
        max_resolution: The resolution of the video's positions, in frames, rows and columns of
            tokens.
        encoder: The configuration of the encoder.
        decoder: The configuration of the decoder.
        label_query_channels: The number of channels of the label's query.
        decoded_channels: The number of decoded channels before each output's linear layer.
        position_precision: The precision of the Fourier features.

    Raises:
        ValueError: If the tokens do not tile the sound or the video.
    """
    if num_samples % samples_per_token:
        raise ValueError(
            f"samples_per_token is {samples_per_token}; must be a divisor of num_samples = "
            f"{num_samples}"
        )
    audio_positions = FourierConfig(
        num_bands=192, max_resolution=(num_samples,), precision=position_precision
    )
    image_positions = FourierConfig(
        num_bands=32, max_resolution=max_resolution, precision=position_precision
    )
    modalities = {
        "audio": Modality(
            input=AudioInput(sample_rate=sample_rate, num_samples=num_samples),
            adapter=ChunksConfig(chunk_size=samples_per_token),
            positions=audio_positions,
            mask_probability=0.0,
        ),
        "image": Modality(
            input=VideoInput(
                num_frames=num_frames, height=height, width=width, mean=(0.0,), std=(1.0,)
            ),
            adapter=SpaceTimePatchesConfig(num_frames=1, height=4, width=4),
            positions=image_positions,
            mask_probability=0.0,
        ),
        "label": Modality(
            input=ClassInput(num_classes=num_classes),
            adapter=OneHotConfig(),
            positions=None,
            mask_probability=1.0,
            masked_in_evaluation=True,
        ),
    }
    return AutoencoderConfig(
        input=MultimodalInput(modalities=modalities),
        adapter=PaddedModalities(embedding_channels=4, padding="learned"),
        encoder=encoder,
        decoder=decoder,
        outputs={
            "audio": GridOutput(
                grid=(num_samples // samples_per_token,),
                num_channels=samples_per_token,
                positions=audio_positions,
            ),
            "image": GridOutput(
                grid=(num_frames, height, width), num_channels=3, positions=image_positions
            ),
            "label": VectorOutput(num_channels=num_classes, query_channels=label_query_channels),
        },
        query_embedding_channels=2,
        decoded_channels=decoded_channels,
    )
