"""The inputs of a Perceiver and the adapters that turn them into tokens, without torch."""

from perceiver_model.adapters.audio_config import AudioInput, ChunksConfig, MelConfig, MelConvConfig
from perceiver_model.adapters.backbone_config import BackboneConfig
from perceiver_model.adapters.classes_config import ClassInput, OneHotConfig
from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.adapters.image_config import (
    ConvConfig,
    ConvStemConfig,
    ImageInput,
    PatchesConfig,
    PixelsConfig,
)
from perceiver_model.adapters.points_config import PointsConfig, PointsInput
from perceiver_model.adapters.table_config import ColumnsConfig, TableInput
from perceiver_model.adapters.text_config import TextInput, TokenEmbeddingConfig
from perceiver_model.adapters.video_config import (
    FeatureMapInput,
    SpaceTimePatchesConfig,
    VideoInput,
)

__all__ = [
    "AdapterBase",
    "AudioInput",
    "BackboneConfig",
    "ChunksConfig",
    "ClassInput",
    "ColumnsConfig",
    "ConvConfig",
    "ConvStemConfig",
    "FeatureMapInput",
    "ImageInput",
    "MediaAdapter",
    "MediaInput",
    "MelConfig",
    "MelConvConfig",
    "OneHotConfig",
    "PatchesConfig",
    "PixelsConfig",
    "PointsConfig",
    "PointsInput",
    "SpaceTimePatchesConfig",
    "TableInput",
    "TextInput",
    "TokenEmbeddingConfig",
    "VideoInput",
]

MediaInput = (
    ImageInput
    | AudioInput
    | TextInput
    | VideoInput
    | FeatureMapInput
    | PointsInput
    | TableInput
    | ClassInput
)
"""The input of a single modality."""

MediaAdapter = (
    PixelsConfig
    | PatchesConfig
    | ConvConfig
    | ConvStemConfig
    | ChunksConfig
    | MelConfig
    | MelConvConfig
    | TokenEmbeddingConfig
    | SpaceTimePatchesConfig
    | PointsConfig
    | ColumnsConfig
    | OneHotConfig
    | BackboneConfig
)
"""The adapter of a single modality."""
