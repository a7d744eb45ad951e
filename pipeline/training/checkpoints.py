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
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cluster.optimizers import parameter_of
from pipeline.errors import UserError
from pipeline.runs.records import write_json
from pipeline.training.checkpoint_state import read_state
from shards.epoch import Window
from shards.errors import ShardError
from shards.set_files import open_file

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGE_FILE = "ema.safetensors"
STREAM_FILE = "stream.safetensors"
STATE_FILE = "state.json"
UNFINISHED = ".partial-"
DAMAGED = "damaged-"


@dataclass(frozen=True)
class TrainState:
    """The position of a training in its data, and its metrics.

    Attributes:
        step: The number of optimizer steps taken.
        epoch: The epoch to continue with, from 0.
        samples: The number of samples of that epoch that all ranks together have consumed.
        metrics: The metrics of the last evaluation; empty before the first.
        score: The value that ranks checkpoints; None for a checkpoint within an epoch.
        sums: The running sums of the current epoch's training metrics, so that a resumed epoch
            reports the same as an uninterrupted one.
        window: The number of shards that are shuffled together; None for all, "auto" before the
            first epoch. It is kept, because "auto" could choose another window, and so another
            order, if the set has moved.
        scores: The scores of all epochs so far, so that a resumed trial can report those that its
            study has not received.
        losses: The losses of the last good steps, at most `training.spike_window`; empty without
            `training.spike_factor`.
        bad_steps: The number of bad steps so far.
        lost_steps: The number of steps so far that are not in the weights, because they were
            skipped or rolled back.
    """

    step: int = 0
    epoch: int = 0
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    sums: tuple[float, ...] = ()
    window: Window = "auto"
    scores: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    bad_steps: int = 0
    lost_steps: int = 0

    @property
    def updates(self) -> int:
        """The number of optimizer steps that are in the weights."""
        return self.step - self.lost_steps


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk.

    Attributes:
        path: Its folder.
        state: The position of the training.
        sha256: The sha256 of each tensor file, by name.
    """

    path: Path
    state: TrainState
    sha256: dict[str, str]

    @property
    def weights_file(self) -> Path:
        """The file with the model's weights."""
        return self.path / WEIGHTS_FILE

    @property
    def model_file(self) -> Path:
        """The file with the weights that were evaluated: their moving average if there is one."""
        return self.path / (AVERAGE_FILE if AVERAGE_FILE in self.sha256 else WEIGHTS_FILE)

    def load_model(self) -> dict[str, torch.Tensor]:
        """Return the weights in `model_file`, float32 on the CPU.

        Raises:
            UserError: As `load`.
        """
        weights, _ = self.load()
        averaged = self.load_average()
        return weights if averaged is None else averaged

    def load_average(self) -> dict[str, torch.Tensor] | None:
        """Return the moving average of the weights, float32 on the CPU; None if there is none.

        Raises:
            UserError: The file is damaged, or holds a value that is not finite.
        """
        if AVERAGE_FILE not in self.sha256:
            return None
        averaged = read_tensors(self.path / AVERAGE_FILE)
        weights = read_tensors(self.weights_file)
        if {n: t.shape for n, t in averaged.items()} != {n: t.shape for n, t in weights.items()}:
            raise UserError(
                f"{self.path / AVERAGE_FILE}: has other tensors than {WEIGHTS_FILE}; this "
                "checkpoint cannot be used"
            )
        if name := not_finite(averaged):
            raise UserError(f"{self.path}: {name} is not finite; this checkpoint cannot be used")
        return averaged

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return float32 weights and moments on the CPU, as `engine_state.gather_state` does.

        Raises:
            UserError: A file is missing, has changed since it was written, or holds a value that is
                not finite.
        """
        self.check()
        weights = read_tensors(self.weights_file)
        moments = read_tensors(self.path / OPTIMIZER_FILE)
        if name := _unfit(weights, moments):
            raise UserError(
                f"{self.path}: {name} does not belong to these weights; this checkpoint cannot be "
                "used"
            )
        if name := not_finite(weights) or not_finite(moments):
            raise UserError(f"{self.path}: {name} is not finite; this checkpoint cannot be used")
        return weights, moments

    def load_carried(self) -> dict[str, torch.Tensor] | None:
        """Return the latents that streams carry, on the CPU; None if the checkpoint has none.

        Raises:
            UserError: The file is damaged, or holds a value that is not finite.
        """
        if STREAM_FILE not in self.sha256:
            return None
        carried = read_tensors(self.path / STREAM_FILE)
        if name := not_finite(carried):
            raise UserError(f"{self.path}: {name} is not finite; this checkpoint cannot be used")
        return carried

    def check(self) -> None:
        """Compare the files with the sha256 recorded when they were written.

        Raises:
            UserError: It names the file that differs.
        """
        for name, expected in self.sha256.items():
            try:
                found = _sha256(self.path / name)
            except ShardError as error:  # it is not a regular file
                raise UserError(str(error)) from None
            except OSError as error:
                raise UserError(f"{self.path / name}: cannot be read ({error.strerror})") from None
            if found != expected:
                raise UserError(f"{self.path / name}: sha256 differs from {STATE_FILE}")


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A checkpoint that is whole, with its tensors as `Checkpoint.load` returns them.

    Attributes:
        checkpoint: The checkpoint.
        weights: The model's weights and buffers, by name.
        moments: The optimizer's moments, by name.
        averaged: The moving average of the weights, by name; None if there is none.
        carried: The latents that streams carry, as from `CarriedLatents.gather`, or None.
    """

    checkpoint: Checkpoint
    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor] | None = None
    carried: dict[str, torch.Tensor] | None = None

    @property
    def state(self) -> TrainState:
        """The position of the training."""
        return self.checkpoint.state


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name, on the CPU.

    Raises:
        UserError: The file is not a safetensors file, or has floating-point numbers that are not
            float32.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no readable safetensors file ({reason})") from None
    for name, tensor in tensors.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise UserError(f"{path}: {name[:200]!r} is {tensor.dtype} and not float32")
    return tensors


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Load weights into a model.

    Args:
        model: The model.
        weights: The weights by name.
        where: What errors call the weights.

    Raises:
        UserError: Names or shapes differ from the model's.
    """
    own = model.state_dict()
    if odd := sorted(own.keys() ^ weights.keys()):
        raise UserError(
            f"{where}: has other tensors than the model: {', '.join(odd)[:200]}; take the weights "
            "that belong to this model"
        )
    for name, tensor in own.items():
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"{where}: {name} has the shape {list(weights[name].shape)}, the model's "
                f"{list(tensor.shape)}; take the weights that belong to this model"
            )
    model.load_state_dict(dict(weights))


def _unfit(weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first moment that fits no weight, or None."""
    for name, tensor in moments.items():
        parameter = parameter_of(name)
        weight = weights.get(parameter) if parameter else None
        if weight is None or tensor.shape != weight.shape:
            return repr(name[:200])
    return None


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def save_checkpoint(
    folder: Path,
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
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f"{UNFINISHED}{final.name}"
    for leftover in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    try:
        temporary.mkdir(parents=True)
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
        sha256 = {name: _sha256(temporary / name) for name in files}
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
            shutil.rmtree(checkpoint.path)
    shutil.rmtree(folder / f"{UNFINISHED}old-{final.name}", ignore_errors=True)
    return Checkpoint(final, state, sha256)


def not_finite_line(name: str, step: int) -> str:
    """Return the error for a training that has a value that is not finite.

    Args:
        name: What is not finite.
        step: The optimizer step after which it was found.
    """
    return (
        f"{name} is not finite after step {step}; lower training.learning_rate, or set "
        "training.gradient_clipping. The checkpoints before it are kept"
    )


def by_step(name: str) -> tuple[int, str]:
    """Return the key that sorts the names of checkpoints by their steps."""
    return len(name), name


def list_names(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a folder, whole or not, sorted by step."""
    return sorted((path.parent.name for path in folder.glob(f"step-*/{STATE_FILE}")), key=by_step)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return every checkpoint whose state can be read, sorted by step. Tensors are not read."""
    found = []
    for name in list_names(folder):
        with contextlib.suppress(UserError):
            found.append(read_checkpoint(folder / name))
    return found


def load_checkpoint(path: Path) -> ChosenCheckpoint:
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
    folder: Path, names: Iterable[str]
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
    damaged: list[tuple[Path, str]] = []
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


def _set_aside(path: Path) -> None:
    """Rename a damaged checkpoint so that nothing finds it."""
    aside = path.with_name(f"{DAMAGED}{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        path.rename(aside)
    except OSError as error:
        raise UserError(f"{path}: cannot be renamed ({error.strerror}); delete it") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder, without reading its tensors.

    Raises:
        UserError: There is no checkpoint, or its state is damaged.
    """
    try:
        values, sha256 = read_state(
            path, STATE_FILE, (WEIGHTS_FILE, OPTIMIZER_FILE), (AVERAGE_FILE, STREAM_FILE)
        )
        return Checkpoint(path, TrainState(**values), sha256)
    except OSError as error:
        raise UserError(f"{path}: no checkpoint there ({error.strerror})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}/{STATE_FILE}: damaged ({error}); delete that folder") from None


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint to resume from, or None."""
    return max(list_checkpoints(folder), key=lambda c: c.state.step, default=None)


def best_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint with the highest score, or the last one if there are no scores.

    If scores are equal, the latest checkpoint counts as the best.
    """
    scored = [c for c in list_checkpoints(folder) if c.state.score is not None]
    if not scored:
        return last_checkpoint(folder)
    return max(scored, key=lambda c: (c.state.score, c.state.step))


def _sha256(path: Path) -> str:
    with os.fdopen(open_file(path.parent, path.name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
