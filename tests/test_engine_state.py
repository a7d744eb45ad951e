"""DeepSpeed's state, whole: equal to plain torch at every stage, restorable at any other."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import join_ranks, run_ranks
from torch import nn
from whole_state import gather_state, restore_state

from cluster import ClusterError
from cluster.deepspeed_engine import initialize_engine, leave_process_group
from cluster.strategy import Strategy, check_strategy, read_strategy

BATCH, STEPS, CUT = 8, 4, 2
STAGES = (0, 1, 2, 3)
FROZEN = ("inner.weight", "shared.weight", "shared.bias")
CLIPPING = 0.5
LEARNING_RATE = 1e-2


def build(frozen: bool = False) -> nn.Module:
    """Odd sizes, so that no tensor divides evenly among two ranks; one layer is used twice."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(7, 13)
            self.shared = nn.Linear(13, 13)
            self.norm = nn.LayerNorm(13)
            self.out = nn.Linear(13, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            hidden = F.gelu(self.inner(inputs))
            hidden = self.shared(F.gelu(self.shared(hidden)))
            return self.out(self.norm(hidden)).float()

    model = Net()
    for name in FROZEN if frozen else ():
        model.get_parameter(name).requires_grad_(False)
    return model


def optimizer(model: nn.Module) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE)


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 7, generator=generator)
    return inputs, torch.randint(0, 3, (BATCH,), generator=generator)


def plain_torch(steps: int, frozen: bool = False) -> dict[str, torch.Tensor]:
    model = build(frozen)
    adam = optimizer(model)
    for step in range(steps):
        inputs, targets = data(step)
        adam.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        adam.step()
    return dict(model.named_parameters())


def strategy(world_size: int, stage: int, precision: Any = "float32") -> Strategy:
    return Strategy(
        world_size=world_size,
        zero_stage=stage,
        micro_batch_size=BATCH // world_size,
        gradient_accumulation_steps=1,
        gradient_clipping=CLIPPING,
        precision=precision,
        device="cpu",
    )


def run(stage: int, kind: str, first: int, last: int, state: Any = None) -> Any:
    """Train from a state with this process's ranks; returns the gathered state."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    precision = "float32" if kind == "frozen" else kind
    model = build(kind == "frozen")
    engine = initialize_engine(model, optimizer(model), strategy(world_size, stage, precision))
    if state:
        restore_state(engine, *state, step=first)
    part = BATCH // world_size
    for step in range(first, last):
        inputs, targets = (t[rank * part : (rank + 1) * part] for t in data(step))
        engine.backward(F.cross_entropy(engine(inputs), targets))
        engine.step()
    return gather_state(engine)


def ranks(rank: int, world_size: int, folder: str) -> None:
    join_ranks(rank, world_size, folder)
    results = {}
    for kind in ("float32", "bf16", "frozen"):
        for stage in STAGES:
            name = f"{kind}-{stage}"
            if world_size == 2:
                results[name, "whole"] = run(stage, kind, 0, STEPS)
                results[name, "half"] = run(stage, kind, 0, CUT)
                again = run(stage, kind, CUT, STEPS, results[name, "half"])
                results[name, "resumed"] = again
            else:
                other = (stage + 1) % 4  # another world size and another stage at once
                half = torch.load(f"{folder}/2.pt")[name, "half"]
                results[name, "resumed"] = run(other, kind, CUT, STEPS, half)
    if rank == 0:
        torch.save(results, f"{folder}/{world_size}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    folder = tmp_path_factory.mktemp("engines")
    for world_size in (2, 1):
        run_ranks(ranks, (world_size, str(folder)), world_size)
    return {world_size: torch.load(folder / f"{world_size}.pt") for world_size in (1, 2)}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("stage", STAGES)
def test_steps_on_two_ranks_equal_plain_torch_on_the_whole_batch(
    results: dict[int, Any], stage: int
) -> None:
    weights, _ = results[2][f"float32-{stage}", "whole"]
    assert difference(weights, plain_torch(STEPS)) < 1e-6
    low, _ = results[2][f"bf16-{stage}", "whole"]
    # bfloat16 turns the sign of a few tiny gradients; Adam moves each weight by the rate a step.
    assert 0 < difference(low, plain_torch(STEPS)) < STEPS * LEARNING_RATE / 2


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_parameters_stay_as_they_are_and_have_no_moments(
    results: dict[int, Any], stage: int
) -> None:
    weights, moments = results[2][f"frozen-{stage}", "whole"]
    built = build().state_dict()
    assert [name for name in built if torch.equal(weights[name], built[name])] == [*FROZEN]
    trained = built.keys() - {*FROZEN}
    assert moments.keys() == {f"{key}.{n}" for key in ("exp_avg", "exp_avg_sq") for n in trained}
    assert difference(weights, plain_torch(STEPS, frozen=True)) < 1e-6


@pytest.mark.parametrize("kind", ["float32", "bf16", "frozen"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_restored_engine_goes_on_bit_for_bit(
    results: dict[int, Any], stage: int, kind: str
) -> None:
    name = f"{kind}-{stage}"
    for part in (0, 1):  # weights, moments
        assert difference(results[2][name, "resumed"][part], results[2][name, "whole"][part]) == 0


@pytest.mark.parametrize("kind", ["float32", "frozen"])
@pytest.mark.parametrize("stage", STAGES)
def test_it_restores_at_another_world_size_and_stage(
    results: dict[int, Any], stage: int, kind: str
) -> None:
    name = f"{kind}-{stage}"
    for part in (0, 1):
        assert difference(results[1][name, "resumed"][part], results[2][name, "whole"][part]) < 1e-6


def test_an_engine_that_differs_from_its_configuration_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = build()
    engine = initialize_engine(model, optimizer(model), strategy(1, 0))
    assert read_strategy(engine) == strategy(1, 0)
    with pytest.raises(ClusterError, match="zero_stage is 0, 2 was asked for"):
        check_strategy(engine, strategy(1, 2))
    with pytest.raises(ClusterError, match="precision is float32, bf16 was asked for"):
        check_strategy(engine, strategy(1, 0, "bf16"))
    leave_process_group()
