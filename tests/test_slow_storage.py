"""A training whose storage is slow goes on while it saves; nothing is torn, and one save waits."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from gate_runs import some_rows, table_config, write_table_set
from saved_checkpoints import load

from pipeline.config.folders import folder_at
from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.training.checkpoint_saver import CheckpointSaver
from pipeline.training.checkpoints import last_checkpoint, list_names, read_checkpoint
from pipeline.training.launch import run_training
from pipeline.training.optimizer_step import OptimizerStep

SECONDS = 0.1
"""What each write of a file costs more than it does: a save, about five steps' time and more."""
STEPS, EVERY = 20, 5


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = with_values(
        table_config(tmp_path, "rows"),
        {
            "training.batch_size": 8, "training.epochs": 1, "training.checkpoint_steps": EVERY,
            "training.schedule.warmup_epochs": 0,
        },
    )  # fmt: skip
    write_table_set(made, some_rows(0, 8 * STEPS), some_rows(8 * STEPS, 8 * STEPS + 12))
    return made


class SlowStorage:
    """Object storage that is slow to write, and looks at the checkpoints while it does so.

    Attributes:
        most_saves: The largest number of saves that were going on at a write.
        found: How often each checkpoint was there, and whole, at a write.
        during: The numbers of the steps that were taken while a save was going on.
        bytes_held: How many bytes of host memory the copies had after each save had begun.
    """

    def __init__(self, checkpoints: Any, patch: pytest.MonkeyPatch) -> None:
        self._checkpoints = checkpoints
        self.most_saves = 0
        self.found: Counter[str] = Counter()
        self.during: list[int] = []
        self.bytes_held: list[int] = []
        opened, piped = MemoryFileSystem._open, MemoryFileSystem.pipe_file
        save, step = CheckpointSaver.save, OptimizerStep.take

        def slow_open(fs: Any, path: str, mode: str = "rb", **options: Any) -> Any:
            file = opened(fs, path, mode, **options)
            if "w" in mode:
                self._wait(path)  # the file is there, and has nothing of its content
            return file

        def slow_pipe(fs: Any, path: str, value: bytes, **options: Any) -> None:
            self._wait(path)
            piped(fs, path, value, **options)

        def noted_save(saver: CheckpointSaver, *arguments: Any) -> None:
            save(saver, *arguments)
            held = [block.nbytes for copy in saver._copies.values() for block in copy._blocks]
            self.bytes_held.append(sum(held))

        def noted_step(own: OptimizerStep, sums: Any, after: Any, **options: Any) -> Any:
            if self._saves():
                self.during.append(after.step)
            return step(own, sums, after, **options)

        patch.setattr(MemoryFileSystem, "_open", slow_open)
        patch.setattr(MemoryFileSystem, "pipe_file", slow_pipe)
        patch.setattr(CheckpointSaver, "save", noted_save)
        patch.setattr(OptimizerStep, "take", noted_step)

    def _saves(self) -> int:
        return sum(each.name.startswith("checkpoint-") for each in threading.enumerate())

    def _wait(self, path: str) -> None:
        if "/checkpoints/" not in path:
            return
        self.most_saves = max(self.most_saves, self._saves())
        for name in list_names(self._checkpoints):
            checkpoint = read_checkpoint(self._checkpoints / name)
            checkpoint.check_layout()
            checkpoint.check()
            self.found[name] += 1
        time.sleep(SECONDS)


def test_a_training_goes_on_while_it_saves_and_nothing_is_torn(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    run_training(config, tmp_path / "whole", None)
    slow = folder_at(f"memory://{tmp_path.name}/slow")
    with monkeypatch.context() as patch:
        storage = SlowStorage(slow / "checkpoints", patch)
        run_training(config, slow, None)
    # It goes on while a save is under way, but at the next one it waits: no two at once.
    assert {EVERY + 1, 2 * EVERY + 1, 3 * EVERY + 1} <= {*storage.during}
    assert storage.most_saves == 1
    # Each save uses the same memory again.
    assert len(storage.bytes_held) == STEPS // EVERY and len({*storage.bytes_held}) == 1
    assert {*storage.found} == {f"step-{step:08d}" for step in range(EVERY, STEPS + 1, EVERY)}
    assert list_names(slow / "checkpoints") == ["step-00000015", "step-00000020"]
    found, expected = (
        last_checkpoint(slow / "checkpoints"),
        last_checkpoint(tmp_path / "whole" / "checkpoints"),
    )
    assert found is not None and expected is not None
    assert found.state.metrics["val_loss"] == expected.state.metrics["val_loss"]
    for name, tensor in load(expected, "weights").items():
        assert load(found, "weights")[name].equal(tensor)
