"""Gradients in flat tensors: those of plain torch, at three ranks, with weights that are unused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import join_ranks, run_ranks
from test_engine_state import difference
from torch import nn
from whole_state import gather_state

from cluster.deepspeed_engine import initialize_engine
from cluster.flat_gradients import _FlatGradients
from cluster.strategy import Strategy

RANKS, MICROS, PART, STEPS = 3, 2, 2, 4
CLIPPING = 10.0
"""Larger than any norm here, and Adam has a large eps: the scale of gradients matters."""


class Net(nn.Module):
    """Of its two branches, one is used in odd steps and one in even steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(7, 13)
        self.branches = nn.ModuleList([nn.Linear(13, 5), nn.Linear(13, 5)])
        self.transposed = nn.Parameter(torch.randn(5, 3))

    def forward(self, inputs: torch.Tensor, step: int) -> torch.Tensor:
        hidden = self.branches[step % 2](F.gelu(self.inner(inputs)))
        return F.linear(hidden, self.transposed.t())


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    size = RANKS * MICROS * PART
    inputs = torch.randn(size, 7, generator=generator)
    return inputs, torch.randint(0, 3, (size,), generator=generator)


def optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-2)


def plain_torch() -> dict[str, torch.Tensor]:
    """DeepSpeed steps a weight without a gradient with zeros."""
    model = Net()
    adam = optimizer(model)
    for step in range(STEPS):
        inputs, targets = batch(step)
        model.zero_grad(set_to_none=False)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        F.cross_entropy(model(inputs, step), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        adam.step()
    return dict(model.named_parameters())


def engine_of(stage: int, further: Any = None) -> Any:
    model = Net()
    strategy = Strategy(
        world_size=dist.get_world_size(), zero_stage=stage, micro_batch_size=PART,
        gradient_accumulation_steps=MICROS, gradient_clipping=CLIPPING, precision="float32",
        device="cpu",
    )  # fmt: skip
    if further:
        strategy = dataclasses.replace(strategy, deepspeed={"zero_optimization": further})
    return initialize_engine(model, optimizer(model), strategy)


def is_flat(engine: Any) -> bool:
    reduce = engine.optimizer.independent_gradient_partition_epilogue
    return isinstance(reduce.__self__, _FlatGradients)


def train(engine: Any) -> Any:
    rank = dist.get_rank()
    for step in range(STEPS):
        inputs, targets = (t.unflatten(0, (MICROS, RANKS, PART)) for t in batch(step))
        for micro in range(MICROS):
            outputs = engine(inputs[micro, rank], step)
            engine.backward(F.cross_entropy(outputs, targets[micro, rank]))
            engine.step()
    return gather_state(engine)


def ranks(rank: int, folder: str) -> None:
    join_ranks(rank, RANKS, folder)
    found = {}
    for stage in (1, 2):
        engine = engine_of(stage)
        assert is_flat(engine)
        found[stage] = train(engine)
        asked = engine_of(stage, {"reduce_bucket_size": 1024})
        assert not is_flat(asked)
        found["asked", stage] = train(asked)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("flat")
    run_ranks(ranks, (str(folder),), RANKS)
    return torch.load(Path(folder) / "found.pt")


@pytest.mark.parametrize("stage", [1, 2])
def test_they_train_as_plain_torch_and_as_deepspeed_s_own_way(found: Any, stage: int) -> None:
    weights, moments = found[stage]
    assert difference(weights, plain_torch()) < 1e-6
    own_weights, own_moments = found["asked", stage]
    assert difference(weights, own_weights) < 1e-6
    assert difference(moments, own_moments) < 1e-6
