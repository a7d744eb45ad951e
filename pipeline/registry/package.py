"""Everything that a registered model consists of, before it is logged to MLflow."""

import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perceiver_model.adapters.backbone_config import BackboneConfig, backbone_of
from pipeline.config.data import DataConfig
from pipeline.errors import UserError
from pipeline.media.format import Media, by_modality
from pipeline.media.registered import modality_of
from pipeline.registry.backbone_code import module_file, requirements_of_backbone
from pipeline.registry.served.card import CARD_FILE
from pipeline.registry.served.contract import SETTINGS, column_types, input_example, signature
from pipeline.registry.served.inference import ModelCard

# What a model imports besides its own code, pinned to the versions with which it was made.
MODEL_REQUIREMENTS = (
    "mlflow",
    "av",
    "cykooz-resizer",
    "matplotlib",
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

OWN_CODE = {path.partition("/")[0] for path in MODEL_CODE}

DECODING = ("decode_seconds", "decode_memory_mib", "strict", "sandbox")
"""Fields of `data` that also say how the model's inputs are decoded."""


def package(card: ModelCard, folder: Path, weights_file: Path, data: DataConfig) -> dict[str, Any]:
    """Return the arguments of MLflow's `pyfunc.save_model` or `log_model` for the model.

    Args:
        card: The model's card.
        folder: A folder for the card and the code. It must exist until the model is saved.
        weights_file: The weights, as safetensors.
        data: The section `data` of the configuration, which says how media are decoded.

    Raises:
        UserError: A requirement is not installed, or the model's backbone needs code that does not
            travel.
    """
    card_file = folder / CARD_FILE
    card_file.write_text(card.to_json(), "utf-8")
    backbone = backbone_of(card.objective.model_config)
    code_paths = copied_code(folder / "code", card.media, backbone)
    requirements = model_requirements()
    if backbone:
        requirements += requirements_of_backbone(card_file, folder / "code", requirements)
    decoding = {name: getattr(data, name) for name in DECODING}
    return {
        "python_model": str(Path(__file__).with_name("served") / "registered_model.py"),
        # These are URIs, because MLflow would read a `%` or `?` in a plain path as part of a URL.
        "artifacts": {"card": card_file.as_uri(), "weights": weights_file.as_uri()},
        "code_paths": [str(path) for path in code_paths],
        "pip_requirements": requirements,
        "signature": signature(card.media, card.objective),
        "input_example": input_example(card.media),
        "metadata": {"columns": column_types(card.media)},
        "model_config": SETTINGS | decoding,
    }


def model_requirements() -> list[str]:
    """Return the pinned requirements of a registered model, without suffixes of local builds.

    Raises:
        UserError: One of them is not installed here, so its version is not known.
    """
    versions, missing = {}, []
    for name in MODEL_REQUIREMENTS:
        try:
            versions[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise UserError(
            f"a registered model requires {', '.join(missing)}, which is not installed here: run "
            f"'pip install {' '.join(missing)}', then promote again"
        )
    return [f"{name}=={version}" for name, version in versions.items()]


def copied_code(folder: Path, media: Media, backbone: BackboneConfig | None = None) -> list[Path]:
    """Copy the code that a model needs into a folder, and return the packages there.

    Args:
        folder: The folder.
        media: The format of the model's media, or the formats of several modalities.
        backbone: The model's backbone, or None. If its package is installed, it is not copied.
    """
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
    own = _own_packages(media)
    if backbone and (module := module_file(backbone.module.partition(":")[0].partition(".")[0])):
        own += [module] if module.name not in OWN_CODE else []
    for package in own:
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
