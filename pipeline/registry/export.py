"""`perceiver export`: the weights of one checkpoint as one file, with the model's configuration.

    model.safetensors   every weight and buffer by name: those that were evaluated
    model.onnx          with `--onnx`: the outputs as a graph (`pipeline.registry.onnx_file`)
    model.json          the model's class and configuration, in `perceiver_model`
    card.json           what `perceiver predict` needs besides: the media, the classes
    config.yaml         the configuration of the training, without secrets

`model.init.from` takes such a folder, and docs/models.md shows how to load it with torch.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from perceiver_model.config_checks import write_config
from pipeline.config.folders import Folder, folder_at, is_remote
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.registry.backbone_code import check_backbone_is_own
from pipeline.registry.onnx_file import ONNX_FILE, check_onnx, write_onnx
from pipeline.registry.run_model import card_of, is_run_folder, own_set, recorded_run
from pipeline.registry.served.card import CARD_FILE, WEIGHTS_FILE, ModelCard
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import mlflow_answers
from pipeline.runs.storage import exists, unwritable, upload
from pipeline.runs.tracking import run_config
from pipeline.training.checkpoint_files import Checkpoint
from pipeline.training.checkpoints import best_checkpoint, last_checkpoint, list_checkpoints
from shards.redaction import redacted_tree

MODEL_FILE, CONFIG_FILE = "model.json", "config.yaml"


def export(
    mlflow_client: Any,
    named: str,
    console: Console,
    *,
    to: str | None = None,
    which: str = "best",
    shards: str | None = None,
    onnx: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint's weights into one file, with the model's configuration beside it.

    Args:
        mlflow_client: The client of the tracking server.
        named: The ID of an MLflow run, or the folder or URL of a training. A study means its best
            trial.
        console: The console, which shows notes.
        to: The new folder, or a URL. None takes `NAME-step-STEP` in the working directory.
        which: The checkpoint: `best`, `last`, or the number of its step.
        shards: The whole address of the run's set, if it has a password or a signature.
        onnx: Whether to write `model.onnx`, too.

    Returns:
        `folder`, `weights` (the file), `sha256` (of that file), `onnx` (the file or None), `step`,
        `checkpoint`, `parameters`, `model` (its class) and `run_id`.

    Raises:
        UserError: There is no such run or checkpoint, the checkpoint is damaged, or the folder
            exists or cannot be written.
        ShardError: The run's set cannot be opened.
    """
    run, config, checkpoints = _run_of(mlflow_client, named)
    run_id = run.info.run_id
    checkpoint = _chosen(checkpoints, which)
    target = _target(to or f"{config.name}-step-{checkpoint.state.step:08d}")
    check_backbone_is_own(config, run_id)
    card = card_of(config, own_set(run, config, shards))
    if onnx:
        check_onnx(card)
    console.notice(f"exporting {checkpoint.path} of run {run_id}")
    objective = card.objective
    model_type = _model_type(objective)
    about = {
        "model": model_type,
        "config_type": type(objective.model_config).__name__,
        "config": write_config(objective.model_config),
    }
    texts = {
        MODEL_FILE: json.dumps(about, indent=2, sort_keys=True) + "\n",
        CARD_FILE: card.to_json(),
        CONFIG_FILE: yaml.safe_dump(
            redacted_tree(config.tree()), sort_keys=False, allow_unicode=True
        ),
    }
    sha256 = _write(checkpoint, texts, target, card if onnx else None)
    return {
        "folder": str(target),
        "weights": str(target / WEIGHTS_FILE),
        "sha256": sha256,
        "onnx": str(target / ONNX_FILE) if onnx else None,
        "step": checkpoint.state.step,
        "checkpoint": str(checkpoint.path),
        "parameters": objective.num_parameters(),
        "model": model_type,
        "run_id": run_id,
    }


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `export` returned."""
    console.say(
        f"{result['weights']}: {result['model']} of {result['parameters']:,} parameters after step "
        f"{result['step']} of run {result['run_id']}"
        + (f"; {result['onnx']}" if result["onnx"] else "")
    )


def _run_of(mlflow_client: Any, named: str) -> tuple[Any, Config, Folder]:
    """Return the MLflow run, its configuration, and the folder of its checkpoints."""
    folder = folder_at(named)
    given = is_run_folder(named)
    if not given and "/" in named:
        raise UserError(f"{named}: there is no such folder; name a run by its folder, URL or ID")
    run_id = recorded_run(folder) if given else named
    config = run_config(mlflow_client, run_id)
    with mlflow_answers(f"run {run_id}"):
        run = mlflow_client.get_run(run_id)
    if (best := run.data.tags.get("perceiver.best_trial")) not in (None, run_id):
        return _run_of(mlflow_client, best)
    own = (folder if given else config.folder) / "train" / "checkpoints"
    tagged = run.data.tags.get("perceiver.checkpoint")
    if tagged is not None and not (given and exists(own)):
        return run, config, folder_at(tagged).parent
    if run.data.tags["perceiver.kind"] != "train":
        raise UserError(f"run {run_id}: has no checkpoint yet (its status is {run.info.status})")
    return run, config, own


def _chosen(folder: Folder, which: str) -> Checkpoint:
    if which == "best":
        found = best_checkpoint(folder)
    elif which == "last":
        found = last_checkpoint(folder)
    elif which.isdecimal():
        steps = {each.state.step: each for each in list_checkpoints(folder)}
        found = steps.get(int(which))
        if steps and found is None:
            raise UserError(
                f"{folder}: has no checkpoint of step {which}; there are those of "
                f"{', '.join(map(str, steps))}"
            )
    else:
        raise UserError(f"--checkpoint {which}: must be best, last or the number of a step")
    if found is None:
        raise UserError(f"{folder}: holds no checkpoint")
    return found


def _target(to: str) -> Folder:
    target = folder_at(to)
    if isinstance(target, Path):
        target = target.expanduser().absolute()
    if exists(target):
        raise UserError(f"{target}: exists already; remove it, or choose another --to")
    return target


def _model_type(objective: Any) -> str:
    """Return the name of the model's class."""
    import torch

    with torch.device("meta"):
        return type(objective.build_model()).__name__


def _write(
    checkpoint: Checkpoint, texts: dict[str, str], target: Folder, graph_of: ModelCard | None
) -> str:
    """Write the files: a local folder appears whole, and the weights are the last object."""
    parent = None if is_remote(target) else Path(str(target)).parent
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".exporting-", dir=parent))
    except OSError as error:
        raise unwritable(target, error) from None
    try:
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
        if graph_of is not None:
            write_onnx(graph_of, checkpoint.load_model(), folder)
        sha256 = checkpoint.export_model(folder / WEIGHTS_FILE)
        if isinstance(target, Path):
            folder.chmod(0o755)
            folder.rename(target)
        else:
            names = sorted(path.name for path in folder.iterdir() if path.name != WEIGHTS_FILE)
            for name in (*names, WEIGHTS_FILE):
                upload(folder / name, target / name)
    except OSError as error:
        raise unwritable(target, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return sha256
