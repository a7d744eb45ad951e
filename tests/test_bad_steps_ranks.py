"""Bad steps on two workers: a fault on one of them is the same decision on both."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gate_runs import some_rows, table_config, write_table_set
from rank_processes import join_training, run_ranks
from saved_checkpoints import load

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.training.augmentation.draws import step_seed
from pipeline.training.checkpoints import TrainState, last_checkpoint
from pipeline.training.launch import run_training
from pipeline.training.objectives.classification import Classification
from pipeline.training.worker import TrainTask, open_training

BAD, STEPS = 6, 12
"""The bad step, counted from 1, of all steps. A checkpoint is saved after every 4."""
CASES = [("skip", 2, "nan"), ("skip", 0, "gradient"), ("rollback", 2, "gradient"),
         ("skip", 2, "spike")]  # fmt: skip
"""What happens after a bad step, the ZeRO stage, and what is bad on the second worker alone."""


def config_of(folder: Path, mode: str, stage: int, workers: int) -> Config:
    config = with_values(
        table_config(folder, "ranks"),
        {
            "training.batch_size": 8, "training.epochs": 2, "training.learning_rate": 1e-2,
            "training.schedule.warmup_epochs": 0, "training.checkpoint_steps": 4,
            "training.spike_factor": 20.0, "training.spike_window": 3, "training.eps": 1e-3,
            "training.on_bad_step": mode, "training.zero_stage": stage,
            "training.balance_classes": 1.0, "training.weight_decay": 0.0,
            "cluster.num_workers": workers,
        },
    )  # fmt: skip
    if not Path(config.shards_folder).exists():
        write_table_set(config, some_rows(0, 48), some_rows(48, 60))
    return config


def poison(kind: str, seed: int, ranks: Callable[[], bool]) -> None:
    """Make the loss or the gradient of one step bad, where `ranks` says so."""
    losses = Classification.losses

    def poisoned(self: Any, outputs: Any, batch: Any, *, training: bool) -> torch.Tensor:
        values = losses(self, outputs, batch, training=training)
        if not training or batch.seed != step_seed(seed, *divmod(BAD - 1, STEPS // 2), 0):
            return values
        factor = {"nan": float("nan"), "spike": 1000.0, "gradient": float("inf")}[kind]
        if kind == "gradient":
            if ranks():
                values.register_hook(lambda gradient: gradient * factor)
            return values
        return values * factor if ranks() else values

    Classification.losses = poisoned  # type: ignore[method-assign]  # of this process


def ranks_train(rank: int, folder: str) -> None:
    """Run every case on one of two ranks, in one process group."""
    join_training(rank, 2, folder)
    whole = Classification.losses
    for number, (mode, stage, kind) in enumerate(CASES):
        config = config_of(Path(folder), mode, stage, 2)
        poison(kind, config.seed, lambda: rank == 1)
        run = Path(folder) / f"two-{number}"
        run.mkdir(exist_ok=True)
        with open_training(TrainTask(config.model_dump_json(), str(run), None)) as (loop, state):
            while state.epoch < config.training.epochs:
                state = loop.run_epoch(state)
        torch.save(replace(state, metrics={}), f"{folder}/state-{number}-{rank}.pt")
        Classification.losses = whole  # type: ignore[method-assign]  # as it was
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of all cases on two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    config_of(folder, "skip", 0, 2)
    run_ranks(ranks_train, (str(folder),), 2)
    return folder


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_fault_on_one_of_two_ranks_is_left_out_as_on_one(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    mode, stage, kind = CASES[number]
    config = config_of(two_ranks, mode, stage, 0)
    alone = two_ranks / f"one-{number}"
    alone.mkdir()
    monkeypatch.setattr(Classification, "losses", Classification.losses)  # put back afterwards
    poison(kind, config.seed, lambda: True)
    run_training(config, alone, None)
    states = [
        torch.load(two_ranks / f"state-{number}-{rank}.pt", weights_only=False) for rank in range(2)
    ]
    assert isinstance(states[0], TrainState) and states[0] == states[1]
    one, two = (last_checkpoint(two_ranks / f"{name}-{number}" / "checkpoints")
                for name in ("one", "two"))  # fmt: skip
    assert one is not None and two is not None
    for state in (one.state, two.state, states[0]):
        found = (state.step, state.bad_steps, state.lost_steps)
        assert found == (STEPS, 1, {"skip": 1, "rollback": 2}[mode])
    expected = load(one, "weights")
    for name, tensor in load(two, "weights").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
