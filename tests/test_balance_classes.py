"""`training.balance_classes`: what a training draws, how it resumes, and what is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_runs import some_rows, table_config, write_table_set
from saved_checkpoints import load
from trainings import cut_off_after, difference

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.records import RunRecord
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.feed import MicroBatch
from pipeline.training.fingerprint import DEFAULTS, SAME_TO_ROUNDING, training_fingerprint
from pipeline.training.launch import run_training
from pipeline.training.micro_steps import MicroSteps
from pipeline.training.train import STAGE
from shards import ShardSet


def config_of(folder: Path, balance: float) -> Config:
    config = with_values(
        table_config(folder, "balance"),
        {
            "training.batch_size": 8, "training.epochs": 2, "training.checkpoint_steps": 2,
            "training.zero_stage": 0, "training.balance_classes": balance,
        },
    )  # fmt: skip
    if not Path(config.shards_folder).exists():
        rows = some_rows(0, 200)
        rare = [row for row in rows if row["label"] == "odd"][:6]
        train_rows = [row for row in rows if row["label"] != "odd"][:58] + rare
        write_table_set(config, train_rows, some_rows(200, 212))
    return config


def trained(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    run_training(config, folder, None)
    last = last_checkpoint(folder / "checkpoints")
    assert last is not None
    return load(last, "weights")


def test_a_training_draws_each_class_equally_often_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int]] = []
    run = MicroSteps.run

    def noting(self: MicroSteps, micro_batch: MicroBatch, *place: int) -> Any:
        for batch in micro_batch.batches:
            drawn.extend(zip(batch.numbers.tolist(), batch.targets.tolist(), strict=True))
        return run(self, micro_batch, *place)

    monkeypatch.setattr(MicroSteps, "run", noting)
    config = config_of(tmp_path, 1.0)
    whole = trained(config, tmp_path / "whole")
    once = list(drawn)
    assert len(once) == 128
    for epoch in (once[:64], once[64:]):
        assert sorted(Counter(target for _, target in epoch).values()) == [21, 21, 22]
        rare = Counter(number for number, target in epoch if target == 2)
        assert sorted(rare) == list(range(58, 64)) and set(rare.values()) <= {3, 4}
        often = Counter(number for number, target in epoch if target != 2)
        assert set(often.values()) == {1}
    drawn.clear()

    with cut_off_after(5):
        trained(config, tmp_path / "cut")
    drawn.clear()
    resumed = trained(config, tmp_path / "cut")
    assert drawn == once[32:]  # from the checkpoint after step 4
    assert difference(resumed, whole) == 0


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_a_training_does_not_go_on_with_another_balance(tmp_path: Path, balance: float) -> None:
    before, now = config_of(tmp_path, 1.0), config_of(tmp_path, balance)
    shard_set = ShardSet.open(before.shards_folder)
    record = RunRecord(STAGE, training_fingerprint(before, shard_set), {}, 0.0)
    with pytest.raises(UserError, match=rf"training\.balance_classes was 1\.0, is {balance}"):
        record.refuse_changes(
            training_fingerprint(now, shard_set), "folder", SAME_TO_ROUNDING, DEFAULTS
        )
