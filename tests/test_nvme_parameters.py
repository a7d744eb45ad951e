"""`training.offload.parameters=nvme`: the same bits as in memory, saved, restored and frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_processes import join_ranks, run_ranks
from test_bad_steps import config as config
from test_bad_steps import trained
from test_engine_state import CUT, STEPS
from test_nvme import build, engine_of, is_same, needs_libaio, train
from trainings import cut_off_after, difference
from whole_state import gather_state

from cluster.parameters_on_nvme import own_part
from pipeline.config.load import with_values
from pipeline.training.agreement import agreed_checkpoint
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoint_saver import CheckpointSaver
from pipeline.training.launch import run_training
from pipeline.training.rank_info import RankInfo
from pipeline.training.saved_state import own_state, restore_training

PLACES = ("none", "cpu", "nvme")


def on_nvme(engine: Any) -> int:
    """The weights that are in files now."""
    parts = [parameter.ds_tensor for parameter in engine.module.parameters()]
    return sum(part.final_location == "nvme" and part.numel() == 1 for part in parts)


def ranks(rank: int, world_size: int, place: str) -> None:
    join_ranks(rank, world_size, place)
    rank_info = RankInfo(rank, rank, 0, world_size, torch.device("cpu"))
    found: dict[str, Any] = {}
    for where in PLACES:
        # An optimizer's state in files is stepped on the CPU. On the device, norms are summed in
        # another order.
        reference = engine_of(place, place=where.replace("nvme", "cpu"))
        train(reference, 0, STEPS)
        found[f"{where} in memory"] = gather_state(reference)
        folder = Path(place) / where
        engine = engine_of(str(folder), place=where, offload_parameters="nvme")
        found[f"{where} in files"] = on_nvme(engine)
        train(engine, 0, CUT)
        saver = CheckpointSaver(folder / "checkpoints", rank_info)
        saver.save(TrainState(step=CUT), own_state(engine, None, None, rank_info))
        train(engine, CUT, STEPS)
        saver.wait(is_required=True)
        found[where] = gather_state(engine)
        found[f"{where} in files later"] = on_nvme(engine)
        again = engine_of(f"{folder}/again", place=where, offload_parameters="nvme")
        chosen, _ = agreed_checkpoint(folder / "checkpoints")
        assert chosen is not None
        restore_training(again, chosen, None)
        train(again, CUT, STEPS)
        found[f"{where} resumed"] = gather_state(again)
        # A part that is changed is written back, and one that is read stays as it is.
        weight: Any = next(each for each in again.module.parameters()
                           if each.ds_tensor.final_location == "nvme")  # fmt: skip
        with own_part(weight, changes=True) as part:
            part.fill_(rank + 3.5)
        with own_part(weight) as part:
            found[f"{where} written"] = set(part.tolist())
    torch.save(found, f"{place}/{rank}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("nvme")
    run_ranks(ranks, (2, str(folder)), 2)
    return torch.load(folder / "0.pt", weights_only=False)


@needs_libaio
@pytest.mark.parametrize("place", PLACES)
def test_it_trains_as_in_memory_and_resumes_bit_for_bit(found: Any, place: str) -> None:
    large = sum(each.numel() // 2 * 4 >= 1 << 20 for each in build().parameters())
    assert found[f"{place} in files"] == found[f"{place} in files later"] == large == 2
    assert is_same(found[place], found[f"{place} in memory"])
    assert is_same(found[f"{place} resumed"], found[place])
    assert found[f"{place} written"] == {3.5}


@needs_libaio
def test_a_cut_training_resumes_to_the_bit_and_leaves_no_file(
    config: Callable[..., Any], tmp_path: Path
) -> None:
    place = tmp_path / "disk"
    wide = {"model.encoder.latent_dim": 288, "model.encoder.num_self_attends": 1}
    in_memory = with_values(config(zero_stage=3), wide)
    _, whole = trained(in_memory, tmp_path / "memory")
    chosen = with_values(
        in_memory, {"training.offload": {"parameters": "nvme", "nvme_path": str(place)}}
    )
    (tmp_path / "cut").mkdir()
    with cut_off_after(5):
        run_training(chosen, tmp_path / "cut", None)
    _, resumed = trained(chosen, tmp_path / "cut")
    assert difference(whole, resumed) == 0
    assert [path for path in place.iterdir() if path.is_dir()] == []
