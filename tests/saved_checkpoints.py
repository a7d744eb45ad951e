"""Checkpoints of tensors in memory, as a training of one rank saves them, and as older ones did."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from cluster.fragments import whole
from pipeline.config.folders import Folder
from pipeline.training.checkpoint_files import Checkpoint, TrainState
from pipeline.training.checkpoint_saver import CheckpointSaver
from pipeline.training.checkpoint_state import AVERAGE, CARRIED, MOMENTS, WEIGHTS
from pipeline.training.checkpoints import read_checkpoint
from pipeline.training.rank_info import RankInfo

Tensors = dict[str, torch.Tensor]


@contextlib.contextmanager
def one_rank() -> Iterator[RankInfo]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield RankInfo(0, 0, 0, 1, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def save_checkpoint(
    folder: Folder,
    state: TrainState,
    weights: Tensors,
    moments: Tensors,
    averaged: Tensors | None = None,
    carried: Tensors | None = None,
) -> Checkpoint:
    kinds = {WEIGHTS: weights, MOMENTS: moments, AVERAGE: averaged, CARRIED: carried}
    with one_rank() as rank_info:
        saver = CheckpointSaver(folder, rank_info)
        saver.save(
            state,
            {
                kind: contextlib.nullcontext([whole(n, t) for n, t in tensors.items()])
                for kind, tensors in kinds.items()
                if tensors is not None
            },
        )
        saver.wait(is_required=True)
    return read_checkpoint(folder / f"step-{state.step:08d}")


def save_as_before(folder: Path, state: TrainState, **files: Tensors) -> Checkpoint:
    """Write a checkpoint as older versions did: `model`, `optimizer`, `ema` and `stream`."""
    path = folder / f"step-{state.step:08d}"
    path.mkdir(parents=True)
    sha256 = {}
    for name, tensors in files.items():
        save_file(tensors, path / f"{name}.safetensors")
        content = (path / f"{name}.safetensors").read_bytes()
        sha256[f"{name}.safetensors"] = hashlib.sha256(content).hexdigest()
    (path / "state.json").write_text(json.dumps({**asdict(state), "sha256": sha256}))
    return read_checkpoint(path)


def load(checkpoint: Checkpoint, kind: str) -> Tensors:
    tensors = checkpoint.tensors(kind)
    return {} if tensors is None else {name: tensors.whole(name) for name in tensors.names}


def sha256_of(checkpoint: Checkpoint) -> list[str]:
    """The sha256 of all parts, in order of their kinds and ranks. The names have a random part."""
    return [checkpoint.files[name].sha256 for name in sorted(checkpoint.files, key=_kind_and_rank)]


def _kind_and_rank(name: str) -> tuple[str, str]:
    kind, _, rank, *_ = name.split("-")
    return kind, rank


def part_of(checkpoint: Checkpoint, kind: str, rank: int = 0) -> Folder:
    """The file with a rank's part."""
    (name,) = (n for n in checkpoint.files if n.startswith(kind) and f"-{rank:05d}-of-" in n)
    return checkpoint.path / name
