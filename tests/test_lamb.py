"""LAMB under ZeRO: on two workers, in slices, what it is on one worker with whole tensors."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from cluster import ClusterError, tensor_slices
from cluster.deepspeed_engine import Strategy, initialize_engine, leave_process_group
from cluster.engine_state import gather_state, restore_state
from cluster.lamb import Lamb

BATCH, STEPS, CUT = 8, 20, 9
STAGES = (0, 1, 2, 3)
RATE, BETAS, EPS, DECAY, CLIPPING = 2e-2, (0.9, 0.99), 1e-6, 0.1, 0.5
State = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def build() -> nn.Module:
    """No size divides evenly among two ranks; one layer is used twice, one scalar is alone."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([0.7]))
            self.inner = nn.Linear(7, 13)
            self.shared = nn.Linear(13, 13)
            self.norm = nn.LayerNorm(13)
            self.out = nn.Linear(13, 3)
            nn.init.zeros_(self.out.bias)  # its first trust ratio is 1

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            hidden = F.gelu(self.inner(inputs) * self.scale)
            hidden = self.shared(F.gelu(self.shared(hidden)))
            return self.out(self.norm(hidden)).float()

    return Net()


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 7, generator=generator)
    return inputs, torch.randint(0, 3, (BATCH,), generator=generator)


def lamb(model: nn.Module) -> Lamb:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return Lamb(groups, lr=RATE, betas=BETAS, eps=EPS)


def by_the_paper(steps: int, precision: str) -> State:
    """Algorithm 2 of You et al., on whole tensors in float64 but for the gradients."""
    model = build()
    mean = {name: torch.zeros_like(p).double() for name, p in model.named_parameters()}
    square = {name: torch.zeros_like(p).double() for name, p in model.named_parameters()}
    for step in range(steps):
        inputs, targets = data(step)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            # Each worker's half of the batch: bfloat16 rounds their sums apart.
            for half in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):
                (F.cross_entropy(model(inputs[half]), targets[half]) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        for name, x in model.named_parameters():
            assert x.grad is not None
            g = x.grad.double()
            mean[name] = BETAS[0] * mean[name] + (1 - BETAS[0]) * g
            square[name] = BETAS[1] * square[name] + (1 - BETAS[1]) * g**2
            m = mean[name] / (1 - BETAS[0] ** (step + 1))
            v = square[name] / (1 - BETAS[1] ** (step + 1))
            update = m / (v.sqrt() + EPS)
            if x.ndim > 1:
                update = update + DECAY * x.data.double()
            ratio = x.data.double().norm() / update.norm() if x.data.norm() > 0 else 1.0
            x.data = (x.data.double() - RATE * ratio * update).float()
    moments = {f"mu.{name}": m.float() for name, m in mean.items()}
    moments |= {f"nu.{name}": v.float() for name, v in square.items()}
    return {name: p.data for name, p in model.named_parameters()}, moments


def run(stage: int, precision: Any, first: int, last: int, state: State | None = None) -> State:
    """Train from a state with this process's ranks; returns the gathered state."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = build()
    if state:
        model.load_state_dict(state[0])
    strategy = Strategy(
        world_size=world_size,
        zero_stage=stage,
        micro_batch_size=BATCH // world_size,
        gradient_accumulation_steps=1,
        gradient_clipping=CLIPPING,
        precision=precision,
        device="cpu",
        optimizer="lamb",
    )
    engine = initialize_engine(model, lamb(model), strategy)
    if state:
        restore_state(engine, *state, step=first)
    part = BATCH // world_size
    for step in range(first, last):
        inputs, targets = (t[rank * part : (rank + 1) * part] for t in data(step))
        engine.backward(F.cross_entropy(engine(inputs), targets))
        engine.step()
    return gather_state(engine)


def all_reduces_of_a_step(stage: int) -> int:
    """The collectives that LAMB itself starts in one step of the engine."""
    calls = []
    reduce = dist.all_reduce
    inside = Lamb.step

    def counting(self: Lamb) -> Any:
        dist.all_reduce = lambda *args, **kwargs: (calls.append(1), reduce(*args, **kwargs))[1]
        try:
            return inside(self)
        finally:
            dist.all_reduce = reduce

    Lamb.step = counting  # type: ignore[method-assign, assignment]  # undone below
    try:
        run(stage, "float32", 0, 1)
    finally:
        Lamb.step = inside  # type: ignore[method-assign]  # undoes the line above
    return len(calls)


def ranks(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    store = dist.FileStore(f"{folder}/store-{world_size}", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    results: dict[Any, Any] = {}
    for stage in STAGES:
        for precision in ("float32", "bf16") if world_size == 2 else ("float32",):
            results[stage, precision] = run(stage, precision, 0, STEPS)
        if world_size == 2:
            results[stage, "all_reduces"] = all_reduces_of_a_step(stage)
            half = results[stage, "half"] = run(stage, "float32", 0, CUT)
            results[stage, "resumed"] = run(stage, "float32", CUT, STEPS, half)
        else:  # another world size and another stage at once
            half = torch.load(f"{folder}/2.pt")[(stage + 1) % 4, "half"]
            results[stage, "resumed"] = run(stage, "float32", CUT, STEPS, half)
    if rank == 0:
        torch.save(results, f"{folder}/{world_size}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    folder = tmp_path_factory.mktemp("lamb")
    for world_size in (2, 1):
        mp.spawn(ranks, (world_size, str(folder)), nprocs=world_size)
    return {world_size: torch.load(folder / f"{world_size}.pt") for world_size in (1, 2)}


def difference(found: State, expected: State) -> float:
    assert [part.keys() for part in found] == [part.keys() for part in expected]
    return max(
        (a[name] - b[name]).abs().max().item()
        for a, b in zip(found, expected, strict=True)
        for name in a
    )


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_twenty_steps_on_two_ranks_are_the_paper_s_on_whole_tensors(
    results: dict[int, Any], stage: int, precision: str
) -> None:
    expected = by_the_paper(STEPS, precision)
    start = {name: p.data for name, p in build().named_parameters()}
    assert all((expected[0][name] - start[name]).abs().max() > 0.01 for name in start)
    assert difference(results[2][stage, precision], expected) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_so_are_those_on_one_rank(results: dict[int, Any], stage: int) -> None:
    assert difference(results[1][stage, "float32"], by_the_paper(STEPS, "float32")) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_a_restored_engine_goes_on_bit_for_bit(results: dict[int, Any], stage: int) -> None:
    assert difference(results[2][stage, "resumed"], results[2][stage, "float32"]) == 0


@pytest.mark.parametrize("stage", STAGES)
def test_it_restores_at_another_world_size_and_stage(results: dict[int, Any], stage: int) -> None:
    whole = results[2][(stage + 1) % 4, "float32"]
    assert difference(results[1][stage, "resumed"], whole) < 1e-6


def test_the_norms_of_all_tensors_are_one_all_reduce_a_step(results: dict[int, Any]) -> None:
    found = [results[2][stage, "all_reduces"] for stage in STAGES]
    assert found == [0, 1, 1, 1]
