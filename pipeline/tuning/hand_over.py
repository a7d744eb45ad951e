"""Hand the weights of a trial to another one: its checkpoint after an epoch, moments and all."""

import shutil

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.storage import COPIED_BYTES, make_folder, names, remove_folder
from pipeline.training.checkpoint_files import STATE_FILE, Checkpoint
from pipeline.training.checkpoints import list_checkpoints, read_checkpoint


def checkpoint_after(checkpoints: Folder, epoch: int) -> Checkpoint:
    """Return the checkpoint of a trial after an epoch.

    Args:
        checkpoints: The folder of its checkpoints.
        epoch: The number of finished epochs.

    Raises:
        UserError: There is none.
    """
    for found in reversed(list_checkpoints(checkpoints)):
        if found.state.epoch == epoch and not found.state.samples:
            return found
    raise UserError(
        f"{checkpoints}: no checkpoint after epoch {epoch}, which another trial is to take over; "
        "run the study again with --fresh"
    )


def hand_over(donor: Folder, heir: Folder, epoch: int) -> str:
    """Copy the checkpoint of a trial after an epoch to another trial, in place of its own.

    A kill in between leaves the other one with an earlier checkpoint or none, and a repetition does
    the same again.

    Args:
        donor: The folder of the trial that gives.
        heir: The folder of the trial that takes.
        epoch: The number of epochs that both have finished.

    Returns:
        The sha256 of the weights, as one safetensors file.

    Raises:
        UserError: The trial that gives has no whole checkpoint, or storage fails.
    """
    source = checkpoint_after(donor / "checkpoints", epoch)
    source.check()
    target = heir / "checkpoints" / source.path.name
    remove_folder(target)
    make_folder(target)
    files = [name for name in names(source.path) if name != STATE_FILE]
    for name in [*files, STATE_FILE]:  # without its state, a folder is no checkpoint
        with (source.path / name).open("rb") as read, (target / name).open("wb") as written:
            shutil.copyfileobj(read, written, COPIED_BYTES)
    copied = read_checkpoint(target)
    copied.check()
    return copied.model_sha256()
