"""Everything that a registered model consists of, before it is logged to MLflow."""

import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.config.data import DataConfig
from pipeline.media.format import Media, by_modality
from pipeline.media.registered import modality_of
from pipeline.registry.served.card import CARD_FILE
from pipeline.registry.served.contract import SETTINGS, column_types, input_example, signature
from pipeline.registry.served.inference import ModelCard

# What a model imports besides its own code, pinned to the versions with which it was made.
MODEL_REQUIREMENTS = (
    "mlflow",
    "av",
    "cykooz-resizer",
    "numpy",
    "pandas",
    "pillow",
    "psutil",
    "pydantic",
    "safetensors",
    "simplejpeg",
    "soundfile",
    "soxr",
    "torch",
    "trimesh",
)

MODEL_CODE = (
    "perceiver_model/*.py*",
    "perceiver_model/adapters",
    "perceiver_model/attention",
    "perceiver_model/families",
    "pipeline/__init__.py",
    "pipeline/inputs",
    "pipeline/media",
    "pipeline/registry/__init__.py",
    "pipeline/registry/served",
    "pipeline/training/__init__.py",
    "pipeline/training/objectives",
)
"""The files and folders of code that every model carries. It loads without all others."""

DECODING = ("decode_seconds", "decode_memory_mib", "strict", "sandbox")
"""Fields of `data` that also say how the model's inputs are decoded."""


def package(card: ModelCard, folder: Path, weights_file: Path, data: DataConfig) -> dict[str, Any]:
    """Return the arguments of MLflow's `pyfunc.save_model` or `log_model` for the model.

    Args:
        card: The model's card.
        folder: A folder for the card and the code. It must exist until the model is saved.
        weights_file: The weights, as safetensors.
        data: The section `data` of the configuration, which says how media are decoded.
    """
    card_file = folder / CARD_FILE
    card_file.write_text(card.to_json(), "utf-8")
    decoding = {name: getattr(data, name) for name in DECODING}
    return {
        "python_model": str(Path(__file__).with_name("served") / "registered_model.py"),
        # These are URIs, because MLflow would read a `%` or `?` in a plain path as part of a URL.
        "artifacts": {"card": card_file.as_uri(), "weights": weights_file.as_uri()},
        "code_paths": [str(path) for path in copied_code(folder / "code", card.media)],
        "pip_requirements": model_requirements(),
        "signature": signature(card.media, card.objective.prediction),
        "input_example": input_example(card.media),
        "metadata": {"columns": column_types(card.media)},
        "model_config": SETTINGS | decoding,
    }


def model_requirements() -> list[str]:
    """Return the pinned requirements of a registered model, without suffixes of local builds."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in MODEL_REQUIREMENTS]


def copied_code(folder: Path, media: Media) -> list[Path]:
    """Copy the code that a model needs into a folder, and return the packages there."""
    root = Path(__file__).resolve().parents[2]
    compiled = shutil.ignore_patterns("__pycache__")
    for pattern in MODEL_CODE:
        for source in root.glob(pattern):
            target = folder / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=compiled)
            else:
                shutil.copy(source, target)
    for package in _own_packages(media):
        if package.is_dir():
            shutil.copytree(package, folder / package.name, ignore=compiled)
        else:
            shutil.copy(package, folder / package.name)
    return sorted(folder.iterdir())


def _own_packages(media: Media) -> list[Path]:
    """Return the packages and modules outside this project that define a modality."""
    modalities = [modality_of(fmt) for fmt in by_modality(media).values()]
    modules = [
        module for modality in modalities for module in (type(modality).__module__, modality.inputs)
    ]
    names = {name.partition(".")[0] for name in modules} - {__name__.partition(".")[0]}
    found = []
    for spec in map(find_spec, sorted(names)):
        assert spec is not None  # the modality has been imported
        folders = spec.submodule_search_locations
        found.append(Path(next(iter(folders)) if folders else str(spec.origin)))
    return found
