"""One checkpoint: its files, and the position of the training that they hold."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cluster.optimizers import parameter_of
from pipeline.config.folders import Folder, local_folder
from pipeline.errors import UserError
from pipeline.training.checkpoint_state import (
    AVERAGE,
    CARRIED,
    KINDS,
    MOMENTS,
    WEIGHTS,
    kind_of,
)
from pipeline.training.part_files import whole_sha256, write_whole
from pipeline.training.stored_tensors import (
    FileRecord,
    StoredTensors,
    check_file,
    check_size,
    read_layout,
)
from shards.epoch import Window

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
            skipped or rolled back, or whose gradient overflowed in fp16.
        loss_scale: The scale of the loss in fp16 (`cluster.loss_scale`); None in other precisions.
        loss_scale_steps: The number of steps without an overflow since the scale changed.
        overflow_steps: The number of steps so far that were left out because their scaled gradient
            overflowed in fp16. They are not bad steps.
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
    loss_scale: float | None = None
    loss_scale_steps: int = 0
    overflow_steps: int = 0

    @property
    def updates(self) -> int:
        """The number of optimizer steps that are in the weights."""
        return self.step - self.lost_steps


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in storage.

    Attributes:
        path: Its folder.
        state: The position of the training.
        files: What its state says of each file with tensors, by name.
    """

    path: Folder
    state: TrainState
    files: dict[str, FileRecord]

    def tensors(self, kind: str) -> StoredTensors | None:
        """Return the tensors of a kind (`checkpoint_state.KINDS`), unread; None if there are none.

        Raises:
            UserError: A file cannot be read, or the files do not fit each other.
        """
        files = self._files_of(kind)
        return read_layout(self.path, files) if files else None

    @property
    def model_kind(self) -> str:
        """The kind of the weights that were evaluated: their moving average if there is one."""
        return AVERAGE if self._files_of(AVERAGE) else WEIGHTS

    def model_tensors(self) -> StoredTensors:
        """Return the weights that were evaluated, with the buffers, unread.

        Raises:
            UserError: As `tensors`, or a kind is missing.
        """
        weights = self.tensors(WEIGHTS)
        if weights is None:
            raise UserError(f"{self.path}: has no weights; this checkpoint cannot be used")
        averaged = self.tensors(AVERAGE)
        if averaged is None:
            return weights
        for name, tensor in averaged.tensors.items():
            if name not in weights.names or weights.tensors[name].shape != tensor.shape:
                raise UserError(
                    f"{self.path}: the moving average has other tensors than the weights; this "
                    "checkpoint cannot be used"
                )
        return StoredTensors(self.path, weights.tensors | averaged.tensors)

    def load_model(self) -> dict[str, torch.Tensor]:
        """Return the weights that were evaluated, by name, on the CPU. Moments are not read.

        Raises:
            UserError: A file is missing, has changed since it was written, or holds a value that is
                not finite.
        """
        self.check((WEIGHTS, AVERAGE))
        with self.model_tensors() as tensors:
            return {name: tensors.whole(name) for name in sorted(tensors.names)}

    def model_sha256(self) -> str:
        """Return the sha256 of the file that `export_model` writes.

        It does not depend on the number of ranks that wrote the checkpoint.

        Raises:
            UserError: A file cannot be read.
        """
        with self.model_tensors() as tensors:
            return whole_sha256(tensors)

    def export_model(self, path: Path) -> str:
        """Write the weights that were evaluated into one safetensors file. Return its sha256.

        The memory that this takes does not depend on the size of the model.

        Args:
            path: The file.

        Raises:
            UserError: As `load_model`, or the file cannot be written.
        """
        self.check((WEIGHTS, AVERAGE))
        try:
            with self.model_tensors() as tensors:
                return write_whole(tensors, path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path}: cannot be written ({reason})") from None

    def check(self, kinds: Collection[str] = KINDS) -> None:
        """Compare files with what the state says of them, and find values that are not finite.

        Args:
            kinds: The kinds of the files to check.

        Raises:
            UserError: It names the file that differs.
        """
        for name, record in self.files.items():
            if kind_of(name) in kinds:
                check_file(self.path, name, record)

    def check_layout(self) -> None:
        """Check that the files have their sizes, and together hold every tensor whole.

        Raises:
            UserError: A file is missing or has another size, or the files do not fit each other.
        """
        for name, record in self.files.items():
            check_size(self.path, name, record)
        weights = self.model_tensors()
        moments = self.tensors(MOMENTS)
        for name, tensor in moments.tensors.items() if moments else ():
            parameter = parameter_of(name)
            weight = weights.tensors.get(parameter) if parameter else None
            if weight is None or tensor.shape != weight.shape:
                raise UserError(
                    f"{self.path}: {name[:200]!r} does not belong to these weights; this "
                    "checkpoint cannot be used"
                )
        self.tensors(CARRIED)

    def _files_of(self, kind: str) -> list[str]:
        return [name for name in self.files if kind_of(name) == kind]


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
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_shapes(own, {name: tuple(tensor.shape) for name, tensor in weights.items()}, where)
    model.load_state_dict(dict(weights))


def check_shapes(
    own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Check that tensors are those of a model.

    Args:
        own: The shapes of the model's tensors, by name.
        found: The shapes of the tensors.
        where: What errors call the tensors.

    Raises:
        UserError: Names or shapes differ.
    """
    if odd := sorted(own.keys() ^ found.keys()):
        raise UserError(
            f"{where}: has other tensors than the model: {', '.join(odd)[:200]}; take the weights "
            "that belong to this model"
        )
    for name, shape in own.items():
        if found[name] != shape:
            raise UserError(
                f"{where}: {name} has the shape {list(found[name])}, the model's {list(shape)}; "
                "take the weights that belong to this model"
            )


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def check_finite(name: str, value: float, step: int) -> None:
    """Refuse a value of a training that is not finite.

    Raises:
        UserError: It is infinite or not a number.
    """
    if not math.isfinite(value):
        raise UserError(not_finite_line(f"{name} ({value})", step))


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
