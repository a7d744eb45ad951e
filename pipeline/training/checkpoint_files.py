"""One checkpoint: its files, and the position of the training that they hold."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cluster.optimizers import parameter_of
from pipeline.config.folders import Folder, local_folder
from pipeline.errors import UserError
from shards.epoch import Window
from shards.errors import ShardError
from shards.set_files import open_file

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGE_FILE = "ema.safetensors"
STREAM_FILE = "stream.safetensors"
STATE_FILE = "state.json"


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

    path: Folder
    state: TrainState
    sha256: dict[str, str]

    @property
    def weights_file(self) -> Folder:
        """The file with the model's weights."""
        return self.path / WEIGHTS_FILE

    @property
    def model_file(self) -> Folder:
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
                found = sha256_of(self.path / name)
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


def read_tensors(path: Folder) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name, on the CPU.

    Raises:
        UserError: The file is not a safetensors file, or has floating-point numbers that are not
            float32.
    """
    try:
        tensors = load_file(local_folder(path, "a checkpoint"))
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


def sha256_of(path: Folder) -> str:
    """Return the sha256 of a regular file.

    Raises:
        ShardError: It is not a regular file.
        OSError: It cannot be read.
    """
    folder = local_folder(path.parent, "a checkpoint")
    with os.fdopen(open_file(folder, path.name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
