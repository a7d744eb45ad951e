"""What a Perceiver reads, and which adapter turns it into tokens: configuration, free of torch."""

from perceiver_model.inputs.audio import AudioInput, Chunks, Mel
from perceiver_model.inputs.base import AdapterBase
from perceiver_model.inputs.classes import ClassInput, OneHot
from perceiver_model.inputs.image import Conv, ConvStem, ImageInput, Patches, Pixels
from perceiver_model.inputs.points import Points, PointsInput
from perceiver_model.inputs.table import Columns, TableInput
from perceiver_model.inputs.text import TextInput, TokenEmbedding
from perceiver_model.inputs.video import FeatureMapInput, SpaceTimePatches, VideoInput

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
"""An input of one modality."""

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
"""An adapter of one modality."""
