"""A checkpoint that cannot be written is left out; the third in a row, or the last, ends all."""

import resource
from pathlib import Path
from typing import Any

import pytest
from gate_runs import some_rows, table_config, write_table_set
from saved_checkpoints import load

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoint_saver import CheckpointSaver
from pipeline.training.checkpoints import list_names, read_checkpoint
from pipeline.training.launch import run_training
from pipeline.training.progress import read_progress

SAVES = ("step-00000004", "step-00000006", "step-00000008", "step-00000012")
"""The saves of 2 epochs of 6 steps, with one after each 4 steps. The last two and the best stay."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = with_values(
        table_config(tmp_path, "rows"),
        {
            "training.batch_size": 8, "training.epochs": 2, "training.checkpoint_steps": 4,
            "training.schedule.warmup_epochs": 0,
        },
    )  # fmt: skip
    write_table_set(made, some_rows(0, 48), some_rows(48, 60))
    return made


def train_on_full_disk(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, *steps: int
) -> None:
    """Train; while the checkpoints of some steps are written, files may have 1,000 bytes."""
    write = CheckpointSaver._write

    def limited(self: Any, state: TrainState, *others: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if state.step in steps:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            write(self, state, *others)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointSaver, "_write", limited)
        run_training(config, folder, None)


def test_the_training_goes_on_with_a_line_and_ends_as_undisturbed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_on_full_disk(config, tmp_path / "whole", monkeypatch)
    train_on_full_disk(config, tmp_path / "full", monkeypatch, 6, 8)
    assert list_names(tmp_path / "full" / "checkpoints") == [SAVES[0], SAVES[3]]
    found, expected = (
        load(read_checkpoint(tmp_path / name / "checkpoints" / SAVES[3]), "weights")
        for name in ("full", "whole")
    )
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    progress = read_progress(tmp_path / "full")
    assert progress is not None
    told = [note for note in progress.notes if "step-" in note]
    for note, name in zip(told, SAVES[1:3], strict=True):
        assert f"{name}: cannot be written (File too large); the training goes on" in note


@pytest.mark.parametrize(
    ("steps", "ends"),
    [((4, 6, 8), "3 checkpoints in a row could not be written"), ((12,), r"\(File too large\)")],
)
def test_the_third_failure_in_a_row_and_that_of_the_last_end_the_training(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Any, ends: str
) -> None:
    with pytest.raises(UserError, match=rf"step-000000{steps[-1]:02d}: .*{ends}$"):
        train_on_full_disk(config, tmp_path / "full", monkeypatch, *steps)
    assert SAVES[3] not in list_names(tmp_path / "full" / "checkpoints")
    run_training(config, tmp_path / "full", None)  # there is room again
    assert list_names(tmp_path / "full" / "checkpoints")[-1] == SAVES[3]
