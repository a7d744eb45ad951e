"""Configurations with published results, by name (paper, section 4 and appendix A; IO).

For ModelNet40 and AudioSet, the paper specifies the inputs, the cross-attends and the self-attends.
For AudioSet, it also says that no weights are shared. The other values are those for ImageNet.
AudioSet's sample rate is only documentation: its 61,440 samples last as long as 32 frames at 25
frames per second.
"""

import dataclasses
import difflib

from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    ConvStemConfig,
    ImageInput,
    MediaAdapter,
    MediaInput,
    MelConfig,
    PixelsConfig,
    PointsConfig,
    PointsInput,
    SpaceTimePatchesConfig,
    VideoInput,
)
from perceiver_model.adapters.multimodal_config import Modality, MultimodalInput, PaddedModalities
from perceiver_model.config import (
    DecoderConfig,
    EncoderConfig,
    FourierConfig,
    LearnedPositions,
    PositionConfig,
)
from perceiver_model.families.autoencoder_config import AutoencoderConfig
from perceiver_model.families.autoregressive_config import ARConfig
from perceiver_model.families.classifier_config import AdapterConfig, ClassifierConfig, InputConfig
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.flow_config import FlowConfig
from perceiver_model.families.kinetics_config import kinetics_autoencoder
from perceiver_model.families.language_config import LanguageConfig
from perceiver_model.families.queries_config import QueriesConfig

ModelConfig = (
    ClassifierConfig
    | QueriesConfig
    | LanguageConfig
    | ARConfig
    | DenseConfig
    | FlowConfig
    | AutoencoderConfig
)
"""The configuration of any model."""

_IMAGENET = ClassifierConfig(
    input=ImageInput(height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    adapter=PixelsConfig(),
    positions=FourierConfig(num_bands=64, max_resolution=(224, 224)),
    encoder=EncoderConfig(),
    num_classes=1000,
)


def _imagenet(encoder: EncoderConfig) -> ClassifierConfig:
    return dataclasses.replace(_IMAGENET, encoder=encoder)


_IO_IMAGENET = dataclasses.replace(
    _IMAGENET, encoder=EncoderConfig(num_cross_attends=1), decoder=DecoderConfig()
)


_AUDIOSET: dict[str, tuple[MediaInput, MediaAdapter]] = {
    "audio": (AudioInput(sample_rate=48_000, num_samples=61_440), ChunksConfig(chunk_size=128)),
    "mel": (
        AudioInput(sample_rate=48_000, num_samples=61_440),
        MelConfig(num_mels=64, window=0.025, hop=0.017, tokens="cells"),
    ),
    "video": (VideoInput(num_frames=32, height=224, width=224), SpaceTimePatchesConfig()),
}


def _audioset(
    media: InputConfig, adapter: AdapterConfig, positions: PositionConfig | None = FourierConfig()
) -> ClassifierConfig:
    return ClassifierConfig(
        input=media,
        adapter=adapter,
        positions=positions,
        encoder=EncoderConfig(
            num_blocks=2,
            num_cross_attends=2,
            num_self_attends=8,
            share_cross_attends="none",
            share_self_attends=False,
        ),
        num_classes=527,
    )


_AUDIOSET_BOTH = _audioset(
    MultimodalInput(
        modalities={
            name: Modality(input=media, adapter=adapter, dropout=0.3 * (name == "video"))
            for name, (media, adapter) in _AUDIOSET.items()
            if name != "mel"
        }
    ),
    PaddedModalities(embedding_channels=4, padding="zeros"),
    positions=None,
)


PRESETS: dict[str, ModelConfig] = {
    # 44.9 M parameters, 707.2 GFLOP per image, 78.0 % top-1.
    "imagenet": _IMAGENET,
    # 42.1 M parameters, 404.3 GFLOP per image, 76.7 %.
    "imagenet-one-cross-attend": _imagenet(EncoderConfig(num_cross_attends=1)),
    # Two and four cross-attends: 76.5 % each.
    "imagenet-two-cross-attends": _imagenet(EncoderConfig(num_cross_attends=2)),
    "imagenet-four-cross-attends": _imagenet(EncoderConfig(num_cross_attends=4)),
    # All cross-attends before the first block: 73.7 %.
    "imagenet-cross-attends-first": _imagenet(EncoderConfig(cross_attend_layout="first")),
    # No weight sharing: 326.2 M parameters, 72.9 % on validation, 87.7 % on training images.
    "imagenet-unshared": _imagenet(
        EncoderConfig(share_cross_attends="none", share_self_attends=False)
    ),
    # Perceiver IO on ImageNet (IO, section 4.5): 48,440,627 parameters, 407 GFLOP, 79.0 %.
    "io-imagenet-fourier": _IO_IMAGENET,
    # The model knows nothing about the grid: 62,255,848 parameters, 72.7 %. It is also published
    # with 407 GFLOP, but tokens of 512 channels instead of 261 take 478.
    "io-imagenet-learned": dataclasses.replace(
        _IO_IMAGENET,
        adapter=PixelsConfig(num_channels=256),
        positions=LearnedPositions(num_channels=256, projected_channels=256),
        decoder=DecoderConfig(query_residual=False),
    ),
    # 48,646,522 parameters, 369 GFLOP, 82.1 %.
    "io-imagenet-conv": dataclasses.replace(
        _IO_IMAGENET,
        adapter=ConvStemConfig(),
        positions=FourierConfig(num_bands=64, max_resolution=(56, 56)),
    ),
    # Masked language modelling on bytes (IO, section 4.1): 201,108,230 parameters.
    "io-mlm-bytes": LanguageConfig(),
    # Perceiver AR (arXiv 2202.07765) on bytes, with the defaults of its released code:
    # 164.3 M parameters, 451.5 GFLOP for 8,192 tokens.
    "ar-bytes": ARConfig(),
    # ModelNet40, with about 2,000 points per cloud: 85.7 %.
    "modelnet40": ClassifierConfig(
        input=PointsInput(num_points=2048),
        adapter=PointsConfig(num_bands=64, max_resolution=2240),
        positions=None,
        encoder=EncoderConfig(num_blocks=2, num_cross_attends=2, num_self_attends=6),
        num_classes=40,
    ),
    # AudioSet, 61,440 raw samples in 480 tokens: the paper's best for sound is 38.4 mAP.
    "audioset-audio": _audioset(*_AUDIOSET["audio"]),
    # The same sound as a log-mel spectrogram of 4,800 cells. The paper does not specify 75 × 64.
    "audioset-mel": _audioset(*_AUDIOSET["mel"]),
    # The 32 frames of the same clips in 12,544 tokens: 25.8 mAP.
    "audioset-video": _audioset(*_AUDIOSET["video"]),
    # Both, in 13,024 tokens, 30 % of training samples without video: the paper's best is 44.2 mAP.
    "audioset-audio-video": _AUDIOSET_BOTH,
    # Perceiver IO on AudioSet (IO, section 4.4): 512 latents and 12 layers; the rest as above.
    "io-audioset-audio-video": dataclasses.replace(
        _AUDIOSET_BOTH,
        encoder=EncoderConfig(num_blocks=1, num_cross_attends=1, num_self_attends=12),
        decoder=DecoderConfig(),
    ),
    # Optical flow (IO, section 4.2): 41,057,134 parameters.
    "io-flow": FlowConfig(),
    # Autoencoding of Kinetics (IO, section 4.3): 19,858,855 parameters.
    "io-kinetics-autoencoder": kinetics_autoencoder(),
}
"""The configurations by name, with their published costs and accuracies."""


def preset(name: str) -> ModelConfig:
    """Return the named configuration.

    Raises:
        ValueError: If the name is unknown. The error suggests the nearest name and lists all.
    """
    if name in PRESETS:
        return PRESETS[name]
    nearest = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(f"no preset {name!r}: {hint}known presets: {', '.join(PRESETS)}")
