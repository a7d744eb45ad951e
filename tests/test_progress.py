"""What a person sees of a training: the remaining time counts evaluations, too."""

import io
from pathlib import Path

from pipeline.runs.console import Console
from pipeline.training.progress import Progress, show_progress
from pipeline.training.progress_writer import ProgressWriter


def test_the_remaining_time_counts_every_evaluation_that_is_left() -> None:
    progress = Progress(total_samples=4000, epochs=4, samples=1500, epoch=1)
    assert progress.remaining_seconds() is None
    progress.samples_per_second, progress.evaluation_samples = 100.0, 600
    # 2,500 samples are left, and 3 evaluations. A forward pass is a third of a training step.
    assert progress.remaining_seconds() == 25 + 3 * 2
    progress.evaluation_seconds = 10.0
    assert progress.remaining_seconds() == 25 + 3 * 10
    progress.samples, progress.epoch = 4000, 3  # the last evaluation is running
    assert progress.remaining_seconds() == 10
    progress.epoch = 4
    assert progress.remaining_seconds() == 0


def test_the_bar_shows_what_the_training_says(tmp_path: Path) -> None:
    file = io.StringIO()
    with show_progress(tmp_path, Console(file, file)):
        progress = Progress(
            samples=1500, total_samples=4000, epochs=4, epoch=1, loss=0.0, samples_per_second=250.0,
            evaluation_seconds=30.0,
        )  # fmt: skip
        ProgressWriter(tmp_path).write(progress)
    line = file.getvalue().splitlines()[-1]
    assert "1500/4000" in line
    assert "250 samples/s" in line
    assert "0:01:40" in line
    assert "epoch 2/4, loss 0.0000" in line
