"""The progress of a training: rank 0 writes it, and the driver shows it as a bar.

A file on the shared storage needs no extra process and outlives the driver.
"""

import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.config.folders import Folder, is_remote
from pipeline.errors import UserError
from pipeline.runs.console import Console, Estimate
from pipeline.runs.storage import read_bytes, remove
from shards.errors import ShardError

PROGRESS_FILE = "progress.json"
POLL_SECONDS, REMOTE_POLL_SECONDS = 0.3, 2.0
_MAX_BYTES = 64 << 20


@dataclass
class Progress:
    """The progress of a training.

    Attributes:
        samples: The number of samples trained on so far.
        total_samples: The number of samples in all epochs.
        epochs: The number of epochs.
        epoch: The number of epochs that are finished, each with its evaluation.
        loss: The loss of the last logged step.
        samples_per_second: The speed of the steps up to the last logged one.
        evaluation_samples: The number of samples in an evaluation.
        evaluation_seconds: The time of the last evaluation and its checkpoint, in seconds.
        evaluations: `(epoch, metrics)` of the epochs that this launch has finished.
        notes: Lines for the user from this launch.
        launch: An identifier of the launch. Workers are relaunched after a failure.
    """

    samples: int = 0
    total_samples: int = 0
    epochs: int = 0
    epoch: int = 0
    loss: float | None = None
    samples_per_second: float | None = None
    evaluation_samples: int = 0
    evaluation_seconds: float | None = None
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    launch: str = field(default_factory=lambda: secrets.token_hex(8))

    def remaining_seconds(self) -> float | None:
        """Return the remaining time with all evaluations, in seconds; None if it is not known."""
        rate = self.samples_per_second
        if not rate:
            return None
        evaluation = self.evaluation_seconds
        if evaluation is None:  # a forward pass takes a third of the FLOPs of a training step
            evaluation = self.evaluation_samples / (3 * rate)
        left = max(0, self.total_samples - self.samples)
        return left / rate + max(0, self.epochs - self.epoch) * evaluation

    def note(self) -> str:
        """Return what the bar says beside the numbers: the epoch and the loss."""
        epoch = f"epoch {min(self.epoch + 1, self.epochs)}/{self.epochs}"
        return epoch if self.loss is None else f"{epoch}, loss {self.loss:.4f}"


def describe(metrics: dict[str, float]) -> str:
    """Return metrics in one line for a person: validation before training, losses last in each."""
    known = {
        name: f"{name} {{:.4f}}"
        for split in ("val_", "train_")
        for name in sorted(metrics, key=lambda name: name.endswith("_loss"))
        if name.startswith(split)
    }
    known |= {
        "samples_per_second": "{:.0f} samples/s",
        "bad_samples": "{:.0f} samples could not be read",
    }
    return ", ".join(
        text.format(metrics[name])
        for name, text in known.items()
        if name in metrics and (name != "bad_samples" or metrics[name])
    )


def read_progress(folder: Folder) -> Progress | None:
    """Return the progress that rank 0 last wrote, or None."""
    try:
        return Progress(**json.loads(read_bytes(folder / PROGRESS_FILE, _MAX_BYTES)))
    except (OSError, ShardError, UserError, ValueError, TypeError, RecursionError):
        return None


@contextlib.contextmanager
def show_progress(folder: Folder, console: Console) -> Iterator[None]:
    """Show a bar that follows the progress file in the run folder while the body runs."""
    remove(folder / PROGRESS_FILE)
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(folder, console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(folder: Folder, console: Console, stop: threading.Event) -> None:
    seconds = REMOTE_POLL_SECONDS if is_remote(folder) else POLL_SECONDS
    progress = None
    while progress is None:
        ended = stop.wait(seconds)
        progress = read_progress(folder)
        if ended and progress is None:
            return
    launch, shown, noted = "", 0, 0
    samples = progress.samples
    with console.bar("train", progress.total_samples, "samples", completed=samples) as bar:
        last = False
        while True:
            progress = read_progress(folder) or progress
            if progress.launch != launch:
                launch, shown, noted = progress.launch, 0, 0
            for note in progress.notes[noted:]:
                console.notice(note)
            for epoch, metrics in progress.evaluations[shown:]:
                console.notice(f"epoch {epoch}/{progress.epochs}: {describe(metrics)}")
            shown, noted = len(progress.evaluations), len(progress.notes)
            estimate = Estimate(progress.samples_per_second, progress.remaining_seconds())
            bar.update(progress.samples, progress.note(), estimate=estimate)
            if last:
                return
            last = stop.wait(seconds)
