"""The Perceiver (Jaegle et al. 2021, arXiv 2103.03206) as a classifier of images and sound.

Names are imported on first use, so that the configuration can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceiver_model.classifier import PerceiverClassifier
    from perceiver_model.classifier_config import AdapterConfig, ClassifierConfig, InputConfig
    from perceiver_model.config import EncoderConfig, FourierConfig
    from perceiver_model.flops import forward_flops, num_parameters
    from perceiver_model.fourier import fourier_features, grid_positions, position_table
    from perceiver_model.inputs import (
        AudioInput,
        Chunks,
        Conv,
        ImageInput,
        Mel,
        Patches,
        Pixels,
    )
    from perceiver_model.perceiver import PerceiverEncoder
    from perceiver_model.presets import PRESETS, preset

_MODULE_OF = {
    "PRESETS": "presets",
    "AdapterConfig": "classifier_config",
    "AudioInput": "inputs",
    "Chunks": "inputs",
    "ClassifierConfig": "classifier_config",
    "Conv": "inputs",
    "EncoderConfig": "config",
    "FourierConfig": "config",
    "ImageInput": "inputs",
    "InputConfig": "classifier_config",
    "Mel": "inputs",
    "Patches": "inputs",
    "PerceiverClassifier": "classifier",
    "PerceiverEncoder": "perceiver",
    "Pixels": "inputs",
    "forward_flops": "flops",
    "fourier_features": "fourier",
    "grid_positions": "fourier",
    "num_parameters": "flops",
    "position_table": "fourier",
    "preset": "presets",
}

__all__ = [
    "PRESETS",
    "AdapterConfig",
    "AudioInput",
    "Chunks",
    "ClassifierConfig",
    "Conv",
    "EncoderConfig",
    "FourierConfig",
    "ImageInput",
    "InputConfig",
    "Mel",
    "Patches",
    "PerceiverClassifier",
    "PerceiverEncoder",
    "Pixels",
    "forward_flops",
    "fourier_features",
    "grid_positions",
    "num_parameters",
    "position_table",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
