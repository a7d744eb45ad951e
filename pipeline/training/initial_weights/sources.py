"""Read the weights that `model.init.from` names. They come from outside, so they are untrusted.

Only safetensors files are read, and for transformers checkpoints also `pytorch_model.bin`, of which
torch loads nothing but tensors.
"""

import json
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from perceiver_model.config_checks import flatten, write_config
from perceiver_model.deepmind import load_pretrained
from pipeline.config.folders import Folder, folder_at
from pipeline.config.init import InitConfig
from pipeline.errors import UserError
from pipeline.runs.mlflow_client import client
from pipeline.runs.mlflow_errors import is_missing, mlflow_answers, reason_of
from pipeline.runs.records import read_run_record
from pipeline.runs.storage import exists, local_copies
from pipeline.training.checkpoint_files import STATE_FILE, not_finite, read_tensors
from pipeline.training.checkpoints import best_checkpoint, read_checkpoint

CARD_FILE, WEIGHTS_FILE = "card.json", "model.safetensors"
TRANSFORMERS_FILE = "config.json"
_MAX_CARD_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class InitSource:
    """Weights to start from.

    Attributes:
        address: The value of `model.init.from`.
        origin: What was read, in words: a checkpoint, a version of a registered model, or a
            transformers checkpoint.
        tensors: The tensors by the names of our models' state dicts: float32 and integers, on the
            CPU.
        settings: The settings of the source's model, such as `encoder.num_self_heads`, by dotted
            names; empty if they are not known.
    """

    address: str
    origin: str
    tensors: dict[str, torch.Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


def read_source(init: InitConfig, tracking_uri: str) -> InitSource:
    """Read the weights that `model.init.from` names.

    Args:
        init: The section `model.init`.
        tracking_uri: Where MLflow is, for runs and registered models.

    Raises:
        UserError: There are no such weights, they are damaged, or MLflow fails.
    """
    if init.kind == "folder":
        source = _of_folder(folder_at(init.source), init.source)
    elif init.kind == "run":
        source = _of_run(client(tracking_uri), init)
    else:
        source = _of_version(client(tracking_uri), init.source)
    if name := not_finite(source.tensors):
        raise UserError(f"model.init.from={init.source}: {name} is not finite")
    return source


def _of_folder(folder: Folder, address: str) -> InitSource:
    """Read a training's folder, a checkpoint, a registered model's files, or transformers'."""
    where = f"model.init.from={address}"
    if not (folder.is_dir() if isinstance(folder, Path) else exists(folder)):
        raise UserError(f"{where}: no such folder")
    if exists(folder / STATE_FILE):
        return _of_checkpoint(folder, address)
    for inner in (folder / "train" / "checkpoints", folder / "checkpoints", folder):
        if (best := best_checkpoint(inner)) is not None:
            return _of_checkpoint(best.path, address)
    if exists(folder / CARD_FILE):
        with local_copies(folder, (CARD_FILE, WEIGHTS_FILE)) as copies:
            return _of_registered(copies, address, f"the model in {folder}")
    if isinstance(folder, Path) and (folder / TRANSFORMERS_FILE).is_file():
        return _of_transformers(folder, address)
    raise UserError(
        f"{where}: holds no weights; give the folder of a training (OUTPUT/NAME) or of a "
        f"checkpoint ({STATE_FILE}), or a transformers checkpoint ({TRANSFORMERS_FILE})"
    )


def _of_checkpoint(path: Folder, address: str) -> InitSource:
    try:
        tensors = read_checkpoint(path).load_model()
    except UserError as error:
        raise UserError(f"model.init.from={address}: {error}") from None
    return InitSource(address, f"checkpoint {path}", tensors, _settings_of_run(path))


def _settings_of_run(checkpoint: Folder) -> dict[str, Any]:
    """Return the settings in the record of the training that a checkpoint belongs to."""
    try:
        record = read_run_record(checkpoint.parents[2], "train")
    except (UserError, IndexError):
        return {}
    fields = record.fingerprint if record else {}
    return {
        key.removeprefix("model."): value
        for key, value in fields.items()
        if key.startswith("model.")
    }


def _of_transformers(folder: Path, address: str) -> InitSource:
    try:
        model = load_pretrained(folder)
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, MemoryError) as error:
        raise UserError(
            f"model.init.from={address}: no transformers checkpoint of a Perceiver "
            f"({reason_of(error)})"
        ) from None
    settings = flatten(write_config(model.config))
    return InitSource(address, f"transformers checkpoint {folder}", model.state_dict(), settings)


def _of_run(mlflow_client: Any, init: InitConfig) -> InitSource:
    from mlflow.exceptions import MlflowException

    run_id, where = init.run_id, f"model.init.from={init.source}"
    with mlflow_answers(where):
        try:
            run = mlflow_client.get_run(run_id)
            best = run.data.tags.get("perceiver.best_trial")
            run = mlflow_client.get_run(best) if best else run
        except MlflowException as error:
            if not is_missing(error) and error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(f"{where}: MLflow has no such run") from None
    path = run.data.tags.get("perceiver.checkpoint")
    if path is None:
        raise UserError(
            f"{where}: the run has no checkpoint (its status is {run.info.status}); finish it "
            "first, or give a run of 'perceiver train' or 'perceiver tune'"
        )
    return _of_checkpoint(folder_at(path), init.source)


def _of_version(mlflow_client: Any, address: str) -> InitSource:
    import mlflow
    from mlflow.exceptions import MlflowException

    name, mark, which = re.split("([@/])", address.removeprefix("models:/"), maxsplit=1)
    where = f"model.init.from={address}"
    with mlflow_answers(where):
        try:
            if mark == "@":
                version = mlflow_client.get_model_version_by_alias(name, which)
            else:
                version = mlflow_client.get_model_version(name, which)
        except MlflowException as error:
            if not is_missing(error) and error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(f"{where}: the registry has no such model") from None
        uri = mlflow_client.get_model_version_download_uri(name, version.version)
    with tempfile.TemporaryDirectory(prefix="perceiver-init-") as folder:
        with mlflow_answers(f"{where}: fetching version {version.version}"):
            for file in (CARD_FILE, WEIGHTS_FILE):
                try:
                    mlflow.artifacts.download_artifacts(f"{uri}/artifacts/{file}", dst_path=folder)
                except (MlflowException, OSError) as error:
                    raise UserError(
                        f"{where}: version {version.version} has no {file} ({reason_of(error)}); "
                        "give a model that 'perceiver promote' registered"
                    ) from None
        return _of_registered(
            Path(folder), address, f"version {version.version} of the registered model {name}"
        )


def _of_registered(folder: Path, address: str, origin: str) -> InitSource:
    """Read the card and the weights of a registered model."""
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise UserError(f"model.init.from={address}: {folder} has no {WEIGHTS_FILE}")
    return InitSource(address, origin, read_tensors(weights), _card_settings(folder / CARD_FILE))


def _card_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the model in a card; empty if the card cannot be read."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_CARD_BYTES:
            return {}
        card = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    parts = [card, *card.values()] if isinstance(card, Mapping) else []
    for part in parts:
        if isinstance(part, Mapping) and isinstance(part.get("encoder"), Mapping):
            return flatten(part)
    return {}
