"""Read and write the folder of a transformers checkpoint: config.json and the weights."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

CONFIG, SAFETENSORS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"


def read_checkpoint(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the settings and the tensors, on the CPU.

    model.safetensors is preferred to pytorch_model.bin. The latter is read without running any code
    in it.

    Raises:
        ValueError: If a file is missing or is not of its format.
    """
    folder = Path(folder)
    return _read_settings(folder / CONFIG), _read_tensors(folder)


def write_checkpoint(
    folder: str | os.PathLike[str], settings: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """Write config.json and model.safetensors, each completely or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: tensor.cpu() for name, tensor in tensors.items()}
    # transformers 4 refuses a file without the name of the framework that wrote it.
    _replace(folder / SAFETENSORS, safetensors.torch.save(on_cpu, metadata={"format": "pt"}))
    _replace(folder / CONFIG, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a transformers checkpoint folder")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(settings, dict) or settings.get("model_type", "perceiver") != "perceiver":
        raise ValueError(f"{path}: not the settings of a Perceiver")
    return settings


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    if (path := folder / SAFETENSORS).is_file():
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: not safetensors: {error}") from error
    if not (path := folder / PICKLE).is_file():
        raise ValueError(f"{folder}: neither {SAFETENSORS} nor {PICKLE}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise ValueError(f"{path}: not a file of tensors alone: {reason}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ValueError(f"{path}: not a state dict")
    return dict(tensors)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
