"""The checkpoints of a training: which there are, which to resume from, and which are kept.

    checkpoints/step-00000640/weights-1f3a9c04-00000-of-00002.safetensors    the part of rank 0
    checkpoints/step-00000640/weights-1f3a9c04-00001-of-00002.safetensors    the part of rank 1
    checkpoints/step-00000640/optimizer-1f3a9c04-00000-of-00002.safetensors  moments, and so on
    checkpoints/step-00000640/state.json  position in the data, metrics, sha256 and size of each

Kinds of parts are `weights` (float32, with the buffers), `optimizer` (`MOMENT.NAME`), `ema` with
`training.ema_decay`, and `stream` (carried latents) with `training.stream`. `state.json` is written
last: without it, a folder is no checkpoint. The last two checkpoints and the best one are kept. If
the last one is damaged, training resumes from the one before it. Values that are not finite are
never saved and never loaded.

Checkpoints of older versions have model.safetensors, optimizer.safetensors, ema.safetensors and
stream.safetensors instead of parts, with whole tensors.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.storage import exists, read_bytes, remove, remove_folder, write_bytes
from pipeline.runs.storage import names as names_in
from pipeline.training.checkpoint_files import STATE_FILE, Checkpoint, TrainState
from pipeline.training.checkpoint_state import MAX_BYTES, read_state

UNFINISHED = ".partial-"
DAMAGED = "damaged-"
SET_ASIDE = "damaged.json"
"""What the state of a damaged checkpoint is called in storage that cannot rename folders."""


def by_step(name: str) -> tuple[int, str]:
    """Return the key that sorts the names of checkpoints by their steps."""
    return len(name), name


def list_names(folder: Folder) -> list[str]:
    """Return the names of the checkpoints in a folder, whole or not, sorted by step."""
    found = [name for name in names_in(folder) if name.startswith("step-")]
    return sorted((name for name in found if exists(folder / name / STATE_FILE)), key=by_step)


def list_checkpoints(folder: Folder) -> list[Checkpoint]:
    """Return every checkpoint whose state can be read, sorted by step. Tensors are not read."""
    found = []
    for name in list_names(folder):
        with contextlib.suppress(UserError):
            found.append(read_checkpoint(folder / name))
    return found


def choose_checkpoint(
    folder: Folder, names: Iterable[str], check: Callable[[Checkpoint], None]
) -> tuple[Checkpoint | None, list[str]]:
    """Return the last checkpoint that is whole. Later ones that are damaged are set aside.

    Args:
        folder: The folder of the checkpoints.
        names: The names to try, from `list_names`. Names that do not exist are skipped.
        check: Raises UserError if a file of the checkpoint is damaged.

    Returns:
        The checkpoint, or None if there are no checkpoints; and a line for each one that was set
        aside.

    Raises:
        UserError: There are checkpoints, but none is whole.
    """
    damaged: list[tuple[Folder, str]] = []
    for name in sorted(names, key=by_step, reverse=True):
        path = folder / name
        if not exists(path / STATE_FILE):
            continue
        try:
            chosen = read_checkpoint(path)
            chosen.check_layout()
            check(chosen)
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
    """Rename a damaged checkpoint, or in other storage its state, so that nothing finds it."""
    try:
        if isinstance(path, Path):
            aside = path.with_name(f"{DAMAGED}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        else:
            write_bytes(path / SET_ASIDE, read_bytes(path / STATE_FILE, MAX_BYTES))
            remove(path / STATE_FILE)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be renamed ({reason}); delete it") from None


def keep_best_and_last(folder: Folder) -> None:
    """Delete all checkpoints but the last two and the best, each state file first.

    Raises:
        UserError: The storage fails.
    """
    whole = list_checkpoints(folder)
    keep = {checkpoint.path.name for checkpoint in whole[-2:]}
    if best := _best(whole):
        keep.add(best.path.name)
    for checkpoint in whole:
        if checkpoint.path.name not in keep:
            remove(checkpoint.path / STATE_FILE)
            remove_folder(checkpoint.path)


def sweep(folder: Folder) -> None:
    """Delete what saves that were killed have left. No save may be going on.

    Raises:
        UserError: The storage fails.
    """
    for name in names_in(folder):
        if name.startswith(UNFINISHED):  # an older version's
            remove_folder(folder / name)
        elif name.startswith("step-"):
            sweep_step(folder / name)


def sweep_step(path: Folder) -> None:
    """Delete the files in a checkpoint's folder that its state does not name; else the folder.

    Raises:
        UserError: The storage fails.
    """
    found = set(names_in(path))
    if STATE_FILE not in found:
        if SET_ASIDE not in found:
            remove_folder(path)
        return
    with contextlib.suppress(UserError):  # a damaged one is set aside where it is chosen
        for name in found - {STATE_FILE, *read_checkpoint(path).files}:
            remove(path / name)


def read_checkpoint(path: Folder) -> Checkpoint:
    """Return the checkpoint in a folder, without reading its tensors.

    Raises:
        UserError: There is no checkpoint, or its state is damaged.
    """
    try:
        values, files = read_state(path, STATE_FILE)
        return Checkpoint(path, TrainState(**values), files)
    except OSError as error:
        raise UserError(f"{path}: no checkpoint there ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}/{STATE_FILE}: damaged ({error}); delete that folder") from None


def last_checkpoint(folder: Folder) -> Checkpoint | None:
    """Return the checkpoint to resume from, or None."""
    return max(list_checkpoints(folder), key=lambda c: c.state.step, default=None)


def best_checkpoint(folder: Folder) -> Checkpoint | None:
    """Return the checkpoint with the highest score, or the last one if there are no scores.

    If scores are equal, the latest checkpoint counts as the best.
    """
    return _best(list_checkpoints(folder))


def _best(found: list[Checkpoint]) -> Checkpoint | None:
    scored = [c for c in found if c.state.score is not None]
    if not scored:
        return max(found, key=lambda c: c.state.step, default=None)
    return max(scored, key=lambda c: (c.state.score, c.state.step))
