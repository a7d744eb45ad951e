"""Training checkpoints: whole tensors in safetensors, restorable at any world size and stage.

::

    checkpoints/step-00000640/model.safetensors      float32 weights and buffers by name
    checkpoints/step-00000640/optimizer.safetensors  exp_avg.NAME and exp_avg_sq.NAME
    checkpoints/step-00000640/state.json             position in the data, metrics, sha256 of both

A folder appears by a rename, whole. Of all, the last and the best by metric are kept.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.stages import write_json
from shards.epoch import Window

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
UNFINISHED = ".partial-"


@dataclass(frozen=True)
class TrainState:
    """Where a training stands.

    Attributes:
        step: optimizer steps taken.
        epoch: the epoch to go on with, from 0.
        samples: samples of that epoch that all ranks together have consumed.
        metrics: of the last evaluation; empty before the first.
        score: the metric that ranks checkpoints; None for one within an epoch.
        sums: running sums of the open epoch's training metrics, so that a resumed epoch reports
            what an uninterrupted one would.
        window: shards shuffled together, or None for all; kept from the first epoch on, since a set
            that lies elsewhere by then would be read in another order. "auto" before.
        scores: of every epoch so far, the first one first, so that a resumed trial of a study can
            report what its study has not heard.
    """

    step: int = 0
    epoch: int = 0
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    sums: tuple[float, ...] = ()
    window: Window = "auto"
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk."""

    path: Path
    state: TrainState
    sha256: dict[str, str]

    @property
    def weights_file(self) -> Path:
        """The model's weights."""
        return self.path / WEIGHTS_FILE

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Weights and moments, float32 on the CPU, as :func:`cluster.engine_state.gather_state`.

        Raises:
            UserError: a file is missing or not as it was written.
        """
        self.check()
        return load_file(self.weights_file), load_file(self.path / OPTIMIZER_FILE)

    def check(self) -> None:
        """Compare the files with the sha256 noted when they were written.

        Raises:
            UserError: names the file that differs.
        """
        for name, expected in self.sha256.items():
            try:
                found = _sha256(self.path / name)
            except OSError as error:
                raise UserError(f"{self.path / name}: cannot be read ({error.strerror})") from None
            if found != expected:
                raise UserError(
                    f"{self.path / name}: sha256 differs from {STATE_FILE}; delete the folder "
                    f"{self.path.name} to go on from the checkpoint before it"
                )


def save_checkpoint(
    folder: Path,
    state: TrainState,
    weights: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
) -> Checkpoint:
    """Write a checkpoint, then delete those that are neither the last nor the best."""
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f"{UNFINISHED}{final.name}"
    for leftover in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    try:
        temporary.mkdir(parents=True)
        save_file(weights, temporary / WEIGHTS_FILE)
        save_file(moments, temporary / OPTIMIZER_FILE)
        sha256 = {name: _sha256(temporary / name) for name in (WEIGHTS_FILE, OPTIMIZER_FILE)}
        write_json(temporary / STATE_FILE, {**asdict(state), "sha256": sha256})
        if final.exists():  # written before, by a run that went on from an earlier one
            final.rename(folder / f"{UNFINISHED}old-{final.name}")
        temporary.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{final}: cannot be written ({error})") from error
    kept = [last_checkpoint(folder), best_checkpoint(folder)]
    keep = {checkpoint.path for checkpoint in kept if checkpoint}
    for checkpoint in list_checkpoints(folder):
        if checkpoint.path not in keep:
            shutil.rmtree(checkpoint.path)
    shutil.rmtree(folder / f"{UNFINISHED}old-{final.name}", ignore_errors=True)
    return Checkpoint(final, state, sha256)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Every whole checkpoint, by step."""
    return [read_checkpoint(path.parent) for path in sorted(folder.glob(f"step-*/{STATE_FILE}"))]


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in one folder; its tensors are not read.

    Raises:
        UserError: there is none, or its state is damaged.
    """
    try:
        values = json.loads((path / STATE_FILE).read_text("utf-8"))
        sha256 = values.pop("sha256")
        values["sums"] = tuple(values["sums"])
        values["scores"] = tuple(values.get("scores", ()))
        return Checkpoint(path, TrainState(**values), sha256)
    except OSError as error:
        raise UserError(f"{path}: no checkpoint there ({error.strerror})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}/{STATE_FILE}: damaged ({error}); delete that folder") from None


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """The one to resume from."""
    return max(list_checkpoints(folder), key=lambda c: c.state.step, default=None)


def best_checkpoint(folder: Path) -> Checkpoint | None:
    """The one with the highest score; of equals the latest. Without scores, the last."""
    scored = [c for c in list_checkpoints(folder) if c.state.score is not None]
    if not scored:
        return last_checkpoint(folder)
    return max(scored, key=lambda c: (c.state.score, c.state.step))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
