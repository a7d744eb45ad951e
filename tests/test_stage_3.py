"""ZeRO stage 3 on two ranks: activation checkpointing, and weights that a training starts from."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import join_ranks, run_ranks
from small_bench import TINY
from test_engine_state import difference
from test_engine_state import strategy as plain_strategy
from whole_state import gather_state

from cluster.accumulation import Accumulation
from cluster.deepspeed_engine import initialize_engine
from cluster.divided_model import divided_as_built
from cluster.strategy import Strategy
from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.attention.multi_head import MLP, Attend, SelfAttend
from perceiver_model.families.classifier import PerceiverClassifier
from pipeline.config.init import InitConfig
from pipeline.config.training import TrainingConfig
from pipeline.errors import UserError
from pipeline.training.initial_weights import saved
from pipeline.training.initial_weights.sources import InitSource
from pipeline.training.initial_weights.start import start_from
from pipeline.training.optimizer import make_optimizer
from pipeline.training.stored_tensors import StoredTensors

MICRO_BATCH, MICRO_BATCHES, STEPS = 2, 2, 3
INIT = InitConfig.model_validate({"from": "elsewhere"})


def strategy(stage: int, precision: Any = "float32") -> Strategy:
    return dataclasses.replace(
        plain_strategy(2, stage, precision),
        micro_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=MICRO_BATCHES,
    )


def build(stage: int, seed: int = 3) -> PerceiverClassifier:
    torch.manual_seed(seed)
    with divided_as_built(strategy(stage), 1000, [Attend, MLP]):
        return PerceiverClassifier(TINY)


def trained(stage: int, share: float, precision: Any) -> tuple[dict[str, torch.Tensor], int]:
    """The weights after some steps, and how often a self-attend has begun to run."""
    model = build(stage)
    model.encoder.checkpointed_share = share
    calls = []
    for module in model.modules():
        if isinstance(module, SelfAttend):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    engine = initialize_engine(
        model,
        make_optimizer(model, TrainingConfig()),
        strategy(stage, precision),
        gathered_whole=[CrossAttend],
    )
    accumulation = Accumulation(engine)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(STEPS):
        with accumulation.step():
            for micro in range(MICRO_BATCHES):
                if micro:
                    accumulation.between()
                images = torch.rand(MICRO_BATCH, 32, 32, 3, generator=generator)
                classes = torch.randint(0, 10, (MICRO_BATCH,), generator=generator)
                engine.backward(F.cross_entropy(engine(images).float(), classes))
        engine.step()
    weights, _ = gather_state(engine)
    return weights, len(calls)


def started(folder: Path) -> dict[str, Any]:
    """The weights of a model that starts from others, and the share of them that a rank reads."""
    source = build(0, seed=5).state_dict()
    if dist.get_rank() == 0:
        digest = saved.digest_of(source)
        saved.save_init(folder, InitSource("elsewhere", "a test", source), digest)
    dist.barrier()
    model, read = build(3), []
    whole = StoredTensors.read

    def counted(self: StoredTensors, name: str, start: int, length: int) -> torch.Tensor:
        read.append(length)
        return whole(self, name, start, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredTensors, "read", counted)
        start_from(model, INIT, folder, load=True)
    engine = initialize_engine(
        model, make_optimizer(model, TrainingConfig()), strategy(3), [CrossAttend]
    )
    weights, _ = gather_state(engine)
    return {
        "same": source.keys() == weights.keys() and difference(source, weights) == 0,
        "read": sum(read) / sum(tensor.numel() for tensor in source.values()),
    }


def damaged(folder: Path) -> str:
    """The error of the rank that checks the copy of the weights."""
    path = folder / saved.TENSORS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        start_from(build(0), INIT, folder, load=True)
    return str(refusal.value)


def ranks(rank: int, place: str) -> None:
    join_ranks(rank, 2, place)
    folder = Path(place)
    found: dict[str, Any] = {"started": started(folder)}
    for precision in ("float32", "bf16"):
        for share in (0.0, 0.5, 1.0):
            found[precision, share] = trained(3, share, precision)
    found["stage 0"] = trained(0, 0.0, "float32")
    dist.barrier()
    if rank == 0:
        found["damaged"] = damaged(folder)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What the ranks found."""
    folder = tmp_path_factory.mktemp("stage-3")
    run_ranks(ranks, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_activation_checkpointing_changes_no_bit(
    found: list[Any], precision: str, share: float
) -> None:
    kept, calls = found[0][precision, 0.0]
    weights, more = found[0][precision, share]
    assert difference(weights, kept) == 0
    assert more == calls * (1 + share)  # they were computed again
    # Adam turns the rounding of a gradient that is nearly 0 into a part of a step of 1e-3.
    assert difference(found[0]["float32", 0.0][0], found[0]["stage 0"][0]) < 1e-3


def test_a_rank_reads_only_its_part_of_the_weights_that_a_training_starts_from(
    found: list[Any],
) -> None:
    assert found[0]["started"]["same"] and found[1]["started"]["same"]
    # A part of the model is divided only later. Rank 0 also reads the file to check it.
    assert found[1]["started"]["read"] < 0.65
    assert 1 < found[0]["started"]["read"] < 1.65


def test_a_damaged_copy_of_these_weights_is_refused(found: list[Any]) -> None:
    assert "init.safetensors: is damaged" in found[0]["damaged"]
