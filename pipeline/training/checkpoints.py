"""Training checkpoints: whole tensors in safetensors, restorable at any world size and ZeRO stage.

    checkpoints/step-00000640/model.safetensors      float32 weights and buffers by name
    checkpoints/step-00000640/optimizer.safetensors  MOMENT.NAME: exp_avg.NAME, exp_avg_sq.NAME
    checkpoints/step-00000640/ema.safetensors        their moving average, with `training.ema_decay`
    checkpoints/step-00000640/stream.safetensors     carried latents, with `training.stream`
    checkpoints/step-00000640/state.json             position in the data, metrics, sha256 of all

A folder appears whole, by a rename. The last two checkpoints and the best one are kept. If the last
one is damaged, training resumes from the one before it. Values that are not finite are never saved
and never loaded.
"""

import contextlib
import shutil
from collections.abc import Iterable
from dataclasses import asdict

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.config.folders import Folder, local_folder
from pipeline.errors import UserError
from pipeline.runs.records import write_json
from pipeline.training.checkpoint_files import (
    AVERAGE_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    STREAM_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    ChosenCheckpoint,
    TrainState,
    not_finite,
    not_finite_line,
    sha256_of,
)
from pipeline.training.checkpoint_state import read_state

UNFINISHED = ".partial-"
DAMAGED = "damaged-"


def save_checkpoint(
    folder: Folder,
    state: TrainState,
    weights: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
    averaged: dict[str, torch.Tensor] | None = None,
    carried: dict[str, torch.Tensor] | None = None,
) -> Checkpoint:
    """Write a checkpoint, then delete all but the last two and the best.

    Args:
        folder: The folder of the checkpoints.
        state: The position of the training.
        weights: The model's weights and buffers, by name.
        moments: The optimizer's moments, by name.
        averaged: The moving average of the weights, by name, or None.
        carried: The latents that streams carry, or None.

    Returns:
        The checkpoint that was written.

    Raises:
        UserError: A tensor is not finite, or the folder cannot be written.
    """
    files = {WEIGHTS_FILE: weights, OPTIMIZER_FILE: moments}
    files |= {} if averaged is None else {AVERAGE_FILE: averaged}
    files |= {} if carried is None else {STREAM_FILE: carried}
    for tensors in files.values():
        if name := not_finite(tensors):
            raise UserError(not_finite_line(name, state.step))
    folder = local_folder(folder, "a checkpoint")
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f"{UNFINISHED}{final.name}"
    for leftover in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    try:
        temporary.mkdir(parents=True)
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
        sha256 = {name: sha256_of(temporary / name) for name in files}
        write_json(temporary / STATE_FILE, {**asdict(state), "sha256": sha256})
        if final.exists():  # written before, by a run that resumed from an earlier checkpoint
            final.rename(folder / f"{UNFINISHED}old-{final.name}")
        temporary.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{final}: cannot be written ({error})") from error
    whole = sorted(list_checkpoints(folder), key=lambda checkpoint: checkpoint.state.step)
    keep = {checkpoint.path for checkpoint in whole[-2:]}
    if best := best_checkpoint(folder):
        keep.add(best.path)
    for checkpoint in whole:
        if checkpoint.path not in keep:
            shutil.rmtree(local_folder(checkpoint.path, "a checkpoint"))
    shutil.rmtree(folder / f"{UNFINISHED}old-{final.name}", ignore_errors=True)
    return Checkpoint(final, state, sha256)


def by_step(name: str) -> tuple[int, str]:
    """Return the key that sorts the names of checkpoints by their steps."""
    return len(name), name


def list_names(folder: Folder) -> list[str]:
    """Return the names of the checkpoints in a folder, whole or not, sorted by step."""
    return sorted((path.parent.name for path in folder.glob(f"step-*/{STATE_FILE}")), key=by_step)


def list_checkpoints(folder: Folder) -> list[Checkpoint]:
    """Return every checkpoint whose state can be read, sorted by step. Tensors are not read."""
    found = []
    for name in list_names(folder):
        with contextlib.suppress(UserError):
            found.append(read_checkpoint(folder / name))
    return found


def load_checkpoint(path: Folder) -> ChosenCheckpoint:
    """Return the checkpoint in a folder, with its tensors.

    Raises:
        UserError: There is no checkpoint, or it is damaged.
    """
    checkpoint = read_checkpoint(path)
    tensors = checkpoint.load()
    return ChosenCheckpoint(
        checkpoint, *tensors, checkpoint.load_average(), checkpoint.load_carried()
    )


def choose_checkpoint(
    folder: Folder, names: Iterable[str]
) -> tuple[ChosenCheckpoint | None, list[str]]:
    """Return the last checkpoint that is whole. Later ones that are damaged are set aside.

    Args:
        folder: The folder of the checkpoints.
        names: The names to try, from `list_names`. Names that do not exist are skipped.

    Returns:
        The checkpoint, or None if there are no checkpoints; and a line for each one that was set
        aside.

    Raises:
        UserError: There are checkpoints, but none is whole.
    """
    damaged: list[tuple[Folder, str]] = []
    for name in sorted(names, key=by_step, reverse=True):
        path = folder / name
        if not path.is_dir():
            continue
        try:
            chosen = load_checkpoint(path)
        except UserError as error:
            damaged.append((path, str(error)))
            continue
        notes = []
        for torn, reason in damaged:
            _set_aside(torn)
            notes.append(f"{reason}; set aside, going on from {name}, the one before it")
        return chosen, notes
    if damaged:
        path, reason = damaged[0]
        raise UserError(
            f"{reason}; no other checkpoint there is whole. Start this training again with --fresh"
        )
    return None, []


def _set_aside(path: Folder) -> None:
    """Rename a damaged checkpoint so that nothing finds it."""
    path = local_folder(path, "a checkpoint")
    aside = path.with_name(f"{DAMAGED}{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        path.rename(aside)
    except OSError as error:
        raise UserError(f"{path}: cannot be renamed ({error.strerror}); delete it") from None


def read_checkpoint(path: Folder) -> Checkpoint:
    """Return the checkpoint in a folder, without reading its tensors.

    Raises:
        UserError: There is no checkpoint, or its state is damaged.
    """
    try:
        values, sha256 = read_state(
            local_folder(path, "a checkpoint"),
            STATE_FILE,
            (WEIGHTS_FILE, OPTIMIZER_FILE),
            (AVERAGE_FILE, STREAM_FILE),
        )
        return Checkpoint(path, TrainState(**values), sha256)
    except OSError as error:
        raise UserError(f"{path}: no checkpoint there ({error.strerror})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}/{STATE_FILE}: damaged ({error}); delete that folder") from None


def last_checkpoint(folder: Folder) -> Checkpoint | None:
    """Return the checkpoint to resume from, or None."""
    return max(list_checkpoints(folder), key=lambda c: c.state.step, default=None)


def best_checkpoint(folder: Folder) -> Checkpoint | None:
    """Return the checkpoint with the highest score, or the last one if there are no scores.

    If scores are equal, the latest checkpoint counts as the best.
    """
    scored = [c for c in list_checkpoints(folder) if c.state.score is not None]
    if not scored:
        return last_checkpoint(folder)
    return max(scored, key=lambda c: (c.state.score, c.state.step))
