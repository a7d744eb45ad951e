"""Offload, overlap and further keys on two ranks: the same steps, and the same bits after a resume.

The model has a layer that is used twice, and odd sizes.
"""

import dataclasses
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import join_ranks, run_ranks
from test_engine_state import BATCH, CUT, STEPS, build, data, difference, optimizer, strategy
from whole_state import gather_state, restore_state

from cluster.deepspeed_engine import initialize_engine
from cluster.loss_scale import set_loss_scale

SCALE = 1024.0
BUCKETS = {"zero_optimization": {"reduce_bucket_size": 200}}
"""Makes several buckets of the small model."""
OFFLOADED: dict[str, Any] = {"offload_optimizer": "cpu", "offload_parameters": "cpu"}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "1-offload": (1, {"offload_optimizer": "cpu"}),
    "2-offload": (2, {"offload_optimizer": "cpu"}),
    "3-offload": (3, OFFLOADED),
    "2-offload-fp16": (2, {"offload_optimizer": "cpu", "precision": "fp16"}),
    "3-offload-fp16": (3, {**OFFLOADED, "precision": "fp16"}),
    "1-overlap": (1, {"overlap_communication": True, "deepspeed": BUCKETS}),
    "2-overlap": (2, {"overlap_communication": True, "deepspeed": BUCKETS}),
    "3-overlap": (3, {"overlap_communication": True, "deepspeed": BUCKETS}),
}


def run(stage: int, fields: dict[str, Any], first: int, last: int, state: Any = None) -> Any:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = build()
    if state:
        model.load_state_dict(state[0])
    chosen = dataclasses.replace(strategy(world_size, stage), **fields)
    engine = initialize_engine(model, optimizer(model), chosen)
    if state:
        restore_state(engine, *state, step=first)
    if fields.get("precision") == "fp16":
        set_loss_scale(engine, SCALE)
    part = BATCH // world_size
    for step in range(first, last):
        inputs, targets = (t[rank * part : (rank + 1) * part] for t in data(step))
        engine.backward(F.cross_entropy(engine(inputs), targets))
        engine.step()
    return gather_state(engine)


def ranks(rank: int, folder: str) -> None:
    join_ranks(rank, 2, folder)
    results = {str(stage): run(stage, {}, 0, STEPS) for stage in (1, 2, 3)}
    for name, (stage, fields) in CASES.items():
        results[name] = run(stage, fields, 0, STEPS)
        half = run(stage, fields, 0, CUT)
        results[f"{name}-resumed"] = run(stage, fields, CUT, STEPS, half)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("strategies")
    run_ranks(ranks, (str(folder),), 2)
    found: dict[str, Any] = torch.load(folder / "results.pt")
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_strategy_trains_as_without_it(results: dict[str, Any], name: str) -> None:
    stage, _ = CASES[name]
    found = difference(results[name][0], results[str(stage)][0])
    if "overlap" in name:
        assert found == 0
    elif "fp16" in name:
        assert 0 < found < 0.01
    else:
        assert found < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_strategy_has_the_same_bits(results: dict[str, Any], name: str) -> None:
    for part in (0, 1):  # weights, moments
        assert difference(results[f"{name}-resumed"][part], results[name][part]) == 0
