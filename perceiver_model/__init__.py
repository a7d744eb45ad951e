"""The Perceiver (Jaegle et al. 2021, arXiv 2103.03206) and its descendants.

Names are imported on first use, so that the configuration can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceiver_model.adapters.configs import (
        AudioInput,
        Chunks,
        ClassInput,
        Columns,
        Conv,
        ConvStem,
        FeatureMapInput,
        ImageInput,
        Mel,
        OneHot,
        Patches,
        Pixels,
        Points,
        PointsInput,
        SpaceTimePatches,
        TableInput,
        TextInput,
        TokenEmbedding,
        VideoInput,
    )
    from perceiver_model.adapters.multimodal_config import (
        Modality,
        MultimodalInput,
        PaddedModalities,
    )
    from perceiver_model.adapters.table import TableRows
    from perceiver_model.adapters.text import decode_bytes, encode_bytes
    from perceiver_model.attention_maps import (
        cross_attention_maps,
        map_divergence,
        on_grid,
        overlay,
    )
    from perceiver_model.config import EncoderConfig, FourierConfig
    from perceiver_model.export import export_onnx, export_program
    from perceiver_model.families.autoencoder import MultimodalAutoencoder
    from perceiver_model.families.autoencoder_config import (
        AutoencoderConfig,
        GridOutput,
        VectorOutput,
    )
    from perceiver_model.families.autoregressive import PerceiverAR, next_token_loss
    from perceiver_model.families.autoregressive_config import ARConfig, autoregressive_flops
    from perceiver_model.families.classifier import PerceiverClassifier
    from perceiver_model.families.classifier_config import (
        AdapterConfig,
        ClassifierConfig,
        InputConfig,
    )
    from perceiver_model.families.dense import DensePredictor
    from perceiver_model.families.dense_config import DenseConfig
    from perceiver_model.families.flow import OpticalFlow, tiled_flow
    from perceiver_model.families.flow_config import FlowConfig
    from perceiver_model.families.generation import CachedDecoder, generate, sample_tokens
    from perceiver_model.families.language import MaskedLanguageModel
    from perceiver_model.families.language_config import LanguageConfig
    from perceiver_model.families.presets import PRESETS, preset
    from perceiver_model.families.streams import read_stream
    from perceiver_model.flops import forward_flops, num_parameters
    from perceiver_model.fourier import fourier_features, grid_positions, position_table
    from perceiver_model.perceiver import PerceiverEncoder

_MODULE_OF = {
    "ARConfig": "autoregressive_config",
    "AdapterConfig": "classifier_config",
    "AudioInput": "inputs",
    "AutoencoderConfig": "autoencoder_config",
    "CachedDecoder": "generation",
    "Chunks": "inputs",
    "ClassInput": "inputs",
    "ClassifierConfig": "classifier_config",
    "Columns": "inputs",
    "Conv": "inputs",
    "ConvStem": "inputs",
    "DenseConfig": "dense_config",
    "DensePredictor": "dense",
    "EncoderConfig": "config",
    "FeatureMapInput": "inputs",
    "FlowConfig": "flow_config",
    "FourierConfig": "config",
    "GridOutput": "autoencoder_config",
    "ImageInput": "inputs",
    "InputConfig": "classifier_config",
    "LanguageConfig": "language_config",
    "MaskedLanguageModel": "language",
    "Mel": "inputs",
    "Modality": "multimodal_config",
    "MultimodalAutoencoder": "autoencoder",
    "MultimodalInput": "multimodal_config",
    "OneHot": "inputs",
    "OpticalFlow": "flow",
    "PRESETS": "presets",
    "PaddedModalities": "multimodal_config",
    "Patches": "inputs",
    "PerceiverAR": "autoregressive",
    "PerceiverClassifier": "classifier",
    "PerceiverEncoder": "perceiver",
    "Pixels": "inputs",
    "Points": "inputs",
    "PointsInput": "inputs",
    "SpaceTimePatches": "inputs",
    "TableInput": "inputs",
    "TableRows": "adapters.table",
    "TextInput": "inputs",
    "TokenEmbedding": "inputs",
    "VectorOutput": "autoencoder_config",
    "VideoInput": "inputs",
    "autoregressive_flops": "autoregressive_config",
    "cross_attention_maps": "attention_maps",
    "decode_bytes": "adapters.text",
    "encode_bytes": "adapters.text",
    "export_onnx": "export",
    "export_program": "export",
    "forward_flops": "flops",
    "fourier_features": "fourier",
    "generate": "generation",
    "grid_positions": "fourier",
    "map_divergence": "attention_maps",
    "next_token_loss": "autoregressive",
    "num_parameters": "flops",
    "on_grid": "attention_maps",
    "overlay": "attention_maps",
    "position_table": "fourier",
    "preset": "presets",
    "read_stream": "streams",
    "sample_tokens": "generation",
    "tiled_flow": "flow",
}

__all__ = [
    "PRESETS",
    "ARConfig",
    "AdapterConfig",
    "AudioInput",
    "AutoencoderConfig",
    "CachedDecoder",
    "Chunks",
    "ClassInput",
    "ClassifierConfig",
    "Columns",
    "Conv",
    "ConvStem",
    "DenseConfig",
    "DensePredictor",
    "EncoderConfig",
    "FeatureMapInput",
    "FlowConfig",
    "FourierConfig",
    "GridOutput",
    "ImageInput",
    "InputConfig",
    "LanguageConfig",
    "MaskedLanguageModel",
    "Mel",
    "Modality",
    "MultimodalAutoencoder",
    "MultimodalInput",
    "OneHot",
    "OpticalFlow",
    "PaddedModalities",
    "Patches",
    "PerceiverAR",
    "PerceiverClassifier",
    "PerceiverEncoder",
    "Pixels",
    "Points",
    "PointsInput",
    "SpaceTimePatches",
    "TableInput",
    "TableRows",
    "TextInput",
    "TokenEmbedding",
    "VectorOutput",
    "VideoInput",
    "autoregressive_flops",
    "cross_attention_maps",
    "decode_bytes",
    "encode_bytes",
    "export_onnx",
    "export_program",
    "forward_flops",
    "fourier_features",
    "generate",
    "grid_positions",
    "map_divergence",
    "next_token_loss",
    "num_parameters",
    "on_grid",
    "overlay",
    "position_table",
    "preset",
    "read_stream",
    "sample_tokens",
    "tiled_flow",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
