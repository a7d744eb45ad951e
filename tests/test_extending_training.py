"""One more of each kind, added as docs/extending.md says: its blocks run, what they add works."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.errors import ClusterError
from cluster.optimizers import OPTIMIZERS
from pipeline.config.scheduler import Pace
from pipeline.config.schedulers import SCHEDULERS
from pipeline.config.search import SEARCHES

PAGE = Path(__file__).parent.parent / "docs/extending.md"
SECTIONS = {
    title: text
    for title, text in re.findall(
        r"^## (Add [^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S
    )
    if title not in ("Add a modality", "Add an objective")  # test_extending.py adds them to a copy
}
Tables: list[dict[str, Any]] = [OPTIMIZERS, SEARCHES, SCHEDULERS]


@pytest.fixture(autouse=True)
def _tables_as_they_were() -> Iterator[None]:
    kept = [dict(table) for table in Tables]
    yield
    for table, before in zip(Tables, kept, strict=True):
        table.clear()
        table.update(before)


def run_section(title: str) -> dict[str, Any]:
    """Run the blocks of a section one after the other; returns their names."""
    names: dict[str, Any] = {"__name__": "extending"}
    blocks = re.findall(r"```python\n(.*?)```", SECTIONS[title], re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, f"docs/extending.md, {title}", "exec"), names)
    return names


@pytest.mark.parametrize("title", SECTIONS)
def test_the_blocks_of_every_section_run(title: str) -> None:
    run_section(title)


def test_an_added_optimizer_s_state_is_gathered_and_restored_at_every_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from whole_state import gather_state, restore_state

    from cluster.deepspeed_engine import initialize_engine, leave_process_group
    from cluster.strategy import Strategy
    from pipeline.config.training import TrainingConfig
    from pipeline.training.optimizer import make_optimizer

    run_section("Add an optimizer")
    monkeypatch.setenv("LOCAL_RANK", "0")
    training = TrainingConfig(optimizer="sgd", learning_rate=0.1)

    def steps(stage: int, first: int, last: int, state: Any = None) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
        strategy = Strategy(
            world_size=1, zero_stage=stage, micro_batch_size=4, gradient_accumulation_steps=1,
            gradient_clipping=0.0, precision="float32", device="cpu", optimizer="sgd",
        )  # fmt: skip
        engine = initialize_engine(model, make_optimizer(model, training), strategy)
        if state:
            restore_state(engine, *state, step=first)
        for step in range(first, last):
            inputs = torch.rand(4, 3, generator=torch.Generator().manual_seed(step))
            engine.backward(engine(inputs).square().mean())
            engine.step()
        return gather_state(engine)

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        whole = steps(0, 0, 4)
        half = steps(1, 0, 2)
        assert set(half[1]) == {f"momentum_buffer.{name}" for name in half[0]}
        for stage in (0, 2, 3):
            for found, expected in zip(steps(stage, 2, 4, half), whole, strict=True):
                torch.testing.assert_close(found, expected)
        adam = {f"exp_avg.{name}": tensor for name, tensor in half[0].items()}
        with pytest.raises(ClusterError, match=r"state is not that of sgd .*exp_avg"):
            steps(2, 2, 2, (half[0], adam))
        OPTIMIZERS["sgd"] = replace(OPTIMIZERS["sgd"], reads="tensors")
        with pytest.raises(ClusterError, match="zero_stage is 2, whose slices sgd cannot step"):
            steps(2, 0, 1)
    finally:
        leave_process_group()


def test_an_added_search_and_scheduler_are_a_study_s() -> None:
    names = run_section("Add a search algorithm")
    rates = [settings["training.learning_rate"] for settings in names["settings"]]
    assert len(set(rates)) == 3
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    more = names["study"].model_copy(update={"num_trials": 5})
    assert names["draw_settings"](more, seed=0)[:3] == names["settings"]
    scheduler = SCHEDULERS["below_median"](names["study"], Pace(4, 1, 4))
    assert [scheduler.stops(n, 1, 1, score) for n, score in enumerate((0.5, 0.4, 0.6))] == [
        False, True, False,
    ]  # fmt: skip
