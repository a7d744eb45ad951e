"""Checkpoints of several ranks: each writes its own part, and reads only what it holds."""

import contextlib
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import join_ranks, run_ranks
from saved_checkpoints import load
from small_bench import TINY
from test_engine_state import BATCH, build, data, optimizer, strategy
from whole_state import gather_state

from cluster.deepspeed_engine import initialize_engine
from cluster.divided_model import divided_as_built
from perceiver_model.attention.multi_head import MLP, Attend
from perceiver_model.families.classifier import PerceiverClassifier
from pipeline.config.training import TrainingConfig
from pipeline.errors import UserError
from pipeline.training.agreement import agreed_checkpoint
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoint_saver import CheckpointSaver
from pipeline.training.checkpoints import list_names, read_checkpoint
from pipeline.training.optimizer import make_optimizer
from pipeline.training.rank_info import RankInfo
from pipeline.training.saved_state import own_state, restore_training
from pipeline.training.stored_tensors import StoredTensors

CPU = torch.device("cpu")
FEW = 2  # steps before the checkpoint, and again after it


def engine_of(stage: int) -> Any:
    model = build(frozen=True)
    return initialize_engine(model, optimizer(model), strategy(dist.get_world_size(), stage))


def train(engine: Any, first: int, last: int) -> None:
    part = BATCH // dist.get_world_size()
    rank = dist.get_rank()
    for step in range(first, last):
        inputs, targets = (t[rank * part : (rank + 1) * part] for t in data(step))
        engine.backward(F.cross_entropy(engine(inputs), targets))
        engine.step()


def ranks(rank: int, world_size: int, place: str) -> None:
    join_ranks(rank, world_size, place)
    folder, rank_info = Path(place), RankInfo(rank, rank, 0, world_size, CPU)
    found: dict[str, Any] = {}
    if world_size == 2:
        for stage in range(4):
            found |= saved_and_resumed(folder / f"stage-{stage}", stage, rank_info)
        found |= not_saved(folder / "failing", rank_info)
        found["initial"] = initial_weights(rank_info)
    else:
        for stage in range(4):
            found |= resharded(folder / f"stage-{stage}", (stage + 1) % 4)
        if world_size == 3:
            found |= torn(folder / "stage-2")
    torch.save(found, folder / f"{world_size}-{rank}.pt")
    dist.barrier()


def saved_and_resumed(folder: Path, stage: int, rank_info: RankInfo) -> dict[str, Any]:
    engine = engine_of(stage)
    saver = CheckpointSaver(folder, rank_info)
    saver.save(TrainState(step=0), own_state(engine, None, None, rank_info))
    train(engine, 0, FEW)
    saver.save(TrainState(step=FEW), own_state(engine, None, None, rank_info))
    copied = {kind: copy.num_bytes for kind, copy in saver._copies.items()}
    half = gather_state(engine)
    train(engine, FEW, 2 * FEW)  # while it is written
    saver.wait()
    whole = gather_state(engine)
    read: dict[str, int] = {}
    with counted_reads(read):
        chosen, notes = agreed_checkpoint(folder)
        assert chosen is not None and not notes
        again = engine_of(stage)
        restore_training(again, chosen, None)
        train(again, FEW, 2 * FEW)
        resumed = gather_state(again)
        restore_training(engine, chosen, None)  # as a rollback does
        back = gather_state(engine)
    return {
        f"{stage}": {
            "half": half, "whole": whole, "resumed": resumed, "back": back, "copied": copied,
            "read": read,
        }
    }  # fmt: skip


@contextlib.contextmanager
def counted_reads(read: dict[str, int]) -> Any:
    """Count the elements that are read of each kind of tensors."""
    whole = StoredTensors.read

    def counted(self: StoredTensors, name: str, start: int, length: int) -> torch.Tensor:
        kind = "moments" if name.startswith("exp_avg") else "weights"
        read[kind] = read.get(kind, 0) + length
        return whole(self, name, start, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredTensors, "read", counted)
        yield


def resharded(folder: Path, stage: int) -> dict[str, Any]:
    chosen, _ = agreed_checkpoint(folder)
    assert chosen is not None
    engine = engine_of(stage)
    restore_training(engine, chosen, None)
    return {folder.name: gather_state(engine)}


def torn(folder: Path) -> dict[str, Any]:
    """Rank 1's part of the last checkpoint loses its end, or is spoiled on the disk."""
    if dist.get_rank() == 0:
        last = read_checkpoint(folder / list_names(folder)[-1])
        (part,) = last.path.glob("optimizer-*-00001-of-*")
        content = bytearray(part.read_bytes())
        content[-2] ^= 1
        part.write_bytes(content)
    dist.barrier()
    chosen, notes = agreed_checkpoint(folder)
    return {"torn": (chosen and chosen.state.step, notes)}


def not_saved(folder: Path, rank_info: RankInfo) -> dict[str, Any]:
    """The errors of saves that fail on rank 1: a value that is not finite, and a full disk."""
    engine, said = engine_of(2), {}
    saver = CheckpointSaver(folder, rank_info)
    saver.save(TrainState(step=1), own_state(engine, None, None, rank_info))
    saver.wait()
    flat = engine.optimizer.single_partition_of_fp32_groups[0]
    if rank_info.rank == 1:
        flat.data[0] = float("nan")
    with pytest.raises(UserError) as refusal:
        saver.save(TrainState(step=2), own_state(engine, None, None, rank_info))
    said["not finite"] = str(refusal.value)
    flat.data[0] = 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank_info.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    saver.save(TrainState(step=3), own_state(engine, None, None, rank_info))
    saver.wait()
    said["left out"] = saver.news()
    saver.save(TrainState(step=3), own_state(engine, None, None, rank_info))
    with pytest.raises(UserError) as refusal:
        saver.wait(is_required=True)
    said["required"] = str(refusal.value)
    saver.save(TrainState(step=3), own_state(engine, None, None, rank_info))
    with pytest.raises(UserError) as refusal:
        for _ in range(200):
            saver.check()
            time.sleep(0.02)
    said["third"] = str(refusal.value)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said["left"] = sorted(path.name for path in folder.iterdir())
    saver.save(TrainState(step=4), own_state(engine, None, None, rank_info))
    saver.wait()
    said["then"] = list_names(folder)
    return {"not saved": said}


def small_perceiver() -> PerceiverClassifier:
    torch.manual_seed(3)
    return PerceiverClassifier(TINY)


def initial_weights(rank_info: RankInfo) -> dict[str, Any]:
    """Weights of a model that was divided while it was built, and the share that a rank held."""
    expected = small_perceiver()
    plan = strategy(rank_info.world_size, 3)
    with divided_as_built(plan, 1000, [Attend, MLP]):
        model = small_perceiver()
    held = sum(parameter.numel() for parameter in model.parameters())
    decayed = [
        [len(group["params"]) for group in make_optimizer(each, TrainingConfig()).param_groups]
        for each in (model, expected)
    ]
    engine = initialize_engine(model, make_optimizer(model, TrainingConfig()), plan)
    weights, _ = gather_state(engine)
    state = expected.state_dict()
    return {
        "same": state.keys() == weights.keys()
        and all(torch.equal(weights[name], state[name]) for name in state),
        "held": held / sum(tensor.numel() for tensor in state.values()),
        "decayed": decayed,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the ranks found, by the number of ranks and the rank, and the folder."""
    folder = tmp_path_factory.mktemp("ranks")
    results: dict[str, Any] = {"folder": folder}
    for world_size in (2, 1, 3):
        run_ranks(ranks, (world_size, str(folder)), world_size)
        for rank in range(world_size):
            results[f"{world_size}-{rank}"] = torch.load(folder / f"{world_size}-{rank}.pt")
    return results


def assert_same(a: Any, b: Any) -> None:
    for one, other in zip(a, b, strict=True):  # weights, moments
        assert one.keys() == other.keys() and one
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage", range(4))
def test_a_training_resumes_and_rolls_back_bit_for_bit(found: Any, stage: int) -> None:
    for rank in range(2):
        states = found[f"2-{rank}"][f"{stage}"]
        assert_same(states["resumed"], states["whole"])
        assert_same(states["back"], states["half"])
        assert any(not torch.equal(states["whole"][0][n], t) for n, t in states["half"][0].items())


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("world_size", [1, 3])
def test_it_is_restored_at_another_world_size_and_stage_bit_for_bit(
    found: Any, stage: int, world_size: int
) -> None:
    assert_same(found[f"{world_size}-0"][f"stage-{stage}"], found["2-0"][f"{stage}"]["half"])


@pytest.mark.parametrize("stage", range(4))
def test_a_rank_copies_and_reads_only_its_own_part(found: Any, stage: int) -> None:
    weights, moments = (
        sum(tensor.numel() for tensor in tensors.values())
        for tensors in found["2-0"][f"{stage}"]["half"]
    )
    copied = [found[f"2-{rank}"][f"{stage}"]["copied"] for rank in range(2)]
    for kind, total in (("weights", weights), ("optimizer", moments)):
        assert sum(each[kind] for each in copied) == 4 * total
        if stage in (0, 3):  # elsewhere DeepSpeed cuts without the frozen weights
            assert max(each[kind] for each in copied) < 4 * total * 0.55
    for rank in range(2):
        read = found[f"2-{rank}"][f"{stage}"]["read"]
        whole = 2 * moments  # read twice: to resume, and to roll back
        assert read["moments"] == whole if stage == 0 else read["moments"] < whole * 0.6


def test_a_value_that_is_not_finite_on_one_rank_is_refused_on_all(found: Any) -> None:
    first, second = (found[f"2-{rank}"]["not saved"] for rank in range(2))
    assert first == second
    assert "is not finite after step 2; lower training.learning_rate" in first["not finite"]


def test_a_part_that_cannot_be_written_is_left_out_on_all_ranks_twice(found: Any) -> None:
    said = found["2-0"]["not saved"]
    full = "step-00000003: cannot be written (File too large) (worker 1 on"
    (note,) = said["left out"]
    assert full in note and note.endswith("; the training goes on, and saves again later")
    assert full in said["required"]
    assert full in said["third"]
    assert said["third"].endswith("; 3 checkpoints in a row could not be written")
    assert said["left"] == ["step-00000001"]
    assert said["then"] == ["step-00000001", "step-00000004"]


def test_a_damaged_part_sets_the_checkpoint_aside_on_all_ranks(found: Any) -> None:
    for rank in range(3):
        step, (note,) = found[f"3-{rank}"]["torn"]
        assert step == 0
        assert "-00001-of-00002.safetensors: sha256 differs from state.json" in note
        assert "set aside, going on from step-00000000, the one before it" in note


def test_every_rank_writes_one_file_of_each_kind_and_the_state_names_them(found: Any) -> None:
    checkpoint = read_checkpoint(found["folder"] / "stage-3" / f"step-{FEW:08d}")
    assert len(checkpoint.files) == 4
    assert {path.name for path in checkpoint.path.iterdir()} == {"state.json", *checkpoint.files}
    loaded = load(checkpoint, "weights")
    half, _ = found["2-0"]["3"]["half"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in half.items())
    assert checkpoint.load_model().keys() == half.keys()


def test_a_model_is_divided_as_it_is_built_with_the_same_initial_weights(found: Any) -> None:
    for rank in range(2):
        initial = found[f"2-{rank}"]["initial"]
        assert initial["same"]
        assert initial["held"] < 0.5
        assert initial["decayed"][0] == initial["decayed"][1]  # matrices are known as such
