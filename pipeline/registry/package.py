"""All that a registered model is made of, but for its place in MLflow."""

from importlib import metadata
from pathlib import Path
from typing import Any

import perceiver_model
import pipeline
from pipeline.config.data import DataConfig
from pipeline.registry.served.contract import SETTINGS, column_types, input_example, signature
from pipeline.registry.served.inference import ModelCard

# What a model imports beside its own code; pinned to what it was made with.
MODEL_REQUIREMENTS = (
    "mlflow",
    "av",
    "cykooz-resizer",
    "numpy",
    "pandas",
    "pillow",
    "psutil",
    "safetensors",
    "simplejpeg",
    "soundfile",
    "soxr",
    "torch",
    "trimesh",
)

DECODING = ("decode_seconds", "decode_memory_mib", "strict", "sandbox")
"""Fields of ``data`` that the model's inputs are decoded by, too."""


def package(
    card: ModelCard, card_file: Path, weights_file: Path, data: DataConfig
) -> dict[str, Any]:
    """The arguments of MLflow's ``pyfunc.save_model`` or ``log_model`` that make the model.

    Args:
        card: what the model is; written to ``card_file``.
        card_file: a file to be, that lives until the model is saved.
        weights_file: safetensors.
        data: of the configuration: how media are decoded.
    """
    card_file.write_text(card.to_json(), "utf-8")
    decoding = {name: getattr(data, name) for name in DECODING}
    return {
        "python_model": str(Path(__file__).with_name("registered_model.py")),
        # As URIs: MLflow would take a `%` or `?` of a plain path for a URL's.
        "artifacts": {"card": card_file.as_uri(), "weights": weights_file.as_uri()},
        "code_paths": [
            str(Path(module.__file__ or "").parent) for module in (pipeline, perceiver_model)
        ],
        "pip_requirements": model_requirements(),
        "signature": signature(card.media),
        "input_example": input_example(card.media),
        "metadata": {"columns": column_types(card.media)},
        "model_config": SETTINGS | decoding,
    }


def model_requirements() -> list[str]:
    """Pinned requirements of a registered model; a local build's suffix is left out."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in MODEL_REQUIREMENTS]
