"""The inputs of a Perceiver and the adapters that turn them into tokens, without torch."""

from perceiver_model.adapters.audio_config import AudioInput, Chunks, Mel
from perceiver_model.adapters.classes_config import ClassInput, OneHot
from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.adapters.image_config import Conv, ConvStem, ImageInput, Patches, Pixels
from perceiver_model.adapters.points_config import Points, PointsInput
from perceiver_model.adapters.table_config import Columns, TableInput
from perceiver_model.adapters.text_config import TextInput, TokenEmbedding
from perceiver_model.adapters.video_config import FeatureMapInput, SpaceTimePatches, VideoInput

__all__ = [
    "AdapterBase",
    "AudioInput",
    "Chunks",
    "ClassInput",
    "Columns",
    "Conv",
    "ConvStem",
    "FeatureMapInput",
    "ImageInput",
    "MediaAdapter",
    "MediaInput",
    "Mel",
    "OneHot",
    "Patches",
    "Pixels",
    "Points",
    "PointsInput",
    "SpaceTimePatches",
    "TableInput",
    "TextInput",
    "TokenEmbedding",
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
    Pixels
    | Patches
    | Conv
    | ConvStem
    | Chunks
    | Mel
    | TokenEmbedding
    | SpaceTimePatches
    | Points
    | Columns
    | OneHot
)
"""The adapter of a single modality."""
