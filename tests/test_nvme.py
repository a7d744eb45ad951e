"""`training.offload.optimizer=nvme`: trains, saves, resumes and moves to other machines and stages.

These tests need libaio with its headers, g++ and ninja: DeepSpeed builds what reads and writes
NVMe once on a machine, which takes seven minutes of a core. Where that is not done yet, only
`make test-nvme` runs them.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import join_ranks, run_ranks
from test_bad_steps import config as config
from test_bad_steps import trained
from test_engine_state import BATCH, CUT, STEPS, difference, optimizer, strategy
from torch import nn
from torch.utils import cpp_extension
from trainings import cut_off_after
from whole_state import gather_state

from cluster import ClusterError, nvme
from cluster.deepspeed_engine import initialize_engine
from cluster.nvme import require_nvme, swap_folder
from cluster.strategy import Strategy
from pipeline.config.load import load_config, with_values
from pipeline.errors import UserError
from pipeline.training.agreement import agreed_checkpoint
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoint_saver import CheckpointSaver
from pipeline.training.launch import run_training
from pipeline.training.rank_info import RankInfo
from pipeline.training.saved_state import own_state, restore_training

GROUP = 300_000
"""The weights that are stepped at once: more than 1 MiB, or they are not swapped."""


def is_built() -> bool:
    folder = Path(cpp_extension._get_build_directory("async_io", verbose=False))
    return (folder / "async_io.so").exists()


def can_build() -> bool:
    from deepspeed.accelerator import get_accelerator

    if not is_built() and "TEST_NVME" not in os.environ:
        return False
    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    return bool(builder.is_compatible(verbose=False)) and shutil.which("ninja") is not None


needs_libaio = pytest.mark.skipif(
    not can_build(),
    reason="'make test-nvme' builds what they need, if libaio with its headers, g++ and ninja is "
    "there",
)


def build() -> nn.Module:
    """Two groups of more than 1 MiB on each of two ranks, and others, which stay in memory.

    No weight begins at a multiple of 512 bytes in its group but the first.
    """
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(70, 801), nn.GELU(), nn.Linear(801, 801), nn.GELU(), nn.Linear(801, 900),
        nn.LayerNorm(900), nn.Linear(900, 3),
    )  # fmt: skip


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 70, generator=generator)
    return inputs, torch.randint(0, 3, (BATCH,), generator=generator)


def engine_of(folder: str, stage: int = 3, place: Any = "nvme", **fields: Any) -> Any:
    model = build()
    chosen = dataclasses.replace(
        strategy(dist.get_world_size(), stage),
        offload_optimizer=place,
        nvme_path=f"{folder}/nvme" if "nvme" in (place, *fields.values()) else None,
        deepspeed={"zero_optimization": {"sub_group_size": GROUP}} if stage == 3 else {},
        **fields,
    )
    return initialize_engine(model, optimizer(model), chosen)


def train(engine: Any, first: int, last: int) -> None:
    part, rank = BATCH // dist.get_world_size(), dist.get_rank()
    for step in range(first, last):
        inputs, targets = (t[rank * part : (rank + 1) * part] for t in data(step))
        engine.backward(F.cross_entropy(engine(inputs), targets))
        engine.step()


def swapped_groups(engine: Any) -> int:
    flats = engine.optimizer.fp32_partitioned_groups_flat
    return sum(flat.numel() == 0 for flat in flats)


def ranks(rank: int, world_size: int, place: str) -> None:
    join_ranks(rank, world_size, place)
    folder = Path(place) / "checkpoints"
    found: dict[str, Any] = {}
    if world_size == 2:
        rank_info = RankInfo(rank, rank, 0, 2, torch.device("cpu"))
        on_cpu = engine_of(place, place="cpu")
        train(on_cpu, 0, STEPS)
        found["cpu"] = gather_state(on_cpu)
        engine = engine_of(place)
        saver = CheckpointSaver(folder, rank_info)
        saver.save(TrainState(step=0), own_state(engine, None, None, rank_info))
        train(engine, 0, CUT)
        reads = count_reads(engine)
        saver.save(TrainState(step=CUT), own_state(engine, None, None, rank_info))
        found["reads"] = sum(reads)
        found["swapped"] = swapped_groups(engine)
        found["half"] = gather_state(engine)
        train(engine, CUT, STEPS)
        saver.wait(is_required=True)
        found["whole"] = gather_state(engine)
        chosen, _ = agreed_checkpoint(folder)
        assert chosen is not None
        restore_training(engine, chosen, None)  # as a rollback does
        found["back"] = gather_state(engine)
        again = engine_of(f"{place}/again")
        restore_training(again, chosen, None)
        train(again, CUT, STEPS)
        found["resumed"] = gather_state(again)
    else:
        chosen, _ = agreed_checkpoint(folder)
        assert chosen is not None
        for stage, where in ((2, "none"), (3, "none"), (3, "nvme")):
            engine = engine_of(place, stage, where)
            restore_training(engine, chosen, None)
            found[stage, where] = gather_state(engine)
    torch.save(found, f"{place}/{world_size}-{rank}.pt")
    dist.barrier()


def count_reads(engine: Any) -> list[int]:
    """Count how often a group is read from its files."""
    swapper, reads = engine.optimizer.optimizer_swapper, []
    read = swapper.swap_in_optimizer_state

    def counted(*arguments: Any, **named: Any) -> None:
        reads.append(1)
        read(*arguments, **named)

    swapper.swap_in_optimizer_state = counted
    return reads


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What rank 0 found, by the number of ranks."""
    folder = tmp_path_factory.mktemp("nvme")
    for world_size in (2, 1):
        run_ranks(ranks, (world_size, str(folder)), world_size)
    return {size: torch.load(folder / f"{size}-0.pt") for size in (1, 2)}


def is_same(a: Any, b: Any) -> bool:
    return all(difference(one, other) == 0 for one, other in zip(a, b, strict=True))


@needs_libaio
def test_it_trains_as_in_memory_and_resumes_and_rolls_back_bit_for_bit(found: Any) -> None:
    states = found[2]
    assert states["swapped"] == 2  # between steps they are only in files
    assert is_same(states["whole"], states["cpu"])
    assert is_same(states["resumed"], states["whole"])
    assert is_same(states["back"], states["half"])
    assert not is_same(states["half"], states["whole"])


@needs_libaio
def test_a_save_reads_each_group_once_for_the_weights_and_once_for_the_moments(found: Any) -> None:
    assert found[2]["reads"] == 2 * 2


@needs_libaio
def test_it_is_restored_at_another_world_size_stage_and_place(found: Any) -> None:
    for where in ((2, "none"), (3, "none"), (3, "nvme")):
        assert is_same(found[1][where], found[2]["half"])


@needs_libaio
@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_cut_training_resumes_to_the_bit_and_leaves_no_file(
    config: Callable[..., Any], tmp_path: Path, precision: str
) -> None:
    place = tmp_path / "disk"
    chosen = config(
        zero_stage=3,
        offload={"optimizer": "nvme", "nvme_path": str(place)},
        precision=precision,
        on_bad_step="skip",
        gradient_accumulation_steps=2,
    )
    wide = {"model.encoder.latent_dim": 160, "model.encoder.num_self_attends": 2}
    chosen = with_values(chosen, wide)  # enough weights to be swapped
    _, whole = trained(chosen, tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    with cut_off_after(5):
        run_training(chosen, tmp_path / "cut", None)
    _, resumed = trained(chosen, tmp_path / "cut")
    assert difference(whole, resumed) == 0
    assert [path for path in place.iterdir() if path.is_dir()] == []

    in_memory = with_values(chosen, {"training.offload": {"optimizer": "cpu"}})
    _, other = trained(in_memory, tmp_path / "memory")
    assert difference(whole, other) == 0


def on_nvme(folder: Path) -> Strategy:
    return dataclasses.replace(strategy(1, 3), offload_optimizer="nvme", nvme_path=str(folder))


@needs_libaio
def test_trainings_with_one_path_have_folders_of_their_own_and_those_of_killed_ones_are_removed(
    tmp_path: Path,
) -> None:
    left = tmp_path / "perceiver-swap-of-a-killed-process"
    left.mkdir()
    (left / "rank0.tensor.swp").write_bytes(bytes(100))
    (left / "lock").touch()
    with swap_folder(on_nvme(tmp_path), 1000, local_rank=0) as first:
        assert first is not None and not left.exists()
        with swap_folder(on_nvme(tmp_path), 1000, local_rank=0) as second:
            assert second is not None and {first, second} == set(
                map(str, tmp_path.glob("perceiver-swap-*"))
            )
    assert list(tmp_path.glob("perceiver-swap-*")) == []


@needs_libaio
def test_a_folder_without_room_or_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    num_parameters = shutil.disk_usage(tmp_path).free // 12 * 2 // 3
    small = {"zero_optimization": {"sub_group_size": GROUP}}
    asked = dataclasses.replace(on_nvme(tmp_path), deepspeed=small)
    with (
        pytest.raises(ClusterError, match=r"GiB free, and 2 workers on this machine need"),
        swap_folder(asked, num_parameters, local_rank=1),
    ):
        pass
    assert list(tmp_path.glob("perceiver-swap-*")) == []
    (tmp_path / "file").touch()
    with (
        pytest.raises(ClusterError, match=r"nvme_path=.*file/x: cannot be written \(Not a dir"),
        swap_folder(on_nvme(tmp_path / "file" / "x"), 1000, local_rank=0),
    ):
        pass


@needs_libaio
def test_too_little_locked_memory_ends_the_run_before_deepspeed_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvme, "_can_lock", lambda num_bytes: num_bytes <= 1024)
    with pytest.raises(ClusterError, match=r"16 MiB of locked memory .*\('ulimit -l'"):
        require_nvme(on_nvme(tmp_path), 1 << 20)


def test_memory_beyond_the_limit_cannot_be_locked() -> None:
    assert nvme._can_lock(4096)
    assert not nvme._can_lock(1 << 50)


def test_nvme_without_libaio_ends_before_the_first_step_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deepspeed.accelerator import get_accelerator

    nvme._build_aio.cache_clear()
    monkeypatch.setattr(
        get_accelerator().get_op_builder("AsyncIOBuilder"),
        "has_function",
        lambda *arguments, **named: False,
    )
    with pytest.raises(ClusterError, match="apt install libaio-dev"):
        require_nvme(on_nvme(Path("/nvme")), 1000)


def test_what_nvme_cannot_do_is_refused_by_name() -> None:
    on = ["training.zero_stage=3", "training.offload.optimizer=nvme"]
    path = "training.offload.nvme_path=/nvme"
    for overrides, message in (
        (on, "nvme_path is missing"),
        ([*on, "training.offload.nvme_path=here"], "nvme_path is here; give an absolute path"),
        (
            [on[0], "training.offload.parameters=nvme", path, "training.optimizer=lamb"],
            "parameters is nvme, but optimizer lamb sums norms",
        ),
        ([on[1], path], "offload.optimizer is nvme, which needs zero_stage 3; it is 2"),
        ([*on, path, "training.ema_decay=0.9"], "ema_decay is 0.9, and offload.optimizer is nvme"),
    ):
        with pytest.raises(UserError, match=message):
            load_config("digits", overrides)
    load_config("digits", [*on, path, "training.deepspeed.aio.block_size=2097152"])
    load_config("digits", [on[0], "training.offload.parameters=nvme", path])


@needs_libaio
def test_a_folder_of_builds_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    nvme._build_aio.cache_clear()
    with pytest.raises(ClusterError, match=r"cannot be written .*file.*TORCH_EXTENSIONS_DIR"):
        require_nvme(on_nvme(tmp_path), 1000)
