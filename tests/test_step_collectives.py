"""What a training step sends over the ranks and reads from the device, counted on two ranks.

DeepSpeed's own engine trains in them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gate_runs import some_rows, table_config, write_table_set
from rank_processes import join_training, run_ranks
from saved_checkpoints import load

from cluster.accumulation import Accumulation
from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.micro_steps import MicroSteps
from pipeline.training.worker import TrainTask, open_training

STEPS, LOG_STEPS = 8, 4
SMALL = 100
"""The largest number of elements that is not a bucket of gradients."""
Case = tuple[int, int]
CASES: list[Case] = [(0, 1), (0, 4), (1, 4), (2, 1), (2, 4)]
"""The ZeRO stage and the number of micro-batches of a step."""


def config_of(folder: Path, stage: int, micros: int) -> Config:
    config = with_values(
        table_config(folder, "ranks"),
        {
            "training.batch_size": 8, "training.epochs": 1, "training.learning_rate": 1e-3,
            "training.schedule.warmup_epochs": 0, "training.log_steps": LOG_STEPS,
            "training.gradient_clipping": None, "training.eps": 1e-3,
            "training.zero_stage": stage, "training.gradient_accumulation_steps": micros,
            "cluster.num_workers": 2,
        },
    )  # fmt: skip
    if not Path(config.shards_folder).exists():
        write_table_set(config, some_rows(0, 8 * STEPS), some_rows(80, 92))
    return config


class Counts:
    """Counts what the steps of a loop send, and what they read from the device."""

    def __init__(self, loop: Any, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[dict[str, Any]] = []
        self._notices = loop.stop_check._group  # asked by the clock, twice a second
        self._begin()
        for name in ("all_reduce", "reduce", "reduce_scatter_tensor", "isend"):
            patch.setattr(dist, name, self._sending(getattr(dist, name)))
        for name in ("item", "tolist", "cpu", "__float__", "__bool__"):
            patch.setattr(torch.Tensor, name, self._reading(getattr(torch.Tensor, name)))
        take, run, engine_step = loop.optimizer_step.take, MicroSteps.run, loop.engine.step

        def uncounted() -> None:
            """Let DeepSpeed and torch's optimizer read: their counters are on the host."""
            counts, self._counts = self._counts, False
            engine_step()
            self._counts = counts

        def step(*arguments: Any, **options: Any) -> Any:
            self._counts = True
            found = take(*arguments, **options)
            self._counts = False
            self.steps.append(self._now)
            self._begin()
            return found

        def micro_step(*arguments: Any) -> Any:
            self._counts = True
            found = run(*arguments)
            self._counts = False
            return found

        patch.setattr(loop.engine, "step", uncounted)
        patch.setattr(loop.optimizer_step, "take", step)
        patch.setattr(MicroSteps, "run", micro_step)

    def _begin(self) -> None:
        self._counts = False
        self._now: dict[str, Any] = {"gradients": 0, "small": [], "reads": 0}

    def _sending(self, call: Any) -> Any:
        def counted(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if options.get("group") is self._notices:
                return call(tensor, *arguments, **options)
            if tensor.numel() > SMALL:
                self._now["gradients"] += 1
            else:
                self._now["small"].append(tensor.numel())
            return call(tensor, *arguments, **options)

        return counted

    def _reading(self, call: Any) -> Any:
        def counted(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            self._now["reads"] += self._counts
            return call(tensor, *arguments, **options)

        return counted


def ranks_train(rank: int, folder: str) -> None:
    """Count every case on one of two ranks; the last one also reduces each micro-batch."""
    join_training(rank, 2, folder)
    for stage, micros in CASES:
        train(Path(folder), stage, micros, f"{stage}-{micros}", rank)
    accumulated = Accumulation.__init__

    def as_deepspeed_does(self: Accumulation, engine: Any) -> None:
        accumulated(self, engine)
        self._reduces_once = False
        engine._is_gradient_accumulation_boundary = None

    Accumulation.__init__ = as_deepspeed_does  # type: ignore[method-assign]  # of this process
    train(Path(folder), 2, 4, "each", rank)
    dist.barrier()
    dist.destroy_process_group()


def train(folder: Path, stage: int, micros: int, name: str, rank: int) -> None:
    config = config_of(folder, stage, micros)
    (folder / name).mkdir(exist_ok=True)
    task = TrainTask(config.model_dump_json(), str(folder / name), None)
    with pytest.MonkeyPatch.context() as patch, open_training(task) as (loop, state):
        counts = Counts(loop, patch)
        loop.run_epoch(state)
    if rank == 0:
        (folder / f"{name}.json").write_text(json.dumps(counts.steps))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the counts and checkpoints of all cases."""
    folder = tmp_path_factory.mktemp("counted")
    config_of(folder, 0, 1)
    run_ranks(ranks_train, (str(folder),), 2)
    return folder


def quiet_steps(folder: Path, name: str) -> list[dict[str, Any]]:
    """The counts of the steps that neither log, nor follow a logged one, nor begin the epoch."""
    steps = json.loads((folder / f"{name}.json").read_text())
    assert len(steps) == STEPS
    return [step for number, step in enumerate(steps, 1) if number % LOG_STEPS > 1]


@pytest.mark.parametrize("case", CASES)
def test_a_step_that_logs_nothing_sends_its_gradients_once_and_its_weights_once(
    counted: Path, case: Case
) -> None:
    stage, micros = case
    for step in quiet_steps(counted, f"{stage}-{micros}"):
        # At stages 1 and 2, each of two parameter groups is sent, and its norm is added up.
        assert step["gradients"] == (2 if stage else 1)
        assert sorted(step["small"]) == sorted([micros, *([1, 1] if stage else [])])


@pytest.mark.parametrize("micros", [1, 4])
def test_a_step_that_logs_nothing_reads_nothing_from_the_device(counted: Path, micros: int) -> None:
    for step in quiet_steps(counted, f"0-{micros}"):
        assert step["reads"] == 0


def test_gradients_that_are_reduced_once_train_as_those_of_each_micro_batch(counted: Path) -> None:
    once, each = (last_checkpoint(counted / name / "checkpoints") for name in ("2-4", "each"))
    assert once is not None and each is not None
    assert (
        quiet_steps(counted, "each")[0]["gradients"] > quiet_steps(counted, "2-4")[0]["gradients"]
    )
    expected = load(each, "weights")
    for name, tensor in load(once, "weights").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
